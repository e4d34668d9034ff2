r"""What may be said in place of an entry, as a tree of choices: words, repetitions, references to other classes.

Two notations are read here. A template is an entry's text with class references, ``<contact>'s <device>``. A
pattern is a small regular expression over words::

    flat \d{1,3} (upper|lower)? floor

``\d`` is a spoken digit, ``|`` separates alternatives, ``?`` makes the word, group, digit or reference before it
optional, ``{m}`` and ``{m,n}`` repeat it. Each choice is uniform: alternatives share their probability evenly, a
repetition its counts, ``\d`` the ten digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from lm.errors import EntityListError
from lm.tagged_text import CLASS_NAME
from lm.tokenizer import normalise

REFERENCE = re.compile(rf"<({CLASS_NAME.pattern})>")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MOST_REPEATS = 100
DEEPEST = 20


@dataclass(frozen=True, eq=False)
class Word:
    """What is said and how it is written; it joins a digit before it without a blank if ``joins``."""

    said: str
    written: str
    joins: bool = False


@dataclass(frozen=True, eq=False)
class Ref:
    """An entry of another class, with letters that touch it: ``'s`` is ``after`` in ``<contact>'s``."""

    class_name: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, eq=False)
class Cat:
    """One part after another."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, eq=False)
class Alt:
    """One of several parts, chosen in proportion to ``weights``."""

    choices: tuple[Part, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """``low`` to ``high`` times the same part, every count equally likely."""

    part: Part
    low: int
    high: int


Part: TypeAlias = Word | Ref | Cat | Alt | Repeat


def one_of(*choices: Part) -> Part:
    """Equally likely alternatives."""
    return choices[0] if len(choices) == 1 else Alt(choices, (1.0,) * len(choices))


def digit(before: str = "") -> Part:
    """A spoken digit; zero is ``zero`` or ``oh``. It is written behind ``before``."""
    zero = one_of(Word("zero", f"{before}0", True), Word("oh", f"{before}0", True))
    return one_of(zero, *(Word(said, f"{before}{n}", True) for n, said in enumerate(DIGITS) if n))


_DIGIT = digit()


def words_of(part: Part) -> Iterator[Word]:
    """Every word in a part, those of shared parts once."""
    return (leaf for leaf in _leaves(part) if isinstance(leaf, Word))


def references_of(part: Part) -> Iterator[Ref]:
    """Every class reference in a part, in order, those of shared parts once."""
    return (leaf for leaf in _leaves(part) if isinstance(leaf, Ref))


def _leaves(part: Part) -> Iterator[Word | Ref]:
    seen: set[int] = set()
    stack = [part]
    while stack:
        here = stack.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, (Word, Ref)):
            yield here
        else:
            stack += reversed(_below(here))


def _below(part: Cat | Alt | Repeat) -> Sequence[Part]:
    if isinstance(part, Repeat):
        return (part.part,)
    return part.parts if isinstance(part, Cat) else part.choices


def may_be_silent(part: Part) -> bool:
    """Whether a part can be said as nothing."""
    if isinstance(part, Word):
        return not normalise(part.said, "lower")
    if isinstance(part, Ref):
        return False
    if isinstance(part, Repeat):
        return part.low == 0 or may_be_silent(part.part)
    inner = map(may_be_silent, _below(part))
    return all(inner) if isinstance(part, Cat) else any(inner)


def affixed(part: Part, before: str, after: str) -> Part:
    """A part with letters touching its first and its last word as they are said; what is written stays.

    Raises:
        EntityListError: it may begin or end with something optional, so there is no one word to touch.
    """
    if not before and not after:
        return part
    if isinstance(part, Word) and not may_be_silent(part):
        return Word(before + part.said + after, part.written, part.joins)
    if isinstance(part, Ref):
        return Ref(part.class_name, before + part.before, part.after + after)
    if isinstance(part, Alt):
        return Alt(tuple(affixed(choice, before, after) for choice in part.choices), part.weights)
    if may_be_silent(part):
        raise EntityListError(
            f"{before or after!r} touches a pattern that may begin or end with something optional",
            "a pattern whose first and last words are always said",
            "put a blank between, or write the alternatives out",
        )
    if isinstance(part, Repeat):
        once = affixed(part.part, before, after)
        if part.high == 1:
            return once
        return _grown(part, before, after)
    assert isinstance(part, Cat)
    first, *rest = part.parts
    if not rest:
        return affixed(first, before, after)
    return Cat((affixed(first, before, ""), *rest[:-1], affixed(rest[-1], "", after)))


def _grown(part: Repeat, before: str, after: str) -> Part:
    """A repetition whose first and last times differ from the others, with the same counts."""
    first, last = affixed(part.part, before, ""), affixed(part.part, "", after)
    counts: list[Part] = []
    for count in range(part.low, part.high + 1):
        if count == 1:
            counts.append(affixed(part.part, before, after))
        else:
            counts.append(Cat((first, *[part.part] * (count - 2), last)))
    return one_of(*counts)


