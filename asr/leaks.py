"""Whether figures would be flattered: test speech among what was tuned on, test text in what a model has read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from lm.errors import DataError
from lm.tagged_text import TaggedText, parse
from lm.text_files import read_lines

SHORTEST = 4
"""Words of a sentence that is counted; shorter ones are said again by chance."""
MOST = 0.5
"""Share of known test sentences above which the two texts are taken for one. In a narrow domain a part of the
sentences is said again in all honesty."""


@dataclass(frozen=True)
class Overlap:
    """How many ``sentences`` of a test set (of SHORTEST words or more) stand elsewhere, and one that does."""

    sentences: int
    known: int
    example: str

    @property
    def share(self) -> float:
        """Known ones among all."""
        return self.known / self.sentences if self.sentences else 0.0


def overlap(test: Iterable[TaggedText], lines: Iterable[str]) -> Overlap:
    """Count test sentences that stand word for word among ``lines``, tags and case aside."""
    wanted = [_plain(reference.surface) for reference in test]
    wanted = [text for text in wanted if len(text.split()) >= SHORTEST]
    missing = set(wanted)
    found = set[str]()
    for line in lines:
        text = _plain(parse(line).surface if "</" in line else line)
        if text in missing:
            missing.discard(text)
            found.add(text)
    known = [text for text in wanted if text in found]
    return Overlap(len(wanted), len(known), known[0] if known else "")


def refuse_same(dev: Mapping[str, TaggedText], test: Mapping[str, TaggedText]) -> Overlap:
    """Refuse to tune on what is tested on.

    Raises:
        DataError: an utterance is in both, or most test sentences are dev sentences.
    """
    shared = sorted(dev.keys() & test.keys())
    if shared:
        raise DataError(
            f"{len(shared)} utterances are both dev and test, such as {shared[0]!r}",
            "a dev set that has nothing of the test set",
            "tune on other recordings: weights tuned on test flatter every figure",
        )
    found = overlap(test.values(), (reference.surface for reference in dev.values()))
    _refuse_most(found, "the dev set")
    return found


def refuse_known_text(test: Mapping[str, TaggedText], texts: Sequence[Path]) -> Overlap:
    """Refuse language model text that holds the test set.

    Raises:
        DataError: most test sentences are in ``texts``, or a text cannot be read.
    """
    found = overlap(test.values(), chain.from_iterable(map(read_lines, texts)))
    _refuse_most(found, "the text of the language model")
    return found


def _refuse_most(found: Overlap, where: str) -> None:
    if found.share > MOST:
        raise DataError(
            f"{found.known} of {found.sentences} test sentences stand in {where}, such as {found.example!r}",
            f"at most {100 * MOST:.0f} % of those with {SHORTEST} words or more",
            "take the test set out of it",
        )


def _plain(text: str) -> str:
    return " ".join(text.upper().split())
