"""The one error a user may see: what was given, what was expected, how to go on."""

from __future__ import annotations


class VocativeError(Exception):
    """A problem with what the user gave, told in one line.

    Args:
        given: what was found, with the offending value and where it came from.
        expected: what would have been right.
        fix: what to do next.
    """

    def __init__(self, given: str, expected: str, fix: str) -> None:
        self.given = given
        self.expected = expected
        self.fix = fix
        line = f"{given}; expected {expected}; {fix}"
        super().__init__(" ".join(line.split()))


class ConfigError(VocativeError):
    """A configuration that cannot be used: unknown key, wrong type, value out of range."""


class EntityListError(VocativeError):
    """An entity list that is missing, malformed, empty, or encodes to nothing."""


class AudioError(VocativeError):
    """A recording that cannot be read or cannot be recognised."""


class BundleError(VocativeError):
    """A model folder or checkpoint that is incomplete, damaged, unsafe, or of another model."""


class DataError(VocativeError):
    """A corpus, manifest or transcript that cannot be used."""


class Interrupted(VocativeError):
    """A signal stopped the work after its state was saved."""
