"""From what was said back to the entry of a class and its written form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lm.entries import EntityClass, EntityEntry
from lm.patterns import REFERENCE, Alt, Cat, Part, Ref, Repeat, Word, affixed
from lm.tokenizer import Tokenizer


class Reading(NamedTuple):
    """An entity as it is written, and the entry that says so."""

    written: str
    entry: EntityEntry


class _Piece(NamedTuple):
    """Written words of a part; ``of`` is the class they are an entry of, ``touching`` what touched them."""

    text: str
    joins: bool = False
    of: str | None = None
    touching: tuple[str, str] = ("", "")


class _Found(NamedTuple):
    """A way to read words: its log probability, what is written, and of a class the entry."""

    logp: float
    pieces: tuple[_Piece, ...]
    entry: EntityEntry | None = None


_Ends = dict[int, _Found]
"""The best reading up to each position."""


class Reader:
    """Reads the words of entities.

    Args:
        classes: the canonical classes.
        tokenizer: normalises words.
    """

    def __init__(self, classes: Mapping[str, EntityClass], tokenizer: Tokenizer) -> None:
        self._classes = classes
        self._tokenizer = tokenizer
        self._plain: dict[tuple[str, str, str], _Plain] = {}
        self._composite: dict[tuple[str, str, str], list[tuple[float, EntityEntry, Part]]] = {}

    def read(self, name: str, text: str) -> Reading | None:
        """The most probable entry of a class that sounds like ``text``; None if none does."""
        words = tuple(self._tokenizer.normalise(text).split())
        found = _Match(self, words).of_class(Ref(name), 0).get(len(words))
        if found is None or found.entry is None:
            return None
        return Reading(found.pieces[0].text, found.entry)

    def words(self, said: str) -> tuple[str, ...]:
        """The words of a text as they are compared."""
        return tuple(self._tokenizer.normalise(said).split())

    def plain(self, ref: Ref) -> _Plain:
        """The entries of a class that are only words, with the letters that touch them, by their words."""
        key = ref.class_name, ref.before, ref.after
        if key not in self._plain:
            self._plain[key] = self._index(ref)
        return self._plain[key]

    def composite(self, ref: Ref) -> list[tuple[float, EntityEntry, Part]]:
        """The other entries of a class: log share, entry, part."""
        key = ref.class_name, ref.before, ref.after
        if key not in self._composite:
            kind = self._classes[ref.class_name]
            total = _total(kind)
            self._composite[key] = [
                (_share(entry, total), entry, affixed(part, ref.before, ref.after))
                for entry in kind.entries
                for form in entry.spoken
                if (part := entry.part(form)) is not None
            ]
        return self._composite[key]

    def _index(self, ref: Ref) -> _Plain:
        kind = self._classes[ref.class_name]
        total = _total(kind)
        index: dict[tuple[str, ...], tuple[float, EntityEntry]] = {}
        for entry in kind.entries:
            share = _share(entry, total)
            for form in entry.spoken:
                if entry.part(form) is None:
                    words = self.words(f"{ref.before}{form}{ref.after}")
                    if words not in index or share > index[words][0]:
                        index[words] = share, entry
        return _Plain(index, sorted({len(words) for words in index}))


@dataclass(frozen=True)
class _Plain:
    """Entries by their words, and the numbers of words that occur."""

    index: Mapping[tuple[str, ...], tuple[float, EntityEntry]]
    lengths: list[int]


def _total(kind: EntityClass) -> float:
    return math.fsum(entry.weight for entry in kind.entries)


def _share(entry: EntityEntry, total: float) -> float:
    return math.log(entry.weight) - math.log(total) - math.log(len(entry.spoken))


class _Match:
    """Readings of one sequence of words; each part is read at each position once."""

    def __init__(self, reader: Reader, words: tuple[str, ...]) -> None:
        self._reader = reader
        self._words = words
        self._done: dict[tuple[int, int], _Ends] = {}
        self._classes: dict[tuple[str, str, str, int], _Ends] = {}

    def of_class(self, ref: Ref, at: int) -> _Ends:
        """Readings of an entry of a class from word ``at`` on."""
        key = ref.class_name, ref.before, ref.after, at
        if key not in self._classes:
            self._classes[key] = self._of_class(ref, at)
        return self._classes[key]

    def _of_class(self, ref: Ref, at: int) -> _Ends:
        found: _Ends = {}
        plain = self._reader.plain(ref)
        for length in plain.lengths:
            entry = (
                plain.index.get(self._words[at : at + length]) if at + length <= len(self._words) else None
            )
            if entry is not None and length:
                _keep(found, at + length, _named(ref, entry[0], entry[1].text, entry[1]))
        for share, each, part in self._reader.composite(ref):
            for end, reading in self._of(part, at).items():
                written = _written(each, reading.pieces, ref)
                _keep(found, end, _named(ref, share + reading.logp, written, each))
        return found

    def _of(self, part: Part, at: int) -> _Ends:
        if isinstance(part, Ref):
            return self.of_class(part, at)
        if isinstance(part, Word):
            words = self._reader.words(part.said)
            matches = self._words[at : at + len(words)] == words
            return {at + len(words): _Found(0.0, (_Piece(part.written, part.joins),))} if matches else {}
        key = id(part), at
        if key not in self._done:
            self._done[key] = self._of_choice(part, at)
        return self._done[key]

    def _of_choice(self, part: Cat | Alt | Repeat, at: int) -> _Ends:
        start = {at: _Found(0.0, ())}
        if isinstance(part, Cat):
            for each in part.parts:
                start = self._follow(start, each)
            return start
        found: _Ends = {}
        if isinstance(part, Alt):
            total = sum(part.weights)
            for choice, weight in zip(part.choices, part.weights, strict=True):
                _add(found, self._of(choice, at), math.log(weight / total))
            return found
        share = -math.log(part.high - part.low + 1)
        for count in range(part.high + 1):
            if count >= part.low:
                _add(found, start, share)
            start = self._follow(start, part.part)
        return found

    def _follow(self, ends: _Ends, part: Part) -> _Ends:
        found: _Ends = {}
        for at, before in ends.items():
            for end, reading in self._of(part, at).items():
                _keep(found, end, _Found(before.logp + reading.logp, before.pieces + reading.pieces))
        return found


def _named(ref: Ref, logp: float, written: str, entry: EntityEntry) -> _Found:
    return _Found(logp, (_Piece(written, False, ref.class_name, (ref.before, ref.after)),), entry)


def _keep(found: _Ends, end: int, reading: _Found) -> None:
    if end not in found or reading.logp > found[end].logp:
        found[end] = reading


def _add(found: _Ends, more: _Ends, logp: float) -> None:
    for end, reading in more.items():
        _keep(found, end, _Found(reading.logp + logp, reading.pieces))


def _written(entry: EntityEntry, pieces: Sequence[_Piece], ref: Ref) -> str:
    """A template with its classes filled in, or the pieces of a pattern one after another."""
    if entry.kind == "words":
        names: dict[str, list[str]] = {}
        for piece in pieces:
            if piece.of is not None:
                names.setdefault(piece.of, []).append(piece.text)
        return REFERENCE.sub(lambda found: names[found[1]].pop(0), entry.text)
    text = ""
    for place, piece in enumerate(pieces):
        before, after = piece.touching
        # What touches the whole is written by whoever put it there.
        before = before.removeprefix(ref.before) if place == 0 else before
        after = after.removesuffix(ref.after) if place == len(pieces) - 1 else after
        if piece.text:
            blank = " " if text and not (piece.joins and text[-1].isdigit()) else ""
            text += f"{blank}{before}{piece.text}{after}"
    return text
