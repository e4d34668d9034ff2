"""Word and character errors, and the one alignment that every score and report is made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Alignment: TypeAlias = list[tuple[int | None, int | None]]
"""Pairs (reference position, hypothesis position); None left is an insertion, None right a deletion."""

_DIAGONAL, _INSERTION, _DELETION = 0, 1, 2


@dataclass(frozen=True)
class Counts:
    """Errors of one utterance or the sum of many: substitutions, insertions, deletions, reference length."""

    sub: int = 0
    ins: int = 0
    del_: int = 0
    ref: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.sub + other.sub, self.ins + other.ins, self.del_ + other.del_, self.ref + other.ref
        )

    @property
    def errors(self) -> int:
        """All errors together."""
        return self.sub + self.ins + self.del_

    @property
    def rate(self) -> float:
        """Errors over reference length (a fraction, may exceed 1); NaN where the reference is empty."""
        return self.errors / self.ref if self.ref else float("nan")

    def to_dict(self) -> dict[str, int]:
        """The four counts by their usual short names."""
        return {"sub": self.sub, "ins": self.ins, "del": self.del_, "ref": self.ref}


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align two word sequences with the fewest errors and, among those, the most matching words.

    The number of errors is the Levenshtein distance, as in every WER. Ties between a pair of substitutions
    and a match beside a deletion and an insertion matter for entities (``call ann`` heard as ``ann please``
    did recognise ann); they go to the match. Remaining ties prefer diagonal, then insertion, then deletion.
    """
    unit = len(reference) + len(hypothesis) + 1
    return align_weighted(reference, hypothesis, sub=unit + 1, ins=unit, del_=unit)


def align_weighted(
    reference: Sequence[str], hypothesis: Sequence[str], *, sub: int, ins: int, del_: int
) -> Alignment:
    """Align by least cost (match 0), preferring on a tie diagonal, then insertion, then deletion.

    Ties are settled from the end of the utterance backwards, as in the scorer of Le et al. 2021.
    Memory is one byte per reference word times hypothesis word.
    """
    if list(reference) == list(hypothesis):
        return [(i, i) for i in range(len(reference))]
    moves = _moves(reference, hypothesis, sub, ins, del_)
    i, j = len(reference), len(hypothesis)
    backwards: Alignment = []
    while i or j:
        move = moves[i, j]
        if move == _DIAGONAL:
            i, j = i - 1, j - 1
            backwards.append((i, j))
        elif move == _INSERTION:
            j -= 1
            backwards.append((None, j))
        else:
            i -= 1
            backwards.append((i, None))
    return backwards[::-1]


def _moves(
    reference: Sequence[str], hypothesis: Sequence[str], sub: int, ins: int, del_: int
) -> NDArray[np.uint8]:
    """Dynamic programme, one numpy row per reference word; returns the chosen move of every cell."""
    ids: dict[str, int] = {}
    ref = [ids.setdefault(word, len(ids)) for word in reference]
    hyp = np.array([ids.setdefault(word, len(ids)) for word in hypothesis], dtype=np.int64)
    steps = ins * np.arange(len(hyp) + 1, dtype=np.int64)
    moves = np.full((len(ref) + 1, len(hyp) + 1), _DELETION, dtype=np.uint8)
    moves[0] = _INSERTION
    row = steps.copy()
    for i, word in enumerate(ref, start=1):
        diagonal = row[:-1] + np.where(hyp == word, 0, sub)
        best = row + del_
        np.minimum(best[1:], diagonal, out=best[1:])
        # best[j] = min over k <= j of best[k] + ins * (j - k): a running minimum once the slope is removed.
        row = np.minimum.accumulate(best - steps) + steps
        moves[i, 1:][row[1:] == row[:-1] + ins] = _INSERTION
        moves[i, 1:][row[1:] == diagonal] = _DIAGONAL
    return moves


def count(alignment: Alignment, reference: Sequence[str], hypothesis: Sequence[str]) -> Counts:
    """Sum up an alignment."""
    sub = sum(1 for i, j in alignment if i is not None and j is not None and reference[i] != hypothesis[j])
    ins = sum(1 for i, _ in alignment if i is None)
    del_ = sum(1 for _, j in alignment if j is None)
    return Counts(sub, ins, del_, len(reference))


def word_errors(reference: str, hypothesis: str) -> Counts:
    """Errors between two texts, in words split at white space."""
    ref, hyp = reference.split(), hypothesis.split()
    return count(align(ref, hyp), ref, hyp)


def char_errors(reference: str, hypothesis: str) -> Counts:
    """Errors between two texts in characters; one blank between words counts as a character."""
    import kaldialign

    ref, hyp = " ".join(reference.split()), " ".join(hypothesis.split())
    found = kaldialign.edit_distance(ref, hyp)
    return Counts(int(found["sub"]), int(found["ins"]), int(found["del"]), len(ref))


def score_pairs(pairs: Iterable[tuple[str, str]]) -> list[Counts]:
    """Word errors of each (reference, hypothesis) pair, in order."""
    return [word_errors(reference, hypothesis) for reference, hypothesis in pairs]


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of many counts."""
    return sum(counts, Counts())
