"""WER, U-WER and B-WER with biasing lists, by the rules of Le et al. 2021 (arXiv 2104.02194).

B-WER looks only at the rare words of each reference, so a distractor wrongly put into the text costs U-WER,
not B-WER: read the two together, with the precision of list words and the false alarms given here.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asr.scoring.errors import Counts, align_weighted
from lm.errors import DataError


@dataclass(frozen=True)
class BiasingReference:
    """One line of a reference file: the words, the rare ones among them, and the list given to the system."""

    words: tuple[str, ...]
    rare: frozenset[str]
    listed: frozenset[str]


@dataclass(frozen=True)
class BiasingCounts:
    """What one utterance, or many summed, add up to.

    ``biased`` + ``unbiased`` are all errors. ``list_words`` counts hypothesis words that stand in the biasing
    list, ``false_alarms`` those of them that are not aligned with the same reference word;
    ``plain_false_alarms`` over ``plain_words`` looks only at utterances without any rare word.
    """

    unbiased: Counts = field(default_factory=Counts)
    biased: Counts = field(default_factory=Counts)
    list_words: int = 0
    false_alarms: int = 0
    plain_false_alarms: int = 0
    plain_words: int = 0

    def __add__(self, other: BiasingCounts) -> BiasingCounts:
        return BiasingCounts(
            self.unbiased + other.unbiased,
            self.biased + other.biased,
            self.list_words + other.list_words,
            self.false_alarms + other.false_alarms,
            self.plain_false_alarms + other.plain_false_alarms,
            self.plain_words + other.plain_words,
        )

    @property
    def all(self) -> Counts:
        """All errors over all words: ``.rate`` is the WER (with these alignment costs)."""
        return self.unbiased + self.biased

    @property
    def list_precision(self) -> float:
        """Share of list words in the output that were spoken there; NaN without any."""
        return 1 - self.false_alarms / self.list_words if self.list_words else float("nan")


@dataclass(frozen=True)
class BiasingScore:
    """Counts of every utterance by id, and the ids that had no hypothesis (scored as all deleted)."""

    utterances: dict[str, BiasingCounts]
    missing: tuple[str, ...]

    @property
    def total(self) -> BiasingCounts:
        """The sum over utterances."""
        return sum(self.utterances.values(), BiasingCounts())

    def to_text(self) -> str:
        """The three rates in per cent with their counts, and what over-biasing cost."""
        summed = self.total
        lines = [
            f"{name:6} {100 * c.rate:8.4f} %  ({c.sub} sub, {c.ins} ins, {c.del_} del / {c.ref})"
            for name, c in (("WER", summed.all), ("U-WER", summed.unbiased), ("B-WER", summed.biased))
        ]
        per_thousand = 1000 * summed.plain_false_alarms / summed.plain_words if summed.plain_words else 0.0
        lines.append(
            f"list words: {summed.list_words}, false {summed.false_alarms}, "
            f"false per 1,000 words without rare words {per_thousand:.2f}"
        )
        if self.missing:
            lines.append(f"{len(self.missing)} utterances without hypothesis: {', '.join(self.missing[:5])}")
        return "\n".join(lines)


def score_biasing(references: Mapping[str, BiasingReference], hypotheses: Mapping[str, str]) -> BiasingScore:
    """Score the texts in ``hypotheses`` (by utterance id) against ``references``."""
    if not references:
        raise DataError("no references", "at least one utterance", "check the reference file")
    missing = tuple(name for name in references if name not in hypotheses)
    utterances = {
        name: score_utterance(reference, hypotheses.get(name, "").split())
        for name, reference in references.items()
    }
    return BiasingScore(utterances, missing)


def score_utterance(reference: BiasingReference, hypothesis: list[str]) -> BiasingCounts:
    """Score one utterance.

    Alignment costs: substitution 4, insertion 3, deletion 3. An error on a reference word is biased when
    that word is rare in this reference; an insertion when the inserted word is.
    """
    biased = unbiased = Counts()
    listed = wrong = 0
    for i, j in align_weighted(reference.words, hypothesis, sub=4, ins=3, del_=3):
        spoken = reference.words[i] if i is not None else None
        heard = hypothesis[j] if j is not None else None
        if spoken is None:
            step, word = Counts(ins=1), heard
        else:
            step, word = Counts(int(heard not in (spoken, None)), 0, int(heard is None), 1), spoken
        if word in reference.rare:
            biased += step
        else:
            unbiased += step
        if heard in reference.listed:
            listed += 1
            wrong += heard != spoken
    plain = not reference.rare
    return BiasingCounts(
        unbiased, biased, listed, wrong, wrong if plain else 0, len(reference.words) if plain else 0
    )


def read_references(path: Path) -> dict[str, BiasingReference]:
    """Read ``id, text, JSON rare words, JSON biasing list`` lines (tab-separated, ``.gz`` allowed)."""
    references = {}
    for number, fields in _rows(path, columns=4):
        try:
            rare, listed = json.loads(fields[2]), json.loads(fields[3])
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{number}: {error}", "JSON lists in columns 3 and 4", "mend the line"
            ) from None
        references[fields[0]] = BiasingReference(tuple(fields[1].split()), frozenset(rare), frozenset(listed))
    return references


def read_hypotheses(path: Path) -> dict[str, str]:
    """Read ``id, text`` lines (tab-separated, ``.gz`` allowed)."""
    return {fields[0]: fields[1] for _, fields in _rows(path, columns=2)}


def _rows(path: Path, columns: int) -> list[tuple[int, list[str]]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist", "a tab-separated file", "check the path")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [(n, line.rstrip("\n").split("\t")) for n, line in enumerate(lines, start=1) if line.strip()]
    for number, fields in rows:
        if len(fields) != columns:
            raise DataError(
                f"{path}:{number} has {len(fields)} columns", f"{columns} separated by tabs", "mend the line"
            )
    return rows
