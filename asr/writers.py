"""Transcripts as files: one small class a format, every file written whole or not at all."""

from __future__ import annotations

import difflib
import errno
import html
import json
import math
import os
import textwrap
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from decoding.result import EntitySpan, Hypothesis, Transcript, Word
from lm.errors import ConfigError, DataError


class Format(Protocol):
    """How one transcript looks in a file."""

    def render(self, transcript: Transcript) -> str:
        """The whole content of the file."""
        ...


class Txt:
    """The text on one line."""

    def render(self, transcript: Transcript) -> str:
        """The text and a line end."""
        return transcript.text + "\n"


class Json:
    """Everything: text, written form, words, entities, and the n-best list with the score of each part."""

    def render(self, transcript: Transcript) -> str:
        """An object on many lines."""
        return json.dumps(to_dict(transcript), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


class Jsonl:
    """What ``json`` holds on one line, so that files can be joined by ``cat``."""

    def render(self, transcript: Transcript) -> str:
        """An object on one line."""
        return json.dumps(to_dict(transcript), ensure_ascii=False, allow_nan=False) + "\n"


class Ctm:
    """NIST CTM: file, channel 1, start, duration, word, confidence; times in seconds.

    Starts never decrease, as scoring tools demand. Blanks in the id become ``_``: they split columns.
    """

    def render(self, transcript: Transcript) -> str:
        """One line a word; DataError where there are words but no times."""
        if transcript.text and not transcript.words:
            raise _no_times(transcript, "ctm")
        name = "_".join(transcript.id.split())
        return "".join(
            f"{name} 1 {word.start_s:.3f} {word.end_s - word.start_s:.3f} {word.text} {word.confidence:.3f}\n"
            for word in _in_order(transcript.words)
        )


class Srt:
    """SubRip subtitles."""

    def render(self, transcript: Transcript) -> str:
        """Numbered cues with an empty line between them."""
        return "\n".join(
            f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{cue.text}\n"
            for number, cue in enumerate(_cues(transcript), start=1)
        )


class Vtt:
    """WebVTT subtitles."""

    def render(self, transcript: Transcript) -> str:
        """The header and cues with an empty line between them."""
        blocks = ["WEBVTT\n"]
        for cue in _cues(transcript):
            text = html.escape(cue.text, quote=False)
            blocks.append(f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n")
        return "\n".join(blocks)


class Stm:
    """NIST STM: file, channel 1, speaker, start, end, text; what sclite takes for a reference.

    One segment a recording. Blanks in the id become ``_``: they split columns.
    """

    def render(self, transcript: Transcript) -> str:
        """One line; DataError where the recording's length is not known."""
        if not math.isfinite(transcript.duration_s):
            raise _no_times(transcript, "stm")
        name = "_".join(transcript.id.split())
        return f"{name} 1 unknown 0.000 {transcript.duration_s:.3f} {transcript.text}".rstrip() + "\n"


class TextGrid:
    """Praat: an interval tier of words, and one of entities in their written form."""

    def render(self, transcript: Transcript) -> str:
        """The long text format, in which the intervals of a tier leave no gap; DataError without times."""
        if transcript.text and not transcript.words:
            raise _no_times(transcript, "textgrid")
        words = list(_in_order(transcript.words))
        ends = [transcript.duration_s, *(word.end_s for word in words[-1:])]
        length_s = max((end for end in ends if math.isfinite(end)), default=0.0)
        spans = [
            (words[span.start].start_s, words[span.end - 1].end_s, span.written)
            for span in transcript.entities
        ]
        tiers = {
            "words": [(word.start_s, word.end_s, word.text) for word in words],
            "entities": sorted(spans),
        }
        head = ['File type = "ooTextFile"', 'Object class = "TextGrid"', ""]
        head += ["xmin = 0", f"xmax = {length_s:.3f}", "tiers? <exists>", f"size = {len(tiers)}", "item []:"]
        body = [
            line
            for number, (name, marks) in enumerate(tiers.items(), start=1)
            for line in (f"    item [{number}]:", *_tier(name, marks, length_s))
        ]
        return "\n".join(head + body) + "\n"


def _tier(name: str, marks: Sequence[tuple[float, float, str]], length_s: float) -> Iterator[str]:
    """Lines of an interval tier."""
    intervals, now = [], 0.0
    held: list[
        str
    ] = []  # words that their neighbours leave no time, which Praat cannot show, go with the next
    for start_s, end_s, text in marks:
        held.append(text)
        if end_s <= max(now, start_s):
            continue
        if start_s > now:
            intervals.append((now, start_s, ""))
        intervals.append((max(now, start_s), end_s, " ".join(held)))
        now, held = end_s, []
    if now < length_s:
        intervals.append((now, length_s, " ".join(held)))
    elif held and intervals:
        intervals[-1] = (*intervals[-1][:2], " ".join([intervals[-1][2], *held]))
    yield '        class = "IntervalTier"'
    yield f'        name = "{name}"'
    yield "        xmin = 0"
    yield f"        xmax = {length_s:.3f}"
    yield f"        intervals: size = {len(intervals)}"
    for number, (start_s, end_s, text) in enumerate(intervals, start=1):
        quoted = text.replace('"', '""')
        yield f"        intervals [{number}]:"
        yield f"            xmin = {start_s:.3f}"
        yield f"            xmax = {end_s:.3f}"
        yield f'            text = "{quoted}"'


FORMATS: dict[str, Format] = {
    "txt": Txt(),
    "json": Json(),
    "jsonl": Jsonl(),
    "ctm": Ctm(),
    "srt": Srt(),
    "vtt": Vtt(),
    "stm": Stm(),
    "textgrid": TextGrid(),
}


def write(transcript: Transcript, format: str, folder: Path) -> Path:
    """Write ``<folder>/<id>.<format>`` and return its path; folders are made as needed.

    The file appears complete or not at all; one that was there is replaced.

    Raises:
        ConfigError: no such format.
        OSError: the file cannot be written, or the id leads out of ``folder``.
    """
    content = _format(format).render(transcript)
    parts = transcript.id.split("/")
    if not transcript.id or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, "an id that names no file inside the folder", transcript.id)
    path = folder / f"{transcript.id}.{format}"
    write_whole(path, content)
    return path


def write_joined(transcripts: Iterable[Transcript], format: str, path: Path) -> Path:
    """Write many transcripts into one file, of a format whose files can be joined: txt, jsonl, ctm or stm."""
    kind = _format(format)
    if not isinstance(kind, (Txt, Jsonl, Ctm, Stm)):
        raise ConfigError(f"format {format!r} in one file", "txt, jsonl, ctm or stm", "write one file each")
    write_whole(path, "".join(kind.render(transcript) for transcript in transcripts))
    return path


def write_whole(path: Path, content: str) -> None:
    """Write a text file beside its place and move it there, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A short name of its own: a long file name plus a suffix might be too long for the file system.
    fresh = path.parent / f".{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        fresh.write_text(content, encoding="utf-8", newline="\n")
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def to_dict(transcript: Transcript) -> dict[str, Any]:
    """A transcript as plain values; figures that are not finite become None, which JSON can hold."""
    values: dict[str, Any] = _finite({**asdict(transcript), "written": transcript.written})
    return values


def from_dict(values: dict[str, Any]) -> Transcript:
    """A transcript from what ``to_dict`` made; None where a number belongs becomes NaN.

    A line of a batch's ``results.jsonl``, which has neither words nor n-best list, is a transcript too.
    """
    return Transcript(
        id=str(values["id"]),
        text=" ".join(str(values["text"]).split()),
        duration_s=_number(values.get("duration_s", values.get("seconds"))),
        words=_words(values),
        entities=_entities(values),
        hypotheses=tuple(
            Hypothesis(
                h["text"],
                _number(h["score"]),
                {k: _number(v) for k, v in h["scores"].items()},
                _words(h),
                _entities(h),
            )
            for h in values.get("hypotheses", ())
        ),
    )


def _format(name: str) -> Format:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)
        raise ConfigError(f"format {name!r}", f"one of {', '.join(FORMATS)}", f"did you mean {near[0]!r}?")
    return FORMATS[name]


@dataclass(frozen=True)
class _Cue:
    start_s: float
    end_s: float
    text: str


_LINE, _LINES, _LONGEST_S, _PAUSE_S = 42, 2, 6.0, 0.8
"""Subtitle habits: characters a line, lines a cue, seconds a cue, and the silence that starts a new one."""


def _cues(transcript: Transcript) -> Iterator[_Cue]:
    """Cues of a few words; without word times one cue as long as the recording."""
    if not transcript.words:
        if transcript.text and not math.isfinite(transcript.duration_s):
            raise _no_times(transcript, "subtitles")
        if transcript.text:
            yield _cue(transcript.text, 0.0, transcript.duration_s)
        return
    waiting: list[Word] = []
    for word in _in_order(transcript.words):
        text = " ".join([*(w.text for w in waiting), word.text])
        if waiting and (
            len(textwrap.wrap(text, _LINE)) > _LINES
            or word.end_s - waiting[0].start_s > _LONGEST_S
            or word.start_s - waiting[-1].end_s > _PAUSE_S
        ):
            yield _cue(" ".join(w.text for w in waiting), waiting[0].start_s, waiting[-1].end_s)
            waiting = []
        waiting.append(word)
    yield _cue(" ".join(w.text for w in waiting), waiting[0].start_s, waiting[-1].end_s)


def _cue(text: str, start_s: float, end_s: float) -> _Cue:
    # "-->" inside a cue ends it for a parser; no spoken word is spelt so.
    return _Cue(start_s, end_s, "\n".join(textwrap.wrap(text.replace("-->", "->"), _LINE)))


def _no_times(transcript: Transcript, what: str) -> DataError:
    return DataError(f"transcript {transcript.id!r} has no times", f"times for {what}", "choose txt or json")


def _in_order(words: Sequence[Word]) -> Iterator[Word]:
    """The words with times in whole milliseconds that never run backwards, overlap or lie before 0.

    Word times are estimates to a frame or two; players and scoring tools refuse those that cross. A
    confidence that is not known becomes 0.
    """
    now = 0.0
    for number, word in enumerate(words):
        start = max(now, round(word.start_s, 3))
        end = max(start, round(word.end_s, 3))
        if number + 1 < len(words):
            end = min(end, max(start, round(words[number + 1].start_s, 3)))
        confidence = min(max(word.confidence, 0.0), 1.0) if math.isfinite(word.confidence) else 0.0
        yield Word(word.text, start, end, confidence)
        now = end


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _words(values: dict[str, Any]) -> tuple[Word, ...]:
    return tuple(
        Word(w["text"], _number(w["start_s"]), _number(w["end_s"]), _number(w["confidence"]))
        for w in values.get("words", ())
    )


def _entities(values: dict[str, Any]) -> tuple[EntitySpan, ...]:
    return tuple(
        EntitySpan(
            class_name=e["class_name"],
            text=e["text"],
            written=e["written"],
            id=e["id"],
            start=int(e["start"]),
            end=int(e["end"]),
            start_s=_number(e["start_s"]),
            end_s=_number(e["end_s"]),
            confidence=_number(e["confidence"]),
        )
        for e in values.get("entities", ())
    )
