from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from asr.scoring.entities import Miss
from asr.scoring.errors import Counts
from asr.scoring.score import ScoreReport, compare, score, transcript_of
from decoding.result import Transcript
from lm.classes import EntityCatalog
from lm.errors import DataError
from lm.tagged_text import TaggedText, parse

CATALOG = EntityCatalog.from_mapping({"contact": ["Ann Lee", "Bob", "Zoe"], "city": ["Paris"]})
REFERENCES = {
    "u1": parse("call <contact>ann lee</contact> now"),
    "u2": parse("go to <city>paris</city> with <contact>bob</contact>"),
    "u3": parse("what time is it"),
}


def heard(**texts: str) -> dict[str, Transcript]:
    return {name: transcript_of(name, parse(text)) for name, text in texts.items()}


SPANS = heard(
    u1="call <contact>ann lee</contact> now",
    u2="go to paris with <contact>zoe</contact>",
    u3="what time zoe is it",
)
PLAIN = heard(u1="call ann lee now", u2="go to paris with zoe", u3="what time zoe is it")


def test_figures_by_hand() -> None:
    report = score(REFERENCES, SPANS, CATALOG)
    assert report.wer.counts == Counts(sub=1, ins=1, ref=13)
    assert report.wer.rate.value == pytest.approx(2 / 13)
    assert report.entities.ne_wer.counts == Counts(sub=1, ref=4)
    assert report.rest.counts == Counts(ins=1, ref=9)
    text = report.entities.text
    assert (text.matches.tp, text.matches.fp, text.matches.fn) == (2, 2, 1)
    assert text.f1.value == pytest.approx(4 / 7)
    assert text.f1.low <= text.f1.value <= text.f1.high
    assert report.entities.span is not None
    span = report.entities.span.matches
    assert (span.tp, span.fp, span.fn) == (1, 1, 2)
    assert report.classes["city"].span is not None
    assert report.classes["city"].span.matches.fn == 1
    assert report.classes["city"].text.f1.value == 1.0
    assert report.false_alarms is not None
    assert report.plain_false_alarms is not None
    assert (report.false_alarms.number, report.false_alarms.words) == (2, 13)
    assert (report.plain_false_alarms.number, report.plain_false_alarms.words) == (1, 4)
    assert report.plain_false_alarms.per_thousand.value == pytest.approx(250)
    assert report.misses == [(Miss("contact", "bob", "zoe"), 1)]


def test_text_figures_do_not_depend_on_spans() -> None:
    with_spans, without = score(REFERENCES, SPANS, CATALOG), score(REFERENCES, PLAIN, CATALOG)
    assert without.entities.span is None
    assert without.entities.text == with_spans.entities.text
    assert without.false_alarms == with_spans.false_alarms
    forced = score(REFERENCES, PLAIN, CATALOG, emits_spans=True).entities.span
    assert forced is not None
    assert (forced.matches.tp, forced.matches.fn, forced.recall.value) == (0, 3, 0.0)


def test_without_a_list_what_needs_one_is_not_measured() -> None:
    report = score(REFERENCES, PLAIN)
    assert report.false_alarms is None
    assert math.isnan(report.entities.text.precision.value)
    assert report.entities.text.recall.value == pytest.approx(2 / 3)
    content = json.loads(report.to_json())
    assert content["entities"]["text"]["fp"] is None
    assert content["entities"]["text"]["f1"]["value"] is None
    assert "F1" not in report.to_text().split("class")[0]


def test_missing_are_deleted_and_missing_and_extra_are_listed() -> None:
    report = score(REFERENCES, {"u1": PLAIN["u1"], "zz": PLAIN["u2"]}, CATALOG)
    assert report.wer.counts == Counts(del_=9, ref=13)
    assert (report.missing, report.extra) == (("u2", "u3"), ("zz",))
    assert "2 without hypothesis, scored as deleted: u2, u3" in report.to_text()
    assert "1 not scored: zz" in report.to_text()


def test_lists_of_each_utterance() -> None:
    own = {"u1": CATALOG, "u2": CATALOG, "u3": EntityCatalog.empty()}
    report = score(REFERENCES, PLAIN, own)
    assert report.false_alarms is not None
    assert report.false_alarms.number == 1, "zoe is on the list of u2 but not of u3"
    with pytest.raises(DataError, match="no entity list for utterance 'u3'"):
        score(REFERENCES, PLAIN, {"u1": CATALOG, "u2": CATALOG})


def test_unusable_input_is_refused() -> None:
    with pytest.raises(DataError, match="no references"):
        score({}, PLAIN)
    upper = {name: replace(t, text=t.text.upper(), entities=()) for name, t in PLAIN.items()}
    with pytest.raises(DataError, match="references in lower case"):
        score(REFERENCES, upper)
    broken = replace(SPANS["u2"], text="go")
    with pytest.raises(DataError, match="utterance 'u2': entity at words 4 to 5"):
        score(REFERENCES, {"u2": broken})


def test_silence_can_be_scored() -> None:
    report = score({"s": TaggedText(())}, {"s": Transcript("s", "", 1.0)})
    assert math.isnan(report.wer.rate.value)
    assert "0 words" in report.to_text()
    assert json.loads(report.to_json())["wer"]["value"] is None


def test_json_holds_the_figures_and_every_utterance() -> None:
    report = score(REFERENCES, SPANS, CATALOG)
    content = json.loads(report.to_json())
    assert content["wer"]["value"] == report.wer.rate.value
    assert content["utterances"]["u3"] == {"sub": 0, "ins": 1, "del": 0, "ref": 4}
    assert content["misses"] == [{"class_name": "contact", "text": "bob", "heard": "zoe", "number": 1}]
    assert content["false_alarms_without_entities"]["number"] == 1


def reports() -> dict[str, ScoreReport]:
    return {
        "plain": score(REFERENCES, PLAIN, CATALOG),
        "spans": score(REFERENCES, SPANS, CATALOG),
        "right": score(REFERENCES, {n: transcript_of(n, t) for n, t in REFERENCES.items()}, CATALOG),
    }


def test_compare_prints_systems_side_by_side() -> None:
    lines = compare(reports()).splitlines()
    assert lines[0].split() == ["plain", "spans", "right"]
    rows = {line[:30].strip(): line for line in lines}
    wer = next(line for line in lines if line.startswith("WER %"))
    assert wer.split("[")[0].split()[-1] == "15.38"
    assert wer.count("[") == 3
    assert "0.00 [0.00, 0.00]" in wer
    assert any(row.startswith("span F1 %") for row in rows)
    assert next(line for line in lines if line.startswith("span F1 %")).split()[3] == "-"
    gaps = lines[next(n for n, line in enumerate(lines) if line.startswith("less plain")) :]
    assert gaps[2].split()[0] == "spans"
    assert "+0.00 [+0.00, +0.00] 0.500" in gaps[2]
    assert "-15.38" in gaps[3]


def test_systems_on_different_references_are_not_compared() -> None:
    other = score({"u1": REFERENCES["u1"]}, PLAIN, CATALOG)
    with pytest.raises(DataError, match="different references"):
        compare({**reports(), "other": other})
    with pytest.raises(DataError, match="no reports"):
        compare({})
