from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from asr.cli.score import score, system_names
from asr.writers import write_joined
from decoding.result import EntitySpan, Transcript
from lm.errors import ConfigError

SPAN = EntitySpan("contact", "ann", "Ann", None, 1, 2, 0.0, 0.1, 0.9)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "ref").write_text("u1 call <contact>ann</contact> now\nu2 what time is it\n")
    (tmp_path / "plain.txt").write_text("u1 call an now\nu2 what time zoe is it\n")
    transcripts = [
        Transcript("u1", "call ann now", 1.0, (), (SPAN,)),
        Transcript("u2", "what time is it", 1.0),
    ]
    write_joined(transcripts, "jsonl", tmp_path / "classes.jsonl")
    (tmp_path / "names.yaml").write_text("contact: [Ann, Zoe]\n")
    return tmp_path


def test_systems_side_by_side_with_page_and_json(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page, figures = files / "r.html", files / "r.json"
    code = score(
        files / "ref",
        [files / "plain.txt", files / "classes.jsonl"],
        files / "names.yaml",
        page,
        figures,
    )
    assert code == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0].split() == ["plain", "classes"]
    assert "less plain" in out
    content = json.loads(figures.read_text())
    assert content["plain"]["wer"]["sub"] == content["plain"]["wer"]["ins"] == 1
    assert content["plain"]["false_alarms_without_entities"]["number"] == 1
    assert content["classes"]["entities"]["span"]["tp"] == 1
    assert page.read_text().count("<article") == 2


def test_names_counted_against_lists_by_recording(files: Path) -> None:
    figures = files / "r.json"
    for name, alarms in (("u1", 0), ("u2", 1)):
        (files / "own.jsonl").write_text(json.dumps({"id": name, "entities": {"contact": ["Zoe"]}}) + "\n")
        assert score(files / "ref", [files / "plain.txt"], files / "own.jsonl", None, figures) == 0
        content = json.loads(figures.read_text())["plain"]
        assert content["false_alarms_without_entities"]["number"] == alarms


def test_one_system_by_the_command_line(files: Path) -> None:
    app = typer.Typer()
    app.command()(score)
    (files / "half.txt").write_text("u1 call ann now\n")
    result = CliRunner().invoke(app, [str(files / "ref"), str(files / "half.txt")], standalone_mode=False)
    assert result.exception is None
    assert result.return_value == 1, "an utterance is missing"


def test_system_names_tell_files_apart() -> None:
    assert system_names([Path("a/fnt.txt"), Path("b/cfnt.jsonl")]) == ["fnt", "cfnt"]
    assert system_names([Path("/x/a/hyp.txt"), Path("/x/b/hyp.txt")]) == ["a/hyp", "b/hyp"]
    with pytest.raises(ConfigError, match="a file of its own"):
        system_names([Path("a/hyp.txt"), Path("a/hyp.txt")])
