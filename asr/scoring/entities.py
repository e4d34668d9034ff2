"""How well names are recognised: NE-WER, precision, recall and F1 by text and by span, false alarms.

Definitions. The reference says which of its words are entities. The hypothesis is words, and spans where
the system emits them. Both are aligned by :func:`asr.scoring.errors.align`.

NE-WER
    Substitutions and deletions of words inside reference entities, plus insertions strictly inside one
    (between two of its words), over the words inside reference entities. Every other error and word belongs
    to the rest, so that entity and rest add up to the plain word errors.

Text match (works for any system, with spans or without)
    A reference entity is recognised (tp) when the hypothesis words aligned to it, insertions strictly inside
    included, are exactly its words; else it is missed (fn). A false alarm (fp) is an occurrence of a full
    list entry in the hypothesis that was not spoken there: its words are not aligned one to one, without
    gap, to the same words of the reference. Occurrences are found left to right, longest first, whole words,
    not overlapping. An entry that was truly spoken is no false alarm even where the reference does not tag
    it, and a recognised entity outside the list counts as tp. An entry that stands in several classes counts
    for the first of them. Without a list, fp (and so precision and F1) cannot be measured.

Span match (for systems that emit spans)
    Emitted spans and reference entities are compared as multisets of (class, text) per utterance, wherever
    they stand, as in SLUE (Shon et al., ICASSP 2022): tp are the common ones, fp and fn the rest of either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from asr.scoring.errors import Alignment, Counts, align
from lm.classes import EntityCatalog
from lm.tokenizer import normalise


@dataclass(frozen=True)
class Span:
    """Words ``start`` to ``end`` (exclusive) of a text are an entity of a class."""

    class_name: str
    start: int
    end: int


@dataclass(frozen=True)
class Matches:
    """Entities found rightly (tp), found wrongly (fp) and not found (fn); rates are NaN without a divisor."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: Matches) -> Matches:
        return Matches(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def precision(self) -> float:
        """Tp / (tp + fp)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Tp / (tp + fn)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


@dataclass(frozen=True)
class EntityCounts:
    """All that is counted of one class: word errors inside its entities, text matches, span matches."""

    errors: Counts = field(default_factory=Counts)
    text: Matches = field(default_factory=Matches)
    span: Matches = field(default_factory=Matches)

    def __add__(self, other: EntityCounts) -> EntityCounts:
        return EntityCounts(self.errors + other.errors, self.text + other.text, self.span + other.span)


@dataclass(frozen=True)
class Miss:
    """A reference entity whose words were not recognised, with what was heard there ('' when deleted)."""

    class_name: str
    text: str
    heard: str


@dataclass(frozen=True)
class EntityScore:
    """One utterance: counts by class, errors outside entities, what was missed, what was falsely heard."""

    classes: dict[str, EntityCounts]
    rest: Counts
    misses: tuple[Miss, ...] = ()
    false_alarms: tuple[Span, ...] = ()

    @property
    def overall(self) -> EntityCounts:
        """The sum over classes."""
        return sum(self.classes.values(), EntityCounts())


class ListFinder:
    """Finds full list entries in a text, whatever system wrote it; upper and lower case are the same.

    Args:
        phrases: class name -> the spoken forms of its entries.
    """

    def __init__(self, phrases: Mapping[str, Iterable[str]]) -> None:
        self._class_of: dict[tuple[str, ...], str] = {}
        for class_name, texts in phrases.items():
            for text in texts:
                if words := tuple(normalise(text, "lower").split()):
                    self._class_of.setdefault(words, class_name)
        # Longest first, and only lengths that exist: lists mix single words with whole titles.
        self._lengths = sorted({len(words) for words in self._class_of}, reverse=True)

    @classmethod
    def from_catalog(cls, catalog: EntityCatalog) -> ListFinder:
        """All spoken forms of a catalog."""
        return cls(
            {
                name: [form for entry in kind.entries for form in entry.spoken]
                for name, kind in catalog.classes.items()
            }
        )

    def find(self, words: Sequence[str]) -> list[Span]:
        """Occurrences of entries in ``words``: left to right, longest first, not overlapping."""
        words = [word.lower() for word in words]
        found = []
        position = 0
        while position < len(words):
            step = 1
            for length in self._lengths:
                entry = tuple(words[position : position + length])
                if len(entry) == length and entry in self._class_of:
                    found.append(Span(self._class_of[entry], position, position + length))
                    step = length
                    break
            position += step
        return found


def score_entities(
    reference: Sequence[str],
    reference_spans: Sequence[Span],
    hypothesis: Sequence[str],
    hypothesis_spans: Sequence[Span] = (),
    finder: ListFinder | None = None,
    alignment: Alignment | None = None,
) -> EntityScore:
    """Score the entities of one utterance by the definitions at the head of this module.

    Args:
        reference: spoken words.
        reference_spans: entities of the reference, not overlapping.
        hypothesis: recognised words.
        hypothesis_spans: entities that the system emitted, positions in ``hypothesis``.
        finder: the list that the system was given; None measures no false alarms.
        alignment: of these words, where it is there already.
    """
    if alignment is None:
        alignment = align(reference, hypothesis)
    errors, rest, heard = _split_errors(reference, reference_spans, hypothesis, alignment)
    classes: dict[str, EntityCounts] = {}
    misses = []
    for span, counts, positions in zip(reference_spans, errors, heard, strict=True):
        text = _text(reference, span)
        recognised = " ".join(hypothesis[j] for j in positions)
        hit = recognised == text
        if not hit:
            misses.append(Miss(span.class_name, text, recognised))
        _add(classes, span.class_name, EntityCounts(counts, Matches(tp=int(hit), fn=int(not hit))))
    false_alarms = _false_alarms(reference, hypothesis, finder, alignment) if finder else []
    for span in false_alarms:
        _add(classes, span.class_name, EntityCounts(text=Matches(fp=1)))
    for name, matches in _span_matches(reference, reference_spans, hypothesis, hypothesis_spans).items():
        _add(classes, name, EntityCounts(span=matches))
    return EntityScore(classes, rest, tuple(misses), tuple(false_alarms))


def _split_errors(
    reference: Sequence[str], spans: Sequence[Span], hypothesis: Sequence[str], alignment: Alignment
) -> tuple[list[Counts], Counts, list[list[int]]]:
    """Errors in each entity, errors outside all, and the hypothesis positions each entity was heard at."""
    owner: list[int | None] = [None] * len(reference)
    for entity, span in enumerate(spans):
        owner[span.start : span.end] = [entity] * (span.end - span.start)
    errors = [Counts() for _ in spans]
    heard: list[list[int]] = [[] for _ in spans]
    rest = Counts()
    next_word = 0
    number: int | None
    for i, j in alignment:
        if i is None:
            step = Counts(ins=1)
            inside = 0 < next_word < len(reference) and owner[next_word - 1] == owner[next_word]
            number = owner[next_word] if inside else None
        else:
            wrong = j is not None and reference[i] != hypothesis[j]
            step = Counts(int(wrong), 0, int(j is None), 1)
            number = owner[i]
            next_word = i + 1
        if number is None:
            rest += step
            continue
        errors[number] += step
        if j is not None:
            heard[number].append(j)
    return errors, rest, heard


def _false_alarms(
    reference: Sequence[str], hypothesis: Sequence[str], finder: ListFinder, alignment: Alignment
) -> list[Span]:
    spoken_at = {
        j: i for i, j in alignment if i is not None and j is not None and reference[i] == hypothesis[j]
    }

    def spoken(span: Span) -> bool:
        first = spoken_at.get(span.start)
        return first is not None and all(
            spoken_at.get(j) == first + j - span.start for j in range(span.start, span.end)
        )

    return [span for span in finder.find(hypothesis) if not spoken(span)]


def _span_matches(
    reference: Sequence[str], wanted: Sequence[Span], hypothesis: Sequence[str], emitted: Sequence[Span]
) -> dict[str, Matches]:
    want = Counter((span.class_name, _text(reference, span)) for span in wanted)
    have = Counter((span.class_name, _text(hypothesis, span)) for span in emitted)
    matches: dict[str, Matches] = {}
    for key in want.keys() | have.keys():
        common = min(want[key], have[key])
        found = Matches(common, have[key] - common, want[key] - common)
        matches[key[0]] = matches.get(key[0], Matches()) + found
    return matches


def _add(classes: dict[str, EntityCounts], name: str, counts: EntityCounts) -> None:
    classes[name] = classes.get(name, EntityCounts()) + counts


def _text(words: Sequence[str], span: Span) -> str:
    return " ".join(words[span.start : span.end])


def _ratio(above: int, below: int) -> float:
    return above / below if below else float("nan")
