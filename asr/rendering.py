"""From hypotheses in tokens and frames to words, times, confidences and entities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from decoding.confidence import DEFAULT, ConfidenceConfig, calibrate
from decoding.entity_graph import EntityGraph
from decoding.result import EntitySpan, Hypothesis, Transcript, Word
from decoding.trace import RawHypothesis
from lm.classes import EncodedCatalog, EntityCatalog
from lm.tokenizer import Tokenizer

LONGEST_WORD_TAIL_S = 0.4
"""A word ends where the next one starts, but at most this long after its last token was emitted."""


@dataclass(frozen=True)
class Renderer:
    """Turns the n-best list of one segment into words.

    ``frame_s`` is the length of an encoder frame; ``start_s`` and ``duration_s`` place the segment in its
    recording. ``graph``, ``catalog`` and ``encoded`` name the entries behind the spans; None when the search had no
    lists. ``confidence`` says what the confidence of words is made of.
    """

    tokenizer: Tokenizer
    frame_s: float
    start_s: float
    duration_s: float
    graph: EntityGraph | None = None
    catalog: EntityCatalog | None = None
    encoded: EncodedCatalog | None = None
    confidence: ConfidenceConfig = DEFAULT

    def hypotheses(self, nbest: Sequence[RawHypothesis]) -> tuple[Hypothesis, ...]:
        """All hypotheses; entities are as sure as their share of the list, and as their least sure word."""
        found = [self._hypothesis(raw) for raw in nbest]
        best = max((h.score for h in found), default=0.0)
        weights = [math.exp(h.score - best) for h in found]
        total = sum(weights)
        result = []
        for hypothesis in found:
            spans = []
            for span in hypothesis.entities:
                same = sum(
                    w for w, h in zip(weights, found, strict=True) if any(_agree(span, e) for e in h.entities)
                )
                spans.append(replace(span, confidence=same / total))
            result.append(replace(hypothesis, entities=tuple(spans)))
        return calibrate(result, self.confidence)

    def _hypothesis(self, raw: RawHypothesis) -> Hypothesis:
        words = self._words(raw)
        bounds = self.tokenizer.words(raw.tokens)
        entities = []
        for span in raw.spans:
            first = next(i for i, (_, a, b) in enumerate(bounds) if a <= span.start < b)
            last = next(i for i, (_, a, b) in enumerate(bounds) if a < span.end <= b)
            entities.append(self._entity(span.node, words, first, last + 1))
        text = " ".join(word.text for word in words)
        return Hypothesis(text, raw.score, raw.parts, tuple(words), tuple(entities))

    def _words(self, raw: RawHypothesis) -> list[Word]:
        bounds = self.tokenizer.words(raw.tokens)
        # Where a decoder attended for a label may lie before the label before; words do not.
        frames = list(accumulate(raw.frames, max))
        starts = [frames[first] * self.frame_s for _, first, _ in bounds]
        words = []
        for i, (text, first, end) in enumerate(bounds):
            last_s = (frames[end - 1] + 1) * self.frame_s
            limit = starts[i + 1] if i + 1 < len(bounds) else self.duration_s
            end_s = max(last_s, min(limit, last_s + LONGEST_WORD_TAIL_S))
            logp = min(raw.token_logp[first:end])
            confidence = math.exp(min(0.0, logp))
            end_s = min(end_s, limit) if limit > starts[i] else end_s
            words.append(Word(text, self._at(starts[i]), self._at(end_s), confidence))
        return words

    def _at(self, inside_s: float) -> float:
        return round(self.start_s + min(inside_s, self.duration_s), 3)

    def _entity(self, node: int, words: Sequence[Word], start: int, end: int) -> EntitySpan:
        assert self.graph is not None
        assert self.catalog is not None
        class_index, entries = self.graph.entries(node)
        name = self.tokenizer.classes[class_index]
        text = " ".join(w.text for w in words[start:end])
        if entries:
            _, number, _ = max(entries, key=lambda e: e[2])
            entry = self.catalog.classes[name].entries[number]
            written, id = entry.text, entry.id
        else:  # a pattern or number class: the written form follows from the words
            reading = self.encoded.reading(name, text) if self.encoded else None
            written, id = (reading.written, reading.entry.id) if reading else (text, None)
        return EntitySpan(
            name, text, written, id, start, end, words[start].start_s, words[end - 1].end_s, 1.0
        )


def _agree(one: EntitySpan, other: EntitySpan) -> bool:
    # Touching is no overlap: a name said twice in a row is two entities. A span may have no length.
    overlap = min(one.end_s, other.end_s) > max(one.start_s, other.start_s) or one.start_s == other.start_s
    return one.class_name == other.class_name and one.text == other.text and overlap


def join_segments(id: str, duration_s: float, segments: Sequence[tuple[Hypothesis, ...]]) -> Transcript:
    """One transcript from the n-best lists of a recording's segments, in order.

    A recording of one segment keeps its n-best list; of several, only the best hypotheses are joined.
    """
    if len(segments) == 1:
        best = segments[0][0]
        return Transcript(id, best.text, duration_s, best.words, best.entities, segments[0])
    words: list[Word] = []
    entities: list[EntitySpan] = []
    for nbest in segments:
        shift = len(words)
        words.extend(nbest[0].words)
        entities.extend(replace(e, start=e.start + shift, end=e.end + shift) for e in nbest[0].entities)
    text = " ".join(w.text for w in words)
    parts: dict[str, float] = {}
    for nbest in segments:
        for name, value in nbest[0].scores.items():
            parts[name] = parts.get(name, 0.0) + value
    whole = Hypothesis(text, sum(n[0].score for n in segments), parts, tuple(words), tuple(entities))
    return Transcript(id, text, duration_s, whole.words, whole.entities, (whole,))
