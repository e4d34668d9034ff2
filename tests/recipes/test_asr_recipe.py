"""The whole recognition recipe on a handful of synthetic utterances, and what it says about bad calls."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lm.config import build_config, merge
from lm.errors import ConfigError
from recipes.__main__ import main
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig

VALUES: dict[str, Any] = {
    "corpus": "contacts",
    "data": {"train": 12, "dev": 4, "test": 4, "distractors": 5, "train_distractors": 5, "lm_sentences": 50},
    "tokenizer": {"vocab_size": 50},
    "model": {
        "encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
        "predictor": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
        "blank_width": 8,
    },
    "training": {
        "epochs": 1,
        "batch_s": 30.0,
        "average": 1,
        "text_sentences": 4,
        "speeds": [1.0],
        "threads": 1,
        "precision": "fp32",
    },
    "systems": [
        {"name": "FNT", "decoding": {"biasing": "none"}},
        {"name": "FNT + phrases", "decoding": {"biasing": "phrases"}},
        {"name": "C-FNT", "tune": {"class_bonus": [0.0, 2.0]}},
    ],
}
STAGES = ["data", "manifests", "tokenizer", "train", "model", "decode", "score"]


def run(workdir: Path, *changes: dict[str, Any]) -> None:
    values = VALUES
    for change in changes:
        values = merge(values, change)
    asr_recipe(build_config(RecipeConfig, values, "here"), workdir).run()


def ran(printed: str) -> list[str]:
    """Names of the stages that ran."""
    found, name = [], ""
    for line in printed.splitlines():
        if line.startswith("["):
            name = line.split()[1].rstrip(":")
        if line.startswith("    runs: "):
            found.append(name)
    return found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which everything has run once."""
    folder = tmp_path_factory.mktemp("recipe") / "work"
    run(folder)
    return folder


def test_it_makes_a_model_figures_and_a_report(workdir: Path) -> None:
    from asr.bundle import load_bundle
    from asr.recognizer import Recognizer

    names = [system["name"] for system in VALUES["systems"]]
    figures = json.loads((workdir / "RESULTS.json").read_text())
    assert list(figures) == names
    for values in figures.values():
        assert 0.0 <= values["wer"]["value"] <= 2.0
        assert len(values["utterances"]) == 4
        assert values["missing"] == []
    marked = [name for name in names if figures[name]["entities"]["span"] is not None]
    assert marked == ["C-FNT"], "only the class search says where an entity is"
    report = (workdir / "report.html").read_text()
    assert "SYNTHETIC" in report.upper()
    assert all(name in report for name in names)
    tuned = json.loads((workdir / "tuned.json").read_text())
    assert [row["class_bonus"] for row in tuned["C-FNT"]["dev"]] == [0.0, 2.0]
    assert load_bundle(workdir / "model").config["decoding"] == tuned["C-FNT"]["decoding"]
    recordings = sorted((workdir / "data" / "test" / "audio").glob("*.flac"))
    recognizer = Recognizer.load(workdir / "model")
    lines = (workdir / "results" / "c-fnt.jsonl").read_text().splitlines()
    found = {row["id"]: row["text"] for row in map(json.loads, lines)}
    entities = workdir / "data" / "entities.yaml"
    for path in recordings:
        assert recognizer.transcribe(path, entities=entities).text == found[path.stem]


