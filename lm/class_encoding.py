"""Spoken forms of a class in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lm.entries import EntityClass
from lm.patterns import REFERENCE
from lm.token_trees import Floats, Ints, Sequences
from lm.tokenizer import Tokenizer

Bools = npt.NDArray[np.bool_]
CHUNK = 4096  # forms encoded at once: the lists that SentencePiece returns are large


@dataclass(frozen=True, eq=False)
class ClassGraph:
    """A class whose entries are not all listed: M nodes, each with at most one arc a token; node 0 is the root.

    Targets are greater than sources. What may follow a node, END included, sums to one.
    """

    source: Ints
    """``(A,)``, rising with ``token``."""
    token: Ints
    """``(A,)``."""
    target: Ints
    """``(A,)``."""
    arc_logp: Floats
    """``(A,)`` log P(token | node)."""
    end_logp: Floats
    """``(M,)`` log P(END | node)."""
    on_logp: Floats
    """``(M,)`` log P(not END | node)."""


@dataclass(frozen=True, eq=False)
class EncodedClass:
    """Token sequences of one class, S in all, one for each encodable spoken form.

    ``index`` is the class's index in the tokenizer; sequence s is ``tokens[offsets[s]:offsets[s + 1]]``,
    ``offsets`` ``(S + 1,)``; ``entry`` ``(S,)`` is the entry's position in the canonical class; ``weight``
    ``(S,)`` its weight divided evenly among its encodable forms. Where patterns, numbers or references to
    other classes are among the entries, ``graph`` holds all entries, and the sequences only the plain ones.
    """

    name: str
    index: int
    tokens: Ints
    offsets: Ints
    entry: Ints
    weight: Floats
    cost: float = 0.0
    graph: ClassGraph | None = None

    @property
    def sequences(self) -> Sequences:
        """The sequences alone."""
        return Sequences(self.tokens, self.offsets, self.entry, self.weight)


@dataclass(frozen=True, eq=False)
class Forms:
    """Every spoken form of a class, all in a row: F forms.

    ``entry`` ``(F,)`` is the position of a form's entry; ``composite`` ``(F,)`` says that a form is a pattern,
    a number class, or names other classes.
    """

    texts: list[str]
    entry: Ints
    composite: Bools


def forms_of(kind: EntityClass) -> Forms:
    """The spoken forms of a class."""
    counts = [len(entry.spoken) for entry in kind.entries]
    texts = [form for entry in kind.entries for form in entry.spoken]
    owner = np.repeat(np.arange(len(counts)), counts)
    families = np.array([entry.kind != "words" for entry in kind.entries], dtype=bool)
    composite = families[owner]
    # One search over all of them: long lists rarely hold a reference.
    if REFERENCE.search("\n".join(texts)):
        composite |= np.array([bool(REFERENCE.search(text)) for text in texts])
    return Forms(texts, owner, composite)


def encode_forms(forms: Sequence[str], tokenizer: Tokenizer) -> tuple[Ints, Ints, Bools]:
    """All tokens in a row, the number of tokens of each form, and whether it encodes."""
    parts = [tokenizer.encode_flat(forms[at : at + CHUNK]) for at in range(0, len(forms), CHUNK)]
    tokens = np.concatenate([np.empty(0, dtype=np.int64), *(part[0] for part in parts)])
    lengths = np.concatenate([np.empty(0, dtype=np.int64), *(part[1] for part in parts)])
    encodable = lengths > 0
    encodable[np.repeat(np.arange(len(forms)), lengths)[tokens < 0]] = False
    return tokens, lengths, encodable


def select(tokens: Ints, lengths: Ints, kept: Bools, entry: Ints, weight: Floats) -> Sequences:
    """The forms that are kept; ``entry`` ``(F,)`` and ``weight`` ``(F,)`` are those of all forms."""
    offsets = np.concatenate(([0], np.cumsum(lengths[kept])))
    return Sequences(tokens[np.repeat(kept, lengths)], offsets, entry[kept], weight[kept])


def shares(kind: EntityClass, entry: Ints, kept: Bools) -> Floats:
    """``(F,)`` weight of each form: that of its entry, divided evenly among the forms that are kept."""
    weight = np.array([e.weight for e in kind.entries], dtype=np.float64)
    share: Floats = weight / np.maximum(np.bincount(entry[kept], minlength=len(kind.entries)), 1)
    return share[entry]


def repeated(forms: Forms, tokenizer: Tokenizer) -> Bools:
    """Forms that sound like an earlier form of the same entry (``John`` and ``JOHN``)."""
    found = np.zeros(len(forms.texts), dtype=bool)
    several = np.flatnonzero((np.bincount(forms.entry)[forms.entry] > 1) & ~forms.composite)
    seen: set[tuple[int, str]] = set()
    for form in several.tolist():
        key = int(forms.entry[form]), tokenizer.normalise(forms.texts[form])
        found[form] = key in seen
        seen.add(key)
    return found
