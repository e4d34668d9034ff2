from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asr.recordings import AudioPart
from asr.scoring.report import Curve, write_report
from asr.scoring.score import ScoreReport, score, transcript_of
from decoding.result import EntitySpan, Transcript
from lm.classes import EntityCatalog
from lm.errors import DataError
from lm.tagged_text import parse

VOID = {"meta", "input", "rect", "path", "polyline", "circle", "link", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if self.open[-1] == "span" and "article" in self.open:
                kind = self.attributes[-1][1].get("class") or ""
                self.words.append((data, kind))

    def titles(self) -> list[str]:
        return [a["title"] or "" for _, a in self.attributes if "title" in a]


REFERENCES = {
    "u1": parse("please call <contact>ann lee</contact> now"),
    "u2": parse("what time is it"),
    "u3": parse("go home"),
}
CATALOG = EntityCatalog.from_mapping({"contact": ["Ann Lee", "Zoe"]})
SPAN = EntitySpan("contact", "ann lee", "Ann Lee", "c17", 1, 3, 0.1, 0.5, 0.934)


def systems() -> dict[str, ScoreReport]:
    good = {
        "u1": Transcript("u1", "call ann lee now", 2.0, (), (SPAN,)),
        "u2": Transcript("u2", "what time zoe is it", 2.0),
        "u3": Transcript("u3", "go home", 1.0),
    }
    poor = {"u1": Transcript("u1", "please call an lee now", 2.0), "u3": good["u3"]}
    return {"C-FNT": score(REFERENCES, good, CATALOG), "FNT": score(REFERENCES, poor, CATALOG)}


def test_page_shows_figures_alignments_entities_audio_and_curves(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    audio = tmp_path / "sound" / "a b#1.wav"
    curves = [
        Curve("training loss", [(0, 4.0), (100, 2.0), (200, float("nan")), (300, 1.0)]),
        Curve("one", [(5, 1)]),
    ]
    path = write_report(
        tmp_path / "out" / "r.html",
        "Contacts",
        systems(),
        audio={"u1": AudioPart(audio), "u2": AudioPart(audio, 1.5, 3.25)},
        curves=curves,
        synthetic=True,
    )
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags["article"] == 3
    assert "Synthetic data" in page.text
    assert "1 without hypothesis, scored as deleted: u2" in page.text
    assert "an lee" in page.text, "the table of missed entities"
    assert ("an", "sub") in page.words
    assert ("zoe", "ins alarm") in page.words
    kinds = Counter(a["class"] for t, a in page.attributes if t == "span" and a.get("class"))
    assert kinds["del"] == 1 + 4
    assert kinds["ok entity e0"] == 4, "two words in the reference, two in C-FNT"
    assert "contact: Ann Lee, id c17, confidence 0.93" in page.titles()
    assert "false alarm: contact" in page.titles()
    assert [a["src"] for t, a in page.attributes if t == "audio"] == [
        "./../sound/a%20b%231.wav",
        "./../sound/a%20b%231.wav#t=1.5,3.25",
    ]
    line = next(a["points"] for t, a in page.attributes if t == "polyline")
    assert line == "0.0,0.0 100.0,66.7 300.0,100.0"
    assert page.tags["circle"] == 1
    flags = [(a["data-errors"], a["data-entities"]) for t, a in page.attributes if t == "article"]
    assert flags == [("1", "1"), ("1", "1"), ("0", "0")]


def test_page_asks_nothing_of_the_network(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", "Contacts", systems()).read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<img", html.split("<script>")[0])
    assert "default-src 'none'" in html
    assert "fetch" not in html
    assert "Synthetic data" not in html
    assert "<audio" not in html


def test_words_line_up_under_the_reference(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", "Contacts", systems(), ["u2"]).read_text()
    article = html[html.index("<article") : html.index("</article>")]
    columns = re.findall(r"<div><span(.*?)</div>", article)
    rows = [[re.sub(r".*>", "", cell) for cell in column.split("</span>")[:-1]] for column in columns]
    assert rows == [
        ["what", "what", ""],
        ["time", "time", ""],
        ["", "zoe", ""],
        ["is", "is", ""],
        ["it", "it", ""],
    ]


def test_everything_from_outside_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    span = EntitySpan("contact", "x", evil, evil, 0, 1, 0.0, 0.1, 0.5)
    word = "</span><script>alert(2)</script>"
    said = transcript_of("u", parse("x"))
    references = {f"{evil}u": parse("<contact>x</contact>")}
    hypotheses = {f"{evil}u": Transcript(evil, f"x {word}", 1.0, (), (span,)), evil: said}
    report = score(references, hypotheses, EntityCatalog.from_mapping({"contact": [evil, "x"]}))
    path = write_report(
        tmp_path / "r.html",
        evil,
        {evil: report, "other": report},
        audio={f"{evil}u": AudioPart(tmp_path / f"{evil[:9]}.wav")},
        curves=[Curve(evil, [(0, 1), (1, 2)])],
    )
    html = path.read_text()
    page = Page(html)
    assert page.tags["script"] == 1
    assert "alert(1)</script>" not in html
    assert "alert(2)</script>" not in html
    assert page.text.count("alert(1)") >= 5
    assert any(evil in title for title in page.titles())


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="utterance 'u9'"):
        write_report(tmp_path / "r.html", "t", systems(), ["u9"])
    with pytest.raises(DataError, match="curve 'loss' has no finite point"):
        write_report(tmp_path / "r.html", "t", systems(), curves=[Curve("loss", [(0, float("nan"))])])
    other = score({"u1": REFERENCES["u1"]}, {})
    with pytest.raises(DataError, match="different references"):
        write_report(tmp_path / "r.html", "t", {**systems(), "other": other})
    assert not (tmp_path / "r.html").exists()
