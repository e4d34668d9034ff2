"""What is known of recordings, as the command is told it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr.cli.console import say
from lm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from asr.recordings import Recording
    from lm.utterance_context import UtteranceContext


def contexts_of(path: Path, recordings: Sequence[Recording]) -> dict[Path, UtteranceContext]:
    """Read what a file knows of recordings; says how many it leaves out.

    Raises:
        ConfigError, DataError: contexts of none of them, or two contexts of one file.
    """
    from lm.utterance_context import read_contexts

    found = read_contexts(path)
    known = [recording for recording in recordings if recording.id in found]
    if recordings and not known:
        raise DataError(
            f"{path} has contexts of {next(iter(found))!r} …, none of {recordings[0].id!r} …",
            "those of the recordings, by id",
            "correct the ids: that of a file is its name without its ending",
        )
    contexts = {recording.path: found[recording.id] for recording in known}
    for recording in recordings:
        if found.get(recording.id, {}) != contexts.get(recording.path, {}):
            raise DataError(
                f"{recording.path} under several ids with contexts of their own", "one context of a file",
                "transcribe it once with each context",
            )  # fmt: skip
    if len(known) < len(recordings):
        say(f"{path}: contexts of {len(known)} of {len(recordings)} recordings; the others go without")
    return contexts


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
