"""Whole recipes on tiny corpora: one without classes and lists, one with a list for each recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asr.bundle import load_bundle
from asr.decoding_config import DecodingConfig
from lm.config import build_config, merge
from lm.errors import ConfigError
from recipes.asr import asr_recipe
from recipes.comparison import Comparison, ComparisonConfig
from recipes.config import RecipeConfig
from recipes.lm import lm_recipe
from recipes.lm_config import LMRecipeConfig

VALUES: dict[str, Any] = {
    "corpus": "speechocean762",
    "family": "ctc",
    "tokenizer": {"vocab_size": 20},
    "model": {"encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}},
    "training": {
        "epochs": 1,
        "batch_s": 30.0,
        "average": 1,
        "speeds": [1.0],
        "threads": 1,
        "precision": "fp32",
    },
    "language_models": {"ngram": {"kind": "ngram", "order": 2}},
    "systems": [
        {"name": "CTC"},
        {
            "name": "CTC + n-gram",
            "decoding": {"fusion": {"lm": "ngram"}},
            "tune": {"fusion.weight": [0.1, 0.2]},
        },
    ],
}


def test_a_corpus_without_classes_runs_through_every_stage(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    recipe = asr_recipe(build_config(RecipeConfig, VALUES, "here"), work, source)
    recipe.run()
    from lm.tokenizer import Tokenizer

    assert Tokenizer.load(work / "tokenizer.model").classes == ()
    assert sorted(path.name for path in (work / "data").iterdir()) == ["dev", "lm_text.txt", "test", "train"]
    figures = json.loads((work / "RESULTS.json").read_text())
    assert list(figures) == ["CTC", "CTC + n-gram"]
    for values in figures.values():
        assert values["wer"]["value"] is not None
        assert values["false_alarms"] is None
        assert values["classes"] == {}
        assert values["entities"]["span"] is None
        assert len(values["utterances"]) == 3
    printed = capsys.readouterr().out
    assert "entity lists" not in printed
    assert "nan" not in printed
    table = printed[printed.index("test: 3 utterances") :]
    assert "WER %" in table
    assert "false alarms" not in table
    assert "nan" not in (work / "report.html").read_text().lower().split("<article")[0].split("<table")[1]
    recipe.run()
    assert capsys.readouterr().out.count("skipped: unchanged") == 8


def test_a_model_with_its_own_language_model_needs_no_classes(source: Path, tmp_path: Path) -> None:
    tiny = VALUES["model"]["encoder"]
    values = {
        **VALUES,
        "family": "factorized",
        "model": {
            "encoder": tiny,
            "predictor": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
            "blank_width": 8,
        },
        "language_models": {},
        "systems": [
            {"name": "FNT", "decoding": {"biasing": "none"}, "tune": {"lm_scale": [0.5, 1.0]}},
        ],
    }
    work = tmp_path / "work"
    asr_recipe(build_config(RecipeConfig, values, "here"), work, source).run()
    assert json.loads((work / "RESULTS.json").read_text())["FNT"]["entities"]["span"] is None
    assert load_bundle(work / "model").config["decoding"]["biasing"] == "auto", "lists handed over are used"


def test_each_recording_is_searched_with_its_own_list(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from asr.recognizer import Recognizer
    from recipes.corpora.lists import read_lists

    systems = [
        {"name": "plain", "decoding": {"biasing": "none"}},
        {"name": "own", "decoding": {"biasing": "phrases", "phrase_bonus": 30.0}},
        {
            "name": "classes",
            "decoding": {"biasing": "classes", "fusion": {"lm": "ngram"}, "class_bonus": 20.0},
        },
    ]
    values = merge(VALUES, {"corpus": "mini_librispeech", "systems": systems})
    work = tmp_path / "work"
    asr_recipe(build_config(RecipeConfig, values, "here"), work, source).run()
    found = {
        name: {r["id"]: r["text"] for r in map(json.loads, (work / "results" / f"{name}.jsonl").open())}
        for name in ("plain", "own")
    }
    assert found["own"] != found["plain"], "so high a bonus shows"
    recognizer = Recognizer.load(work / "model")
    lists = read_lists("utterance", work / "data", "test")
    assert isinstance(lists, dict)
    assert len({catalog.fingerprint() for catalog in lists.values()}) > 1
    options = DecodingConfig(**json.loads((work / "tuned.json").read_text())["own"]["decoding"])
    for id, catalog in lists.items():
        text = recognizer.transcribe(source / "audio" / f"{id}.wav", entities=catalog, options=options).text
        assert text == found["own"][id]
    figures = json.loads((work / "RESULTS.json").read_text())
    assert all(values["false_alarms"] is not None for values in figures.values())
    assert [name for name, values in figures.items() if values["entities"]["span"]] == ["classes"]
    assert "entity lists: " in capsys.readouterr().out


def test_what_a_corpus_cannot_do_is_told_before_anything_runs(tmp_path: Path) -> None:
    biased = {"systems": [{"name": "CTC", "decoding": {"biasing": "phrases"}}]}
    with pytest.raises(ConfigError, match="biasing 'phrases' on corpus 'speechocean762'"):
        asr_recipe(build_config(RecipeConfig, merge(VALUES, biased), "here"), tmp_path / "work", tmp_path)
    values = merge(VALUES, {"corpus": "kathleen"})
    with pytest.raises(ConfigError, match="no training set.*egs/kathleen/run.sh"):
        asr_recipe(build_config(RecipeConfig, values, "here"), tmp_path / "work", tmp_path)
    values = merge(VALUES, {"data": {"books": True}})
    with pytest.raises(ConfigError, match="books"):
        asr_recipe(build_config(RecipeConfig, values, "here"), tmp_path / "work", tmp_path)
    assert not (tmp_path / "work").exists()


EGS = Path(__file__).parents[2] / "egs"


@pytest.mark.parametrize(
    "path", sorted(EGS.glob("*/conf/*.yaml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_every_configuration_makes_a_recipe(path: Path, tmp_path: Path) -> None:
    from lm.config import read_yaml

    values = read_yaml(path)
    if "experiments" in values:
        config = build_config(ComparisonConfig, values, str(path))
        Comparison(config, tmp_path / "work", tmp_path / "results", tmp_path)
    elif values.get("recipe") == "lm":
        lm_recipe(build_config(LMRecipeConfig, values, str(path)), tmp_path / "work", tmp_path)
    else:
        recipe = asr_recipe(build_config(RecipeConfig, values, str(path)), tmp_path / "work", tmp_path)
        assert recipe.stages[-1].name == "score"


def test_two_processes_of_torchrun_run_a_recipe(source: Path, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    import yaml

    config = tmp_path / "ctc.yaml"
    values = merge(VALUES, {"systems": [{"name": "CTC"}], "training": {"accumulate": 2, "batch_s": 5.0}})
    config.write_text(yaml.safe_dump(values))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "recipes", str(config), "--corpus", str(source), "--workdir", str(tmp_path / "work")),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("million parameters") == 1  # the second process is silent
    assert list(json.loads((tmp_path / "work" / "RESULTS.json").read_text())) == ["CTC"]
    values["training"]["pretrain"] = [{"epochs": 1, "layers": 1}]
    config.write_text(yaml.safe_dump(values))
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert refused.returncode != 0
    assert "leave epochs for the whole model" in refused.stderr