@lru_cache(maxsize=4096)
def parse_template(text: str) -> Cat:
    """Read an entry with class references; everything else in it is words."""
    parts: list[Part] = []
    for chunk in text.split():
        found = list(REFERENCE.finditer(chunk))
        if not found:
            parts.append(Word(chunk, chunk))
            continue
        if len(found) > 1:
            raise EntityListError(
                f"{found[0][0]} and {found[1][0]} touch at character {text.index(chunk) + 1} of {text!r}",
                "a blank between two classes",
                "put them apart",
            )
        parts += _touched(chunk[: found[0].start()], found[0][1], chunk[found[0].end() :])
    return Cat(tuple(parts))


def _touched(left: str, name: str, right: str) -> list[Part]:
    """A reference with what touches it; letters that normalisation sets apart are words of their own."""
    # A letter in place of the entity shows what of the text stays with it.
    *words_before, before = normalise(f"{left}x", "lower").split()
    after, *words_behind = normalise(f"x{right}", "lower").split()
    middle = Ref(name, _as_typed(left, before[:-1]), _as_typed(right, after[1:]))
    return [*(Word(w, w) for w in words_before), middle, *(Word(w, w) for w in words_behind)]


def _as_typed(typed: str, normal: str) -> str:
    return typed if typed.lower() == normal else normal


@lru_cache(maxsize=4096)
def parse_pattern(text: str) -> Part:
    """Read a pattern; what is wrong with it is an EntityListError that says where."""
    parser = _Parser(text)
    part = parser.alternatives(0)
    if parser.at < len(text):
        raise parser.error("')' closes nothing", "as many '(' as ')'")
    if may_be_silent(part):
        raise parser.error("it can be said as nothing", "at least one word that is always said", 0)
    return part


class _Parser:
    """Recursive descent over a pattern."""

    _TOKEN = re.compile(
        rf"(?P<digit>\\d)|(?P<ref><{CLASS_NAME.pattern}>(?P<after>'\w+)?)|(?P<word>[^\s()|?{{}}<>\\]+)"
    )
    _COUNT = re.compile(r"\?|\{(\d+)(?:,(\d+))?\}")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def alternatives(self, depth: int) -> Part:
        """Sequences separated by ``|``, up to the end or to a closing bracket."""
        if depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} brackets inside each other", "fewer")
        choices = [self._sequence(depth)]
        while self._peek() == "|":
            self.at += 1
            choices.append(self._sequence(depth))
        return one_of(*choices)

    def error(self, problem: str, expected: str, at: int | None = None) -> EntityListError:
        """The error for a place in the pattern, by default the present one."""
        where = (self.at if at is None else at) + 1
        return EntityListError(
            f"pattern {self.text!r}, character {where}: {problem}", expected, "correct the pattern"
        )

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _sequence(self, depth: int) -> Part:
        parts: list[Part] = []
        apart = True
        while True:
            while self._peek().isspace():
                self.at, apart = self.at + 1, True
            if self._peek() in ("", "|", ")"):
                break
            start = self.at
            part = self._atom(depth)
            is_word = isinstance(part, (Word, Ref))
            if parts and not apart and (is_word or isinstance(parts[-1], (Word, Ref))):
                raise self.error("a word touches what is before it", "a blank between them", start)
            parts.append(self._repeated(part))
            apart = False
        if not parts:
            raise self.error("an alternative without words", "words, or '?' for what may be left out")
        return parts[0] if len(parts) == 1 else Cat(tuple(parts))

    def _atom(self, depth: int) -> Part:
        start = self.at
        if self._peek() == "(":
            self.at += 1
            part = self.alternatives(depth + 1)
            if self._peek() != ")":
                raise self.error("'(' is never closed", "as many '(' as ')'", start)
            self.at += 1
            return part
        found = self._TOKEN.match(self.text, self.at)
        if not found:
            raise self.error(
                f"{self._peek()!r} stands for nothing here", r"words, \d, <class>, ( | ) ? {m,n}"
            )
        self.at = found.end()
        if found["digit"]:
            return _DIGIT
        if found["ref"]:
            return Ref(found["ref"].partition(">")[0][1:], "", found["after"] or "")
        return Word(found["word"], found["word"])

    def _repeated(self, part: Part) -> Part:
        found = self._COUNT.match(self.text, self.at)
        if not found:
            return part
        low, high = int(found[1] or 0), int(found[2] or found[1] or 1)
        if not low <= high <= MOST_REPEATS or high == 0:
            raise self.error(f"repetition {found[0]}", f"{{m,n}} with m <= n <= {MOST_REPEATS} and n > 0")
        self.at = found.end()
        if self._COUNT.match(self.text, self.at):
            raise self.error("a repetition of a repetition", "brackets around the first")
        return Repeat(part, low, high)
