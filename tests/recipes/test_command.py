"""``asr train``: the recipes as a verb of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from asr.cli.main import build_app
from recipes.verbs import TRAIN


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"corpus": "an4", "family": "ctc", "systems": [{"name": "CTC"}]}))
    return path


def call(*argv: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(argv), list(argv))
    return result.exit_code, result.stdout, result.stderr


def test_the_verb_is_found_and_explained() -> None:
    assert TRAIN.load().__name__ == "train"
    assert "train" in call("--help")[1]
    assert "--dry-run" in call("train", "--help")[1]


def test_folders_have_usual_places(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpora" / "an4").mkdir(parents=True)
    monkeypatch.setenv("VOCATIVE_CORPORA", str(tmp_path / "corpora"))
    code, shown, _ = call("train", str(config), "--dry-run")
    assert code == 0
    assert f"prepare an4 from {tmp_path / 'corpora' / 'an4'}" in shown
    assert not (tmp_path / "exp").exists()
    code, _, error = call("train", str(config))
    assert code == 2
    assert "an4" in error
    assert len(error.strip().splitlines()) == 1
    assert (tmp_path / "exp" / "an4-small").is_dir()


def test_a_call_that_cannot_be_used_gives_one_line(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOCATIVE_CORPORA", raising=False)
    for arguments, says in (
        ([str(config)], "--corpus DIR"),
        ([str(config), "--set", "familiy=ctc"], "did you mean 'family'"),
        (["nothing.yaml"], "nothing.yaml"),
        ([str(config), "--set", "training.shard=true", "--corpus", "."], "start with torchrun"),
    ):
        code, _, error = call("train", *arguments)
        assert code == 2
        assert says in error
        assert len(error.strip().splitlines()) == 1


def test_a_comparison_is_sent_to_its_verb(config: Path) -> None:
    config.write_text(yaml.safe_dump({"base": {"corpus": "an4"}, "experiments": {"one": {}}}))
    code, _, told = call("train", str(config))
    assert code == 2
    assert f"run asr compare {config}" in " ".join(told.split())
