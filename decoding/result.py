"""What recognition returns: frozen records that explain themselves."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """One recognised word.

    ``start_s`` and ``end_s`` are seconds from the start of the recording; ``confidence`` lies in [0, 1].
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class EntitySpan:
    """A named entity that the search took from a list.

    ``start`` and ``end`` are word positions in the text (end exclusive); ``written`` and ``id`` come from the
    list's entry; ``start_s``/``end_s`` are seconds; ``confidence`` is the n-best posterior of the
    span, or that of its least sure word if it is lower.
    """

    class_name: str
    text: str
    written: str
    id: str | None
    start: int
    end: int
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True)
class Hypothesis:
    """One entry of the n-best list.

    ``score`` is the natural log probability that ranks it; ``scores`` gives the part of each knowledge source
    along the best path (the parts add up to ``score`` less what recombined paths brought).
    """

    text: str
    score: float
    scores: dict[str, float]
    words: tuple[Word, ...]
    entities: tuple[EntitySpan, ...]


@dataclass(frozen=True)
class Transcript:
    """The result for one recording: its best hypothesis and the alternatives behind it."""

    id: str
    text: str
    duration_s: float
    words: tuple[Word, ...] = ()
    entities: tuple[EntitySpan, ...] = ()
    hypotheses: tuple[Hypothesis, ...] = field(default=(), repr=False)

    @property
    def written(self) -> str:
        """The text with every entity in its written form."""
        words = self.text.split()
        for span in sorted(self.entities, key=lambda s: s.start, reverse=True):
            words[span.start : span.end] = [span.written]
        return " ".join(words)