def test_a_second_run_has_nothing_to_do(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(workdir)
    printed = capsys.readouterr().out
    assert ran(printed) == []
    assert printed.count("skipped: unchanged") == len(STAGES)


def test_a_change_runs_only_what_depends_on_it(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = {"decoding": {"class_bonus": -3.0, "search": {"beam": 4}}}
    run(workdir, changed)
    # Hypotheses that come out the same need no new scores.
    assert ran(capsys.readouterr().out)[:2] == ["model", "decode"]
    tuned = json.loads((workdir / "tuned.json").read_text())
    assert tuned["FNT"]["decoding"]["search"]["beam"] == 4
    assert tuned["C-FNT"]["decoding"]["class_bonus"] in (0.0, 2.0)
    fewer = {"systems": VALUES["systems"][1:]}
    run(workdir, changed, fewer)
    assert ran(capsys.readouterr().out) == ["model", "decode", "score"]
    assert list(json.loads((workdir / "RESULTS.json").read_text())) == ["FNT + phrases", "C-FNT"]
    (workdir / "report.html").unlink()
    run(workdir, changed, fewer)
    assert ran(capsys.readouterr().out) == ["score"]


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``python -m recipes`` on a configuration with changes: its exit code and what it says on stderr."""
    monkeypatch.delenv("VOCATIVE_CORPORA", raising=False)

    def start(change: dict[str, Any], *words: str) -> tuple[int, str]:
        path = tmp_path / "conf.yaml"
        path.write_text(yaml.safe_dump(merge(VALUES, change)))
        command = ["recipes", str(path), "--workdir", str(tmp_path / "work"), *words]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().err

    return start


SYSTEM = {"name": "C-FNT"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trainin": {"epochs": 2}}, "did you mean 'training'"),
        ({"training": {"epoch": 2}}, "did you mean 'epochs'"),
        ({"data": {"distractor": 2}}, "did you mean 'distractors'"),
        ({"model": {"blank_widht": 8}}, "did you mean 'blank_width'"),
        ({"model": {"encoder": {"layer": 2}}}, "did you mean 'layers'"),
        ({"loss": {"ctc_wieght": 0.1}}, "did you mean 'ctc_weight'"),
        ({"family": "factorised"}, "did you mean 'factorized'"),
        ({"features": {"num_bins": 40}}, "features.num_bins = 40; expected the 80"),
        ({"decoding": {"biasing": "class"}}, "decoding.biasing = 'class'"),
        ({"systems": []}, "systems"),
        ({"systems": [{**SYSTEM, "decoding": {"biassing": "none"}}]}, "did you mean 'biasing'"),
        ({"systems": [{**SYSTEM, "tune": {"class_bonuss": [1.0]}}]}, "did you mean 'class_bonus'"),
        ({"systems": [{**SYSTEM, "tune": {"lm_scale": [0.5, -1.0]}}]}, "lm_scale = -1.0"),
        ({"systems": [{**SYSTEM, "tune": {"lm_scale": []}}]}, "systems.0.tune.lm_scale"),
        (
            {"systems": [SYSTEM, {"name": "c fnt"}]},
            "system 'c fnt'; expected a name with letters unlike 'C-FNT'",
        ),
        ({"systems": [{"name": "+"}]}, "system '+'"),
        ({"corpus": "an4", "data": {}}, "no folder for corpus 'an4'; expected --corpus DIR"),
        ({"corpus": "an5"}, "corpus = 'an5'"),
        ({"size": "smal"}, "size = 'smal'; expected input should be 'tiny', 'small', 'medium' or 'large'"),
        ({"size": "small", "model": {"encoder": {"layer": 2}}}, "did you mean 'layers'"),
        ({"training": {"noise": {"corpus": "nowhere"}}}, "training.noise.corpus = 'nowhere'"),
        ({"training": {"reverb": {"rt60": [0.2, 0.3]}}}, "did you mean 'rt60_s'"),
    ],
)
def test_settings_that_cannot_be_used_are_told_before_anything_runs(
    call: Call, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    code, said = call(change)
    assert code == 2
    assert says in said
    assert said.startswith("recipes: error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_calls_that_cannot_be_followed(call: Call, tmp_path: Path) -> None:
    assert "--stage 'trian' is no stage" in call({}, "--stage", "trian")[1]
    assert "did you mean 'epochs'" in call({}, "--set", "training.epoch=2")[1]
    code, said = call({"corpus": "an4"}, "--set", "data={}", "--corpus", str(tmp_path / "none"))
    assert code == 1
    assert str(tmp_path / "none") in said
    assert said.count("\n") == 1
    (tmp_path / "file").write_text("")
    code, said = call({}, "--workdir", str(tmp_path / "file"))
    assert (code, said.count("\n")) == (1, 1)
    assert "is not a folder" in said


def test_a_dry_run_writes_nothing(call: Call, tmp_path: Path) -> None:
    assert call({}, "--dry-run")[0] == 0
    assert not (tmp_path / "work").exists()


def test_the_module_runs_from_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "tokeniser": {}}))
    command = [sys.executable, "-m", "recipes", str(path), "--workdir", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"recipes: error: {path}: unknown key 'tokeniser'")
    assert "did you mean 'tokenizer'" in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_a_corpus_that_is_needed_is_asked_for() -> None:
    config = build_config(RecipeConfig, {**VALUES, "corpus": "an4", "data": {}}, "here")
    with pytest.raises(ConfigError, match="--corpus DIR"):
        asr_recipe(config, Path("unused"))


def test_features_are_kept_and_change_nothing(workdir: Path, tmp_path: Path) -> None:
    names = sorted(path.suffix for path in (workdir / "features").iterdir())
    assert names == [".f16", ".json"]
    run(tmp_path / "work", {"training": {"keep_features": False}})
    assert not (tmp_path / "work" / "features").exists()
    weights = (workdir / "weights.safetensors", tmp_path / "work" / "weights.safetensors")
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_predictor_begins_as_a_language_model_of_the_recipe(
    workdir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file

    lm = tmp_path / "work" / "lm" / "seed.safetensors"
    small = {"kind": "transformer", "model": VALUES["model"]["predictor"], "epochs": 1}
    changed = {
        "language_models": {"seed": small},
        "initial": [{"source": str(lm), "parts": {"predictor": ""}}],
    }
    run(tmp_path / "work", changed)
    assert f"million of them from {lm}" in capsys.readouterr().out
    weights, apart = load_file(tmp_path / "work" / "model" / "model.safetensors"), load_file(lm)
    plain = load_file(workdir / "model" / "model.safetensors")
    name = "embedding.weight"
    near = torch.dist(weights[f"predictor.{name}"], apart[name])
    assert near < 0.2 * torch.dist(plain[f"predictor.{name}"], apart[name])
