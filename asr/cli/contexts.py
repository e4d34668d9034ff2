"""What is known of recordings, as the command is told it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from asr.cli.console import say
from lm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from asr.recordings import AudioPart, Recording
    from lm.utterance_context import UtteranceContext

T = TypeVar("T")


def contexts_of(path: Path, recordings: Sequence[Recording]) -> dict[Path | AudioPart, UtteranceContext]:
    """Read what a file knows of recordings; says how many it leaves out.

    Raises:
        ConfigError, DataError: contexts of none of them, or two contexts of one file.
    """
    from lm.utterance_context import read_contexts

    return by_path(read_contexts(path), recordings, path, "contexts")


def by_path(
    found: Mapping[str, T], recordings: Sequence[Recording], source: Path, what: str
) -> dict[Path | AudioPart, T]:
    """What a file says of recordings by id, by what is to be recognised; says how many it leaves out.

    Raises:
        DataError: it says something of none of them, or two things of one file.
    """
    known = [recording for recording in recordings if recording.id in found]
    if recordings and not known:
        raise DataError(
            f"{source} has {what} of {next(iter(found))!r} …, none of {recordings[0].id!r} …",
            "those of the recordings, by id",
            "correct the ids: that of a file is its name without its ending",
        )
    said = {recording.audio: found[recording.id] for recording in known}
    for recording in recordings:
        if found.get(recording.id) != said.get(recording.audio):
            raise DataError(
                f"{recording.path} under several ids with {what} of their own", f"the same {what} for one file",
                f"transcribe it once with each of its {what}",
            )  # fmt: skip
    if len(known) < len(recordings):
        say(f"{source}: {what} of {len(known)} of {len(recordings)} recordings; the others go without")
    return said


def context_of(fields: Sequence[str]) -> dict[str, Any] | None:
    """A context from ``name=value`` each; None without any.

    Raises:
        ConfigError: a field without a value, or one that is no YAML.
    """
    import yaml

    found = {}
    for field in fields:
        name, equals, value = field.partition("=")
        try:
            found[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name.strip():
            raise ConfigError(f"--context {field!r}", "a field and its value", "write --context hour=7")
    return found or None
