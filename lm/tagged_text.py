"""The one syntax for class-tagged text: ``call <contact>john smith</contact> now``.

Spans do not nest, tags stand between words, and ``<`` and ``>`` mean nothing but tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lm.errors import DataError

CLASS_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAG = re.compile(r"<(?P<closing>/?)(?P<name>[^<>]*)>")
_EXAMPLE = "text such as 'call <contact>john smith</contact> now'"


@dataclass(frozen=True)
class Segment:
    """Words with single blanks between them, plain (``class_name`` None) or one entity of a class."""

    text: str
    class_name: str | None = None

    def __post_init__(self) -> None:
        if not self.text or self.text != " ".join(self.text.split()) or _angle(self.text) >= 0:
            raise DataError(
                f"segment text {self.text!r}",
                "one or more words with single blanks between them and no '<' or '>'",
                "build tagged text with lm.tagged_text.parse",
            )
        if self.class_name is not None and not CLASS_NAME.fullmatch(self.class_name):
            raise DataError(f"class name {self.class_name!r}", "a name like 'contact'", "rename the class")


@dataclass(frozen=True)
class TaggedText:
    """A text as plain segments and entities in order; adjacent plain segments are joined into one."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        joined: list[Segment] = []
        for segment in self.segments:
            if joined and segment.class_name is None and joined[-1].class_name is None:
                joined[-1] = Segment(f"{joined[-1].text} {segment.text}")
            else:
                joined.append(segment)
        object.__setattr__(self, "segments", tuple(joined))

    @property
    def surface(self) -> str:
        """The words without tags, one blank between them."""
        return " ".join(segment.text for segment in self.segments)

    @property
    def entities(self) -> list[tuple[str, str, int, int]]:
        """``(class_name, text, start_word, end_word)`` of each entity.

        Positions count the words of ``surface``; the end is exclusive.
        """
        found = []
        position = 0
        for segment in self.segments:
            end = position + segment.text.count(" ") + 1
            if segment.class_name is not None:
                found.append((segment.class_name, segment.text, position, end))
            position = end
        return found

    @property
    def pattern(self) -> str:
        """The text with each entity replaced by its class tag: ``call <contact> now``."""
        return " ".join(s.text if s.class_name is None else f"<{s.class_name}>" for s in self.segments)


def parse(text: str) -> TaggedText:
    """Read tagged text; malformed text is a DataError with the text and the position (from 1)."""
    segments: list[Segment] = []
    open_tag: re.Match[str] | None = None
    position = 0
    for tag in _TAG.finditer(text):
        name = tag["name"]
        words = _words(text, position, tag.start())
        if not CLASS_NAME.fullmatch(name):
            raise _malformed(text, tag.start(), f"tag {tag[0]!r} is not a class name")
        if open_tag is None:
            if tag["closing"]:
                raise _malformed(text, tag.start(), f"{tag[0]!r} closes nothing")
            _check_word_ends(text, tag.start())
            if words:
                segments.append(Segment(words))
            open_tag = tag
        else:
            if not tag["closing"]:
                raise _malformed(text, tag.start(), f"{tag[0]!r} inside {open_tag[0]!r}")
            if name != open_tag["name"]:
                raise _malformed(text, tag.start(), f"{open_tag[0]!r} closed by {tag[0]!r}")
            if not words:
                raise _malformed(text, open_tag.start(), f"empty span {open_tag[0] + tag[0]!r}")
            _check_word_ends(text, tag.end())
            segments.append(Segment(words, name))
            open_tag = None
        position = tag.end()
    rest = _words(text, position, len(text))
    if open_tag is not None:
        raise _malformed(text, open_tag.start(), f"{open_tag[0]!r} is never closed")
    if rest:
        segments.append(Segment(rest))
    return TaggedText(tuple(segments))


def strip(text: str) -> str:
    """The surface words of tagged text, without its tags."""
    return parse(text).surface


def render(tagged: TaggedText) -> str:
    """Write tagged text; ``parse(render(tagged)) == tagged``."""
    return " ".join(
        s.text if s.class_name is None else f"<{s.class_name}>{s.text}</{s.class_name}>"
        for s in tagged.segments
    )


def _angle(text: str) -> int:
    return min((at for at in (text.find("<"), text.find(">")) if at >= 0), default=-1)


def _words(text: str, start: int, end: int) -> str:
    part = text[start:end]
    at = _angle(part)
    if at >= 0:
        raise _malformed(text, start + at, f"a lone {part[at]!r}")
    return " ".join(part.split())


def _check_word_ends(text: str, at: int) -> None:
    # Joining 'john' and 's' by a blank would change the words without anyone noticing.
    before, after = re.sub(r"<[^<>]*>", "", text[:at])[-1:], re.sub(r"<[^<>]*>", "", text[at:])[:1]
    if _is_word_character(before) and _is_word_character(after):
        raise _malformed(text, at, "a tag inside a word")


def _is_word_character(character: str) -> bool:
    return character.isalnum() or character in ("'", "\u2019", "_")


def _malformed(text: str, at: int, problem: str) -> DataError:
    return DataError(
        f"{problem} at character {at + 1} of {text!r}",
        _EXAMPLE,
        "mend the tags ('<' and '>' mark nothing else)",
    )
