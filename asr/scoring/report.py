"""The HTML report: one self-contained page on what each system heard, and how sure its figures are."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

from asr.recordings import AudioPart
from asr.scoring.bootstrap import Interval
from asr.scoring.measure import EntityReport, UtteranceScore
from asr.scoring.score import ScoreReport, figures, same_references
from asr.writers import write_whole
from decoding.result import EntitySpan
from lm.errors import DataError

COLOURS = 8
"""Class colours in the style sheet; further classes start again from the first."""
_MOST_MISSES = 50


@dataclass(frozen=True)
class Curve:
    """A training curve: its name and (step, value) points."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figure:
    """A figure with its interval as printed, and as shares (0 to 1) of the longest bar of its column."""

    value: str
    low: str
    high: str
    bar: tuple[float, float, float]


@dataclass(frozen=True)
class Cell:
    """One word in one row of an alignment.

    ``kind`` is ok, sub, ins, del or gap; ``colour`` that of its entity class or None; ``alarm`` whether it is
    part of a false alarm.
    """

    text: str = ""
    kind: str = "gap"
    colour: int | None = None
    tip: str = ""
    alarm: bool = False


@dataclass(frozen=True)
class UtteranceView:
    """One utterance: columns of cells, the reference on top and a row a system below."""

    id: str
    audio: str
    errors: tuple[str, ...]
    columns: list[list[Cell]]
    has_errors: bool
    has_entities: bool
    words: str


@dataclass(frozen=True)
class CurveView:
    """A curve in a box of 300 by 100, with the ends of its axes."""

    name: str
    path: str
    low: str
    high: str
    first: str
    last: str
    dots: list[tuple[float, float]] = field(default_factory=list)


def write_report(
    path: Path,
    title: str,
    systems: Mapping[str, ScoreReport],
    utterances: Sequence[str] | None = None,
    *,
    audio: Mapping[str, AudioPart] | None = None,
    curves: Sequence[Curve] = (),
    synthetic: bool = False,
) -> Path:
    """Write the page; it asks nothing of the network.

    Args:
        path: the file to write.
        title: what was tested.
        systems: name -> its score; all on the same references.
        utterances: ids to show word by word, in this order; None shows all.
        audio: utterance id -> where it is heard, linked relative to ``path``; the page plays it.
        curves: training curves to draw.
        synthetic: says in a banner that the speech is synthetic.
    """
    import jinja2

    same_references(systems)
    reports = list(systems.values())
    by_id = [{u.id: u for u in report.utterances} for report in reports]
    shown = list(by_id[0]) if utterances is None else list(utterances)
    unknown = [name for name in shown if name not in by_id[0]]
    if unknown:
        raise DataError(f"utterance {unknown[0]!r}", "one that was scored", "leave it out of the report")
    names = sorted({name for report in reports for name in report.classes})
    colour_of = {name: number % COLOURS for number, name in enumerate(names)}
    links = {name: _link(file, path) for name, file in (audio or {}).items()}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((files("asr.scoring") / "report.html").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        synthetic=synthetic,
        systems=list(systems),
        reports=systems,
        words=reports[0].wer.counts.ref,
        count=len(by_id[0]),
        figures=_figure_table(systems),
        classes=[(name, colour_of[name], _class_row(name, reports)) for name in names],
        misses={name: report.misses[:_MOST_MISSES] for name, report in systems.items()},
        colours=colour_of,
        utterances=[
            _view([index[name] for index in by_id], colour_of, links.get(name, "")) for name in shown
        ],
        curves=[_curve(curve) for curve in curves],
    )
    write_whole(path, page)
    return path


def _figure_table(systems: Mapping[str, ScoreReport]) -> list[tuple[str, list[Figure | None]]]:
    """Rows of (figure, one cell a system); bars of a row share one scale."""
    found = {name: {row: (i, scale) for row, i, scale in figures(report)} for name, report in systems.items()}
    rows = list(dict.fromkeys(row for column in found.values() for row in column))
    table: list[tuple[str, list[Figure | None]]] = []
    for row in rows:
        cells = [column.get(row) for column in found.values()]
        most = max(cell[1] * max(cell[0].high, cell[0].value) for cell in cells if cell)
        table.append((row, [cell and _figure(*cell, most) for cell in cells]))
    return table


def _figure(interval: Interval, scale: float, most: float) -> Figure:
    value, low, high = (scale * x for x in (interval.value, interval.low, interval.high))
    wide = most if most > 0 else math.inf
    bar = (max(0.0, value) / wide, max(0.0, low) / wide, max(0.0, high) / wide)
    return Figure(f"{value:.2f}", f"{low:.2f}", f"{high:.2f}", bar)


def _class_row(name: str, reports: Sequence[ScoreReport]) -> tuple[int, list[list[Figure | None]]]:
    """How often the class was said, and for each system NE-WER, text F1 and span F1."""
    kinds = [report.classes.get(name) for report in reports]
    number = max(kind.text.matches.tp + kind.text.matches.fn for kind in kinds if kind)
    return number, [_class_cells(kind) for kind in kinds]


