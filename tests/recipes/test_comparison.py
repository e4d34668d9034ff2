"""Comparisons on a tiny corpus of noises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from asr.cli.main import build_app
from lm.config import build_config, merge
from lm.errors import ConfigError
from recipes.comparison import Comparison, ComparisonConfig, table

VALUES: dict[str, Any] = {
    "seeds": [0, 1],
    "times_from": "ctc",
    "base": {
        "corpus": "speechocean762",
        "tokenizer": {"vocab_size": 20},
        "training": {"epochs": 1, "average": 1, "speeds": [1.0], "threads": 1, "precision": "fp32"},
        "model": {"encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}},
    },
    "experiments": {
        "ctc": {
            "family": "ctc",
            "systems": [{"name": "CTC"}, {"name": "A bonus", "tune": {"label_bonus": [0.0, 1.0]}}],
        },
        "rnnt": {
            "family": "transducer",
            "model": {"joint_width": 16},
            "systems": [{"name": "RNN-T"}],
        },
    },
}


def call(*argv: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build_app(argv), list(argv))
    return result.exit_code, result.stdout, result.stderr


def comparison(source: Path, folder: Path, **changes: Any) -> Comparison:
    config = build_config(ComparisonConfig, merge(VALUES, changes), "here")
    return Comparison(config, folder / "work", folder / "results", source)


def test_runs_leave_figures_and_are_not_done_again(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison(source, tmp_path).run(dry_run=True)
    assert not (tmp_path / "results").exists()
    comparison(source, tmp_path).run(["ctc"])
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["ctc-s0.json", "ctc-s1.json"]
    comparison(source, tmp_path, seeds=[0]).run()
    printed = capsys.readouterr().out
    assert "ctc, seed 0: there already" in printed
    made = comparison(source, tmp_path)
    assert made.found("rnnt", 1) is None
    found = made.found("rnnt", 0)
    assert found is not None
    assert found["training_cpu_seconds"] > 0
    assert len(found["systems"]["RNN-T"]["utterances"]) == 3
    assert found["systems"]["RNN-T"]["delays_s"] is not None
    rows = table(made).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| CTC", "| A bonus", "| RNN-T"]
    assert table(made, ["rnnt"]).splitlines() == [*rows[:2], rows[-1]]
    errors, words = map(sum, zip(*found["systems"]["RNN-T"]["utterances"].values(), strict=True))
    assert f" | {100 * errors / words:.1f} [" in rows[-1]
    assert rows[2].count(",") == 2  # of the interval, and between the two seeds
    assert comparison(source, tmp_path, base={"training": {"peak_lr": 0.5}}).found("ctc", 0) is None


ENCODER = [{"experiment": "ctc", "parts": {"encoder": "encoder", "normaliser": "normaliser"}}]


def test_an_experiment_begins_with_the_model_of_another_of_its_seed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"experiments": {"rnnt": {"initial": ENCODER}}}
    comparison(source, tmp_path, seeds=[1], **changes).run()
    told = capsys.readouterr().out
    assert str(tmp_path / "work" / "ctc-s1" / "model") in told
    assert "ctc-s0" not in told
    elsewhere = Comparison(
        build_config(ComparisonConfig, merge(VALUES, changes), "here"),
        tmp_path / "moved", tmp_path / "results", source,
    )  # fmt: skip
    assert elsewhere.found("rnnt", 1) is not None  # what was found does not hang on the place of the work
    assert comparison(source, tmp_path).found("rnnt", 1) is None
    with pytest.raises(ConfigError, match="initial with experiment and source"):
        comparison(source, tmp_path, experiments={"rnnt": {"initial": [{**ENCODER[0], "source": "x"}]}})
    for known in ("rnnt", "nothing"):
        initial = [{**ENCODER[0], "experiment": known}]
        with pytest.raises(
            ConfigError, match=f"experiment 'rnnt': initial.experiment = '{known}'.*before it: ctc"
        ):
            comparison(source, tmp_path, experiments={"rnnt": {"initial": initial}})


def test_without_the_aligner_there_are_no_delays(source: Path, tmp_path: Path) -> None:
    comparison(source, tmp_path, seeds=[0]).run(["rnnt"])
    found = json.loads((tmp_path / "results" / "rnnt-s0.json").read_text())
    assert found["systems"]["RNN-T"]["delays_s"] is None


def test_mistakes_are_told_before_anything_runs(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="times_from = 'cct'.*one of ctc, rnnt"):
        comparison(source, tmp_path, times_from="cct")
    with pytest.raises(ConfigError, match="experiment 'rnnt'.*joint"):
        comparison(source, tmp_path, experiments={"rnnt": {"model": {"joint": 3}}})
    with pytest.raises(ConfigError, match="seeds"):
        comparison(source, tmp_path, seeds=[])
    file = tmp_path / "conf" / "all.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(VALUES))
    code, _, told = call("compare", str(file), "--corpus", str(source), "--only", "ctc,aed")
    assert (code, told.count("--only aed; expected one of ctc, rnnt")) == (2, 1), told
    assert not (tmp_path / "work").exists()


def test_the_command_prints_the_table_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VOCATIVE_CORPORA", raising=False)
    file = tmp_path / "conf" / "all.yaml"
    file.parent.mkdir()
    file.write_text(yaml.safe_dump(VALUES))
    code, shown, _ = call("compare", str(file), "--table")  # no recordings are needed for it
    assert code == 0
    assert shown.startswith("| system | parameters | WER %")
    assert len(shown.splitlines()) == 2
    code, _, told = call("compare", str(file), "--table", "--results", str(tmp_path / "nowhere"))
    assert (code, "nowhere" in told) == (2, True)
    code, _, told = call("compare", str(file), "--table", "--set", "seeds=[1,1]")
    assert (code, "each seed once" in told) == (2, True)
