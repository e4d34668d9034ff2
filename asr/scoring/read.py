"""References and hypotheses from files: Kaldi text, tagged or not, and our own jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from asr.scoring.score import transcript_of
from asr.writers import from_dict
from decoding.result import Transcript
from lm.errors import DataError
from lm.tagged_text import TaggedText, parse


def read_references(path: Path) -> dict[str, TaggedText]:
    """Read ``id words...`` lines, the words tagged or not; an id alone is an utterance without words."""
    found: dict[str, TaggedText] = {}
    for number, line in _lines(path):
        name, text = _split(line)
        if name in found:
            raise _twice(path, number, name)
        try:
            found[name] = parse(text)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error.given}", error.expected, error.fix) from None
    if not found:
        raise DataError(f"{path} is empty", "lines of an id and words", "check the path")
    return found


def read_hypotheses(path: Path) -> dict[str, Transcript]:
    """Read recognised texts.

    ``.jsonl`` is what ``asr.writers`` writes or the ``results.jsonl`` of a batch: of several lines for one id
    the last counts, and one with an error is no hypothesis. Anything else is lines of an id and words, which
    may be tagged (``<unk>`` and the like are words where no tag is closed).
    """
    read = _read_jsonl if path.suffix == ".jsonl" else _read_text
    return read(path)


def _read_text(path: Path) -> dict[str, Transcript]:
    found: dict[str, Transcript] = {}
    for number, line in _lines(path):
        name, text = _split(line)
        if name in found:
            raise _twice(path, number, name)
        if "</" not in text:
            found[name] = Transcript(name, " ".join(text.split()), float("nan"))
            continue
        try:
            found[name] = transcript_of(name, parse(text))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error.given}", error.expected, error.fix) from None
    return found


def _read_jsonl(path: Path) -> dict[str, Transcript]:
    found: dict[str, Transcript] = {}
    for number, line in _lines(path):
        try:
            values = json.loads(line)
            if "error" in values:
                found.pop(values["id"], None)
                continue
            transcript = from_dict(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{path}:{number} is no transcript ({type(error).__name__}: {error})",
                "an object with id and text as asr transcribe writes it",
                "mend the line",
            ) from None
        found.pop(transcript.id, None)
        found[transcript.id] = transcript
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror})", "a text file", "check the path"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason})", "a UTF-8 file", "save it as UTF-8") from None
    # Not splitlines, which also cuts at characters that may stand inside JSON strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def _split(line: str) -> tuple[str, str]:
    name, *rest = line.split(maxsplit=1)
    return name, rest[0] if rest else ""


def _twice(path: Path, number: int, name: str) -> DataError:
    return DataError(f"{path}:{number}: id {name!r} again", "each id once", "remove one of the lines")