def _class_cells(kind: EntityReport | None) -> list[Figure | None]:
    if kind is None:
        return [None, None, None]
    intervals = (kind.ne_wer.rate, kind.text.f1, kind.span.f1 if kind.span else None)
    return [
        None if i is None or math.isnan(i.value) else _figure(i, 100.0, 100.0 * max(1.0, i.high))
        for i in intervals
    ]


def _view(rows: Sequence[UtteranceScore], colour_of: Mapping[str, int], audio: str) -> UtteranceView:
    """Line several alignments up under one reference."""
    reference = rows[0].reference
    said = reference.surface.split()
    at: list[dict[int, int | None]] = [{} for _ in rows]
    inserted: list[list[list[int]]] = [[[] for _ in range(len(said) + 1)] for _ in rows]
    for row, utterance in enumerate(rows):
        gap = 0
        for i, j in utterance.alignment:
            if i is not None:
                at[row][i] = j
                gap = i + 1
            elif j is not None:
                inserted[row][gap].append(j)
    heard = [_HeardRow(utterance, colour_of) for utterance in rows]
    top = [Cell(word, "ok") for word in said]
    for class_name, text, start, end in reference.entities:
        for i in range(start, end):
            top[i] = Cell(said[i], "ok", colour_of[class_name], f"{class_name}: {text}")
    columns: list[list[Cell]] = []
    for i in range(len(said) + 1):
        for slot in range(max(len(system[i]) for system in inserted)):
            slots = [system[i][slot : slot + 1] for system in inserted]
            columns.append(
                [Cell(), *(h.cell(s[0], None) if s else Cell() for h, s in zip(heard, slots, strict=True))]
            )
        if i < len(said):
            columns.append([top[i], *(h.cell(a[i], said[i]) for h, a in zip(heard, at, strict=True))])
    return UtteranceView(
        id=rows[0].id,
        audio=audio,
        errors=tuple(f"{u.words.errors}/{u.words.ref}" for u in rows),
        columns=columns,
        has_errors=any(u.words.errors for u in rows),
        has_entities=bool(reference.entities)
        or any((u.hypothesis and u.hypothesis.entities) or u.entities.false_alarms for u in rows),
        words=" ".join([reference.surface, *(" ".join(u.heard) for u in rows)]).lower(),
    )


class _HeardRow:
    """The words of one hypothesis as cells."""

    def __init__(self, utterance: UtteranceScore, colour_of: Mapping[str, int]) -> None:
        self._words = utterance.heard
        self._colour_of = colour_of
        spans = utterance.hypothesis.entities if utterance.hypothesis else ()
        self._span = {j: span for span in spans for j in range(span.start, span.end)}
        self._alarm = {
            j: span.class_name
            for span in utterance.entities.false_alarms
            for j in range(span.start, span.end)
        }

    def cell(self, position: int | None, said: str | None) -> Cell:
        """The word at ``position``, which was heard for ``said``; None for nothing."""
        if position is None:
            return Cell("", "del", tip=f"deleted: {said}")
        word = self._words[position]
        kind = "ins" if said is None else "ok" if word == said else "sub"
        span = self._span.get(position)
        alarm = self._alarm.get(position)
        tips = [_span_tip(span)] if span else []
        tips += [f"false alarm: {alarm}"] if alarm else []
        return Cell(
            word, kind, self._colour_of[span.class_name] if span else None, "; ".join(tips), alarm is not None
        )


def _span_tip(span: EntitySpan) -> str:
    parts = [f"{span.class_name}: {span.written}"]
    if span.id is not None:
        parts.append(f"id {span.id}")
    if math.isfinite(span.confidence):
        parts.append(f"confidence {span.confidence:.2f}")
    return ", ".join(parts)


def _curve(curve: Curve) -> CurveView:
    points = [(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        raise DataError(f"curve {curve.name!r} has no finite point", "at least one", "leave it out")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high, first, last = min(ys), max(ys), min(xs), max(xs)
    dots = [
        (
            300 * (x - first) / (last - first) if last > first else 150.0,
            100 - 100 * (y - low) / (high - low) if high > low else 50.0,
        )
        for x, y in points
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
    single = dots if len(dots) == 1 else []
    return CurveView(curve.name, path, f"{low:.4g}", f"{high:.4g}", f"{first:g}", f"{last:g}", single)


def _link(audio: AudioPart, page: Path) -> str:
    relative = os.path.relpath(os.path.abspath(audio.path), os.path.abspath(page.parent))
    # A first folder with a colon in it would read as a scheme.
    link = "./" + quote(relative.replace(os.sep, "/"))
    if audio == AudioPart(audio.path):
        return link
    return f"{link}#t={audio.start_s:g}" + ("" if audio.end_s is None else f",{audio.end_s:g}")
