"""Score hypotheses against tagged references: one frozen report a system, and reports side by side."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from asr.scoring.bootstrap import Bootstrap, Floats, Interval, Statistic, f1, ratio
from asr.scoring.calibration import Calibration
from asr.scoring.entities import EntityCounts, ListFinder, Miss, Span, score_entities
from asr.scoring.errors import align, char_errors, count, word_errors
from asr.scoring.measure import (
    EntityReport,
    ErrorRate,
    FalseAlarms,
    Measure,
    UtteranceScore,
    error_columns,
    match_columns,
)
from decoding.result import EntitySpan, Transcript
from lm.classes import EntityCatalog
from lm.errors import DataError
from lm.tagged_text import TaggedText


@dataclass(frozen=True)
class ScoreReport:
    """All figures of one system on one set of references, each with its 95 % bootstrap interval.

    ``ne_wer`` inside ``entities`` and ``rest`` split ``wer`` by where the reference has entities.
    ``false_alarms`` are over all utterances, ``plain_false_alarms`` over those whose reference has no entity;
    both are None where no list was given. ``oracle`` counts the entry of each n-best list that is nearest to the
    reference, None where no list has a second one; ``confidence`` is None where words have none.
    """

    wer: ErrorRate
    cer: ErrorRate
    rest: ErrorRate
    entities: EntityReport
    classes: dict[str, EntityReport]
    false_alarms: FalseAlarms | None
    plain_false_alarms: FalseAlarms | None
    oracle: ErrorRate | None
    confidence: Calibration | None
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    utterances: tuple[UtteranceScore, ...] = field(repr=False)

    @property
    def misses(self) -> list[tuple[Miss, int]]:
        """Entities that were not recognised and what was heard in their place, the most frequent first."""
        found = Counter(miss for u in self.utterances for miss in u.entities.misses)
        return sorted(found.items(), key=lambda m: (-m[1], m[0].class_name, m[0].text, m[0].heard))

    def to_json(self) -> str:
        """All figures, rates as fractions, undefined ones null, and the word errors of every utterance."""
        content = {
            "wer": self.wer.to_dict(),
            "cer": self.cer.to_dict(),
            "rest_wer": self.rest.to_dict(),
            "entities": self.entities.to_dict(),
            "classes": {name: report.to_dict() for name, report in self.classes.items()},
            "false_alarms": self.false_alarms and self.false_alarms.to_dict(),
            "false_alarms_without_entities": self.plain_false_alarms and self.plain_false_alarms.to_dict(),
            "nbest_oracle_wer": self.oracle and self.oracle.to_dict(),
            "confidence": self.confidence and self.confidence.to_dict(),
            "misses": [{**asdict(miss), "number": number} for miss, number in self.misses],
            "missing": self.missing,
            "extra": self.extra,
            "utterances": {u.id: u.words.to_dict() for u in self.utterances},
        }
        return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)

    def to_text(self) -> str:
        """A table to print."""
        counts = self.wer.counts
        lines = [
            f"{len(self.utterances)} utterances, {counts.ref} words: "
            f"{counts.sub} sub, {counts.ins} ins, {counts.del_} del",
            *_table([["", "value", "95 % interval"], *([n, *_split(i, s)] for n, i, s in figures(self))]),
        ]
        if self.classes:
            lines += [
                "",
                *_table([["class", "entities", "NE-WER", "P", "R", "F1", "span F1"], *_class_rows(self)]),
            ]
        lines += _absent(self)
        return "\n".join(lines)


def score(
    references: Mapping[str, TaggedText],
    hypotheses: Mapping[str, Transcript],
    catalog: EntityCatalog | Mapping[str, EntityCatalog] | None = None,
    *,
    emits_spans: bool | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> ScoreReport:
    """Score one system.

    Words are compared as they stand: bring both sides to one spelling and case first.

    Args:
        references: utterance id -> what was said.
        hypotheses: utterance id -> what was recognised. Missing ones count as all deleted; both missing and
            extra ones are listed in the report.
        catalog: the lists that the system was given, one for all or one per utterance id; None measures no
            false alarms.
        emits_spans: whether the span match applies; None: it does if any hypothesis has a span.
        samples: bootstrap resamples.
        seed: of the resampling; reports are comparable only with equal ``samples`` and ``seed``.
    """
    if not references:
        raise DataError("no references", "at least one utterance", "check the reference file")
    _check_case(references, hypotheses)
    finders = _finders(references, catalog)
    utterances = tuple(
        _score_utterance(name, reference, hypotheses.get(name), finders(name))
        for name, reference in references.items()
    )
    if emits_spans is None:
        emits_spans = any(hypotheses[name].entities for name in references if name in hypotheses)
    measure = Measure(utterances, Bootstrap(len(utterances), samples=samples, seed=seed))
    has_list = catalog is not None
    names = sorted({name for u in utterances for name in u.entities.classes})
    return ScoreReport(
        wer=measure.rate(lambda u: u.words),
        cer=measure.rate(lambda u: u.chars),
        rest=measure.rate(lambda u: u.entities.rest),
        entities=measure.entities(lambda u: u.entities.overall, has_list, emits_spans),
        classes={name: measure.entities(_of_class(name), has_list, emits_spans) for name in names},
        false_alarms=measure.false_alarms(lambda u: True) if has_list else None,
        plain_false_alarms=measure.false_alarms(lambda u: not u.reference.entities) if has_list else None,
        oracle=measure.rate(lambda u: u.nearest) if _has_nbest(hypotheses) else None,
        confidence=measure.calibration(),
        missing=tuple(name for name in references if name not in hypotheses),
        extra=tuple(name for name in hypotheses if name not in references),
        utterances=utterances,
    )


def transcript_of(name: str, tagged: TaggedText) -> Transcript:
    """A transcript made from text alone: its spans have no times and no confidence (NaN)."""
    unknown = float("nan")
    spans = tuple(
        EntitySpan(class_name, text, text, None, start, end, unknown, unknown, unknown)
        for class_name, text, start, end in tagged.entities
    )
    return Transcript(name, tagged.surface, unknown, (), spans)


def figures(report: ScoreReport) -> list[tuple[str, Interval, float]]:
    """The main figures in order as (name, interval, factor to print it with); undefined ones are left out."""
    found = [
        ("WER %", report.wer.rate, 100.0),
        ("CER %", report.cer.rate, 100.0),
    ]
    if report.classes:
        found.append(("NE-WER %", report.entities.ne_wer.rate, 100.0))
        found.append(("WER outside entities %", report.rest.rate, 100.0))
    for flavour, detection in (("text", report.entities.text), ("span", report.entities.span)):
        if detection:
            found += [
                (f"{flavour} precision %", detection.precision, 100.0),
                (f"{flavour} recall %", detection.recall, 100.0),
                (f"{flavour} F1 %", detection.f1, 100.0),
            ]
    if report.false_alarms:
        found.append(("false alarms per 1,000 words", report.false_alarms.per_thousand, 1.0))
    if report.plain_false_alarms:
        found.append(("... in utterances without entity", report.plain_false_alarms.per_thousand, 1.0))
    if report.oracle:
        found.append(("n-best oracle WER %", report.oracle.rate, 100.0))
    if report.confidence:
        found.append(("confidence: calibration error %", report.confidence.ece, 100.0))
        found.append(("confidence: normalised cross entropy", report.confidence.nce, 1.0))
    return [figure for figure in found if not math.isnan(figure[1].value)]


def _has_nbest(hypotheses: Mapping[str, Transcript]) -> bool:
    return any(len(transcript.hypotheses) > 1 for transcript in hypotheses.values())


def compare(reports: Mapping[str, ScoreReport], *, samples: int = 1000, seed: int = 0) -> str:
    """Systems side by side, each figure with its 95 % interval, and what sets each apart from the first.

    The differences are paired: the same resampled utterances for both systems.
    """
    same_references(reports)
    cells = {name: {f: _cell(i, s) for f, i, s in figures(report)} for name, report in reports.items()}
    rows = list(dict.fromkeys(figure for column in cells.values() for figure in column))
    lines = _table([["", *reports], *([row, *(c.get(row, "-") for c in cells.values())] for row in rows)])
    first, *others = reports
    if others:
        lines += ["", f"less {first} (interval; share of resamples of the other sign)"]
        body = [[other, *_differences(reports[first], reports[other], samples, seed)] for other in others]
        table = [["", "WER %", "NE-WER %", "text F1 %"], *body]
        used = [i for i in range(len(table[0])) if any(row[i] != "-" for row in body)]
        lines += _table([[row[i] for i in used] for row in table])
    for name, report in reports.items():
        lines += [f"{name}: {line}" for line in _absent(report)]
    return "\n".join(lines)


def _score_utterance(
    name: str, reference: TaggedText, hypothesis: Transcript | None, finder: ListFinder | None
) -> UtteranceScore:
    text = hypothesis.text if hypothesis else ""
    said, heard = reference.surface.split(), text.split()
    spans = [Span(s.class_name, s.start, s.end) for s in hypothesis.entities] if hypothesis else []
    for span in spans:
        if not 0 <= span.start < span.end <= len(heard):
            raise DataError(
                f"utterance {name!r}: entity at words {span.start} to {span.end}",
                f"positions within its {len(heard)} words",
                "check what wrote the hypothesis",
            )
    alignment = align(said, heard)
    wanted = [Span(class_name, start, end) for class_name, _, start, end in reference.entities]
    words = count(alignment, said, heard)
    others = {h.text for h in hypothesis.hypotheses} - {text} if hypothesis else set()
    near = min([words, *(word_errors(reference.surface, t) for t in sorted(others))], key=lambda c: c.errors)
    return UtteranceScore(
        id=name,
        reference=reference,
        hypothesis=hypothesis,
        alignment=alignment,
        words=words,
        chars=char_errors(reference.surface, text),
        entities=score_entities(said, wanted, heard, spans, finder, alignment),
        nearest=near,
    )


def _finders(
    references: Mapping[str, TaggedText], catalog: EntityCatalog | Mapping[str, EntityCatalog] | None
) -> Callable[[str], ListFinder | None]:
    if catalog is None:
        return lambda name: None
    if isinstance(catalog, EntityCatalog):
        finder = ListFinder.from_catalog(catalog)
        return lambda name: finder
    absent = [name for name in references if name not in catalog]
    if absent:
        raise DataError(
            f"no entity list for utterance {absent[0]!r}", "one for each", "give it EntityCatalog.empty()"
        )
    # Many utterances may share one list, which may be long.
    made = {id(lists): ListFinder.from_catalog(lists) for lists in catalog.values()}
    return lambda name: made[id(catalog[name])]


def _check_case(references: Mapping[str, TaggedText], hypotheses: Mapping[str, Transcript]) -> None:
    said = " ".join(reference.surface for reference in references.values())
    heard = " ".join(hypotheses[name].text for name in references if name in hypotheses)
    if (said.islower() and heard.isupper()) or (said.isupper() and heard.islower()):
        cases = ("lower", "upper") if said.islower() else ("upper", "lower")
        raise DataError(
            f"references in {cases[0]} case, hypotheses in {cases[1]} case",
            "both in one case",
            "change the case of one of them",
        )


def same_references(reports: Mapping[str, ScoreReport]) -> None:
    """Raise DataError unless all ``reports`` (at least one) are on the same references in the same order."""
    if not reports:
        raise DataError("no reports", "at least one system", "score a system first")
    first, *others = reports
    wanted = [(u.id, u.reference) for u in reports[first].utterances]
    for other in others:
        if [(u.id, u.reference) for u in reports[other].utterances] != wanted:
            raise DataError(
                f"{first!r} and {other!r} were scored on different references", "the same", "score both again"
            )


def _differences(first: ScoreReport, second: ScoreReport, samples: int, seed: int) -> list[str]:
    bootstrap = Bootstrap(len(first.utterances), samples=samples, seed=seed)
    measured = first.false_alarms is not None and second.false_alarms is not None
    columns: list[tuple[Callable[[ScoreReport], Floats], Statistic, bool]] = [
        (lambda r: error_columns([u.words for u in r.utterances]), ratio, True),
        (lambda r: error_columns([u.entities.overall.errors for u in r.utterances]), ratio, True),
        (lambda r: match_columns([u.entities.overall.text for u in r.utterances]), f1, measured),
    ]
    cells = []
    for columns_of, statistic, wanted in columns:
        found = bootstrap.difference(columns_of(first), columns_of(second), statistic)
        if not wanted or math.isnan(found.value):
            cells.append("-")
        else:
            low, high = 100 * found.low, 100 * found.high
            cells.append(f"{100 * found.value:+.2f} [{low:+.2f}, {high:+.2f}] {found.share:.3f}")
    return cells


def _of_class(name: str) -> Callable[[UtteranceScore], EntityCounts]:
    return lambda u: u.entities.classes.get(name, EntityCounts())


def _class_rows(report: ScoreReport) -> list[list[str]]:
    def percent(figure: Interval) -> str:
        return "-" if math.isnan(figure.value) else f"{100 * figure.value:.2f}"

    return [
        [
            name,
            str(kind.text.matches.tp + kind.text.matches.fn),
            percent(kind.ne_wer.rate),
            percent(kind.text.precision),
            percent(kind.text.recall),
            percent(kind.text.f1),
            percent(kind.span.f1) if kind.span else "-",
        ]
        for name, kind in report.classes.items()
    ]


def _split(figure: Interval, scale: float) -> tuple[str, str]:
    return f"{scale * figure.value:.2f}", f"{scale * figure.low:.2f} to {scale * figure.high:.2f}"


def _cell(figure: Interval, scale: float) -> str:
    return f"{scale * figure.value:.2f} [{scale * figure.low:.2f}, {scale * figure.high:.2f}]"


def _absent(report: ScoreReport) -> list[str]:
    lines = []
    for names, what in (
        (report.missing, "without hypothesis, scored as deleted"),
        (report.extra, "not scored"),
    ):
        if names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            lines.append(f"{len(names)} {what}: {shown}")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
