"""Verbs of the command with a tiny real model, and processes of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from scripted_cli import call, save, transcribe, unusable

from asr.bundle import save_bundle
from asr.cli.main import VERBS

TINY = {
    "encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
    "predictor": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
    "blank_width": 8,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny real model of random weights, recordings, and a list that encodes in part."""
    import numpy as np
    import soundfile
    import torch

    from asr.families import load_family
    from lm.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("real")
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    torch.manual_seed(0)
    weights = load_family("factorized", TINY, tokenizer, "here").model.state_dict()
    save_bundle(
        folder / "model", {"family": "factorized", "model": TINY}, weights, tokenizer.model_bytes, "# Tiny"
    )
    noise = np.random.default_rng(0).standard_normal(16000).astype("float32") / 10
    (folder / "in").mkdir()
    soundfile.write(folder / "in" / "a.wav", noise, 16000)
    soundfile.write(folder / "in" / "z.flac", noise[:8000], 8000)
    (folder / "in" / "empty.wav").write_bytes(b"")
    (folder / "in" / "text.wav").write_text("no audio " * 99)
    (folder / "names.yaml").write_text("contact: [maja novak, 漢字, anna]\n")
    return folder


def test_the_whole_road_with_a_real_model(real: Path, tmp_path: Path) -> None:
    words = [real / "in", real / "gone.wav", "-m", real / "model", "-e", real / "names.yaml"]
    result = transcribe(*words, "-o", tmp_path / "out", "-f", "txt,json,jsonl,ctm,srt,vtt,stm,textgrid")
    assert result.exit_code == 1, result.output
    assert "2 done, 0 skipped, 3 failed" in result.stderr
    assert result.stderr.count("asr: failed: ") == 3
    assert "warning: 3 entries in 1 classes: 2 ok, 1 failed" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    seconds = {row["id"]: row.get("seconds") for row in rows}
    assert seconds == {"a": 1.0, "z": 1.0, "empty": None, "text": None, "gone": None}
    assert len(list((tmp_path / "out").glob("[az].*"))) == 16
    printed = transcribe(*words).stdout.splitlines()
    assert printed == [f"{row['id']}\t{row['text']}" for row in rows if "text" in row]


def test_classes_shows_every_entry(real: Path) -> None:
    words = ["classes", real / "names.yaml", "--model", real / "model"]
    shown = call(*words)
    assert shown.exit_code == 1, "an entry cannot be recognised"
    assert [line.split()[1] for line in shown.stdout.splitlines() if "contact" in line] == [
        "anna",
        "maja",
        "漢字",
    ]
    assert "2 ok, 1 failed" in shown.stderr
    problems = call(*words, "--problems").stdout
    assert "漢字" in problems
    assert "maja" not in problems
    found = json.loads(call(*words, "--json").stdout)
    assert found["counts"] == {"ok": 2, "partly": 0, "failed": 1}
    assert len(found["entries"]) == 3


def test_info_tells_what_a_model_is(real: Path, tmp_path: Path) -> None:
    facts = json.loads(call("info", real / "model", "--json").stdout)
    assert (facts["family"], facts["format"], facts["classes"]) == ("factorized", 1, ["contact"])
    assert facts["parameters"] > 1000
    assert facts["config"] == {"model": TINY}
    assert facts["files"] == ["README.md", "config.yaml", "model.safetensors", "tokenizer.model"]
    assert f"parameters: {facts['parameters']:,}" in call("info", real / "model").stdout
    model = save(tmp_path / "m", 1.0)
    (model / "model.safetensors").write_bytes(b"")
    unusable(call("info", model), "cut short")
    other = shutil.copytree(real / "model", tmp_path / "other") / "config.yaml"
    other.write_text(other.read_text() + "decoding: {biasing: nonsense}\n")
    unusable(call("info", other.parent), "decoding: biasing = 'nonsense'")


def test_every_verb_loads_and_teaches() -> None:
    for verb, part in [(v, p) for v in VERBS for p in v.parts or ("",)]:
        assert callable(verb.load(part))
        words = [verb.name, *part.split()]
        result = call(*words, "--help")
        assert result.exit_code == 0
        assert f"asr {' '.join(words)} " in result.stdout.split("Examples:")[1], "examples as pasted"


def run(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asr.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


def test_help_loads_nothing_heavy() -> None:
    script = """
        import sys
        sys.argv = ["asr", "--help"]
        from asr.cli.main import main
        try:
            main()
        except SystemExit as end:
            assert end.code == 0
        heavy = {"torch", "numpy", "librosa", "sentencepiece", "asr.cli.transcribe"} & set(sys.modules)
        print("heavy:", sorted(heavy))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert "transcribe" in done.stdout
    assert "heavy: []" in done.stdout, done.stderr


def test_debug_goes_anywhere_and_the_process_ends_with_the_code(tmp_path: Path) -> None:
    plain = run("info", tmp_path / "none")
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("asr: error: ")
    debug = run("info", tmp_path / "none", "--debug")
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr
    assert debug.stderr.splitlines()[-1].startswith("asr: error: ")
