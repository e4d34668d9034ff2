from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from asr.scoring.read import read_hypotheses, read_references
from lm.errors import DataError


def test_kaldi_text_with_and_without_tags(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("u1 call  <contact>ann lee</contact>\r\nu2\n\nu3\tplain words\n")
    references = read_references(file)
    assert list(references) == ["u1", "u2", "u3"]
    assert references["u1"].entities == [("contact", "ann lee", 1, 3)]
    assert (references["u2"].surface, references["u3"].surface) == ("", "plain words")
    hypotheses = read_hypotheses(file)
    span = hypotheses["u1"].entities[0]
    assert (span.class_name, span.start, span.end, hypotheses["u1"].text) == ("contact", 1, 3, "call ann lee")
    assert math.isnan(span.confidence)


def test_unk_is_a_word_of_a_hypothesis(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("u1 call <unk> now\n")
    assert read_hypotheses(tmp_path / "text")["u1"].text == "call <unk> now"


def test_results_of_a_batch(tmp_path: Path) -> None:
    span = {"class_name": "contact", "text": "ann", "written": "Ann", "id": None, "start": 1, "end": 2}
    span |= {"start_s": 0.1, "end_s": 0.2, "confidence": 0.7}
    rows = [
        {"id": "u1", "error": "cut short"},
        {"id": "u2", "text": "old", "seconds": 1.0, "entities": []},
        {"id": "u1", "text": "call ann", "seconds": 2.5, "entities": [span], "fingerprint": "x"},
        {"id": "u2", "error": "now broken"},
        {"id": "u3", "text": "line\u2028separator", "seconds": None, "entities": []},
    ]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = read_hypotheses(file)
    assert list(found) == ["u1", "u3"]
    assert (found["u1"].text, found["u1"].duration_s, found["u1"].entities[0].written) == (
        "call ann",
        2.5,
        "Ann",
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text", "u1 a\nu1 b\n", "text:2: id 'u1' again"),
        ("text", "u1 call <contact>ann</city> now\n", "text:1: .*closed by"),
        ("h.jsonl", '{"id": "a", "text": "b"}\n{"id": "a"\n', "h.jsonl:2 is no transcript"),
        ("h.jsonl", '{"id": "a"}\n', "h.jsonl:1 is no transcript .*text"),
        ("h.jsonl", "[1]\n", "h.jsonl:1 is no transcript"),
    ],
)
def test_bad_hypotheses_are_named_with_their_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_hypotheses(tmp_path / name)


def test_bad_references_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent cannot be read"):
        read_references(tmp_path / "absent")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DataError, match="empty is empty"):
        read_references(tmp_path / "empty")
    (tmp_path / "bytes").write_bytes(b"u1 \xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_references(tmp_path / "bytes")
