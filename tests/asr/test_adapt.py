"""Text-only adaptation: the predictor learns a text, all else of the model stays to the byte."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from asr.bundle import save_bundle
from asr.cli.main import build_app
from asr.data.text_batches import TextBatch
from asr.families import load_family
from asr.losses.text import adaptation_loss
from asr.training.text_loop import TextTrainer
from lm.tokenizer import Tokenizer
from lm.transformer import TransformerLM, TransformerLMConfig

ENCODER = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}
PREDICTOR = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "dropout": 0.1}
MODELS: dict[str, dict[str, Any]] = {
    "factorized": {"encoder": ENCODER, "predictor": PREDICTOR, "blank_width": 8},
    "transducer": {"encoder": ENCODER, "joint_width": 16},
    "ctc": {"encoder": ENCODER},
}
SAID = ["call <contact>maja novak</contact> now", "turn the light off", "call me a taxi now"]


def save(folder: Path, family: str = "factorized") -> Path:
    tokenizer = Tokenizer.train([*SAID, "abcdefghijklmnopqrstuvwxyz"] * 20, 45, ["contact"])
    torch.manual_seed(0)
    weights = load_family(family, MODELS[family], tokenizer, "here").model.state_dict()
    tokenizer.save(folder.parent / "tokenizer.model")
    data = (folder.parent / "tokenizer.model").read_bytes()
    config = {"family": family, "model": MODELS[family]}
    return save_bundle(
        folder, config, weights, data, "# Mine\n", extra={"classes/contact.yaml": b"contact: [a]\n"}
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "requests.txt"
    path.write_text("\n".join(SAID * 20) + "\n")
    return path


def adapt(text: Path, *words: object) -> Result:
    argv = ["adapt", str(text), *map(str, words)]
    return CliRunner().invoke(build_app(argv), argv)


def batch_of(tokens: list[list[int]]) -> TextBatch:
    rows = [torch.tensor(row) for row in tokens]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return TextBatch(padded, torch.tensor([len(row) for row in rows]), None)


def language_model(seed: int) -> TransformerLM:
    torch.manual_seed(seed)
    config = TransformerLMConfig(layers=1, width=8, heads=2, feed_forward=8, dropout=0.0)
    return TransformerLM(config, 4, 1).double()


# ---- the loss ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 1.0])
def test_the_loss_is_what_it_says(kl_weight: float) -> None:
    """Against one distribution after another, sentence by sentence."""
    model, base = language_model(1), language_model(2)
    sentences = [[0, 3, 1], [2], [4, 1]]
    total, count = 0.0, 0
    with torch.no_grad():
        for sentence in sentences:
            for place, token in enumerate(sentence):
                prefix = torch.tensor([sentence[:place]], dtype=torch.int64)
                now, was = (m(prefix)[0, -1].float().softmax(-1) for m in (model, base))
                away = sum(float(p * (p / q).log()) for p, q in zip(was, now, strict=True))
                total += -(1 - kl_weight) * float(now[token].log()) + kl_weight * away
                count += 1
    loss, tokens = adaptation_loss(model, base, kl_weight, batch_of(sentences))
    assert tokens == count
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_model_that_is_what_it_was_is_not_pulled_anywhere() -> None:
    model = language_model(1)
    loss, _ = adaptation_loss(model, copy.deepcopy(model), 1.0, batch_of([[0, 3, 1]]))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-6 for p in model.parameters())


# ---- the command -------------------------------------------------------------------------------------------


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def figures(result: Result, name: str) -> tuple[float, float]:
    """Perplexity a word before and after."""
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(f"{name}, as spoken")]
    before, after = (float(part.split()[-1]) for part in line.split(" [")[:2])
    return before, after


def test_the_text_becomes_likelier_and_the_rest_of_the_model_stays(
    model: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    result = adapt(text, "--model", model, "--out", out, "--peak-lr", 1e-2, "--general", text)
    assert result.exit_code == 0, result.output
    before, after = figures(result, "general")
    assert after < 0.7 * before
    old, new = tensors(model), tensors(out)
    assert old.keys() == new.keys()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("predictor.") for name in changed)
    assert (out / "classes" / "contact.yaml").read_bytes() == b"contact: [a]\n"
    assert (out / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()
    assert "requests.txt" in (out / "README.md").read_text()


def test_the_more_weight_the_divergence_has_the_less_is_forgotten(
    model: Path, text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("zyx wvu qpo\n")

    def forgotten(kl: float) -> float:
        out = tmp_path / f"new-{kl}"
        result = adapt(
            text,
            "--model",
            model,
            "--out",
            out,
            "--peak-lr",
            1e-2,
            "--kl",
            kl,
            "--epochs",
            20,
            "--general",
            other,
        )
        before, after = figures(result, "general")
        return after / before

    assert forgotten(0.0) > 1.5
    assert forgotten(0.95) < 0.7 * forgotten(0.0)


def test_an_adaptation_that_does_not_help_changes_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    dev, out = tmp_path / "dev.txt", tmp_path / "new"
    dev.write_text("zyx wvu qpo\n")
    result = adapt(text, "--dev", dev, "--model", model, "--out", out, "--peak-lr", 1e-2, "--epochs", 20)
    assert result.exit_code == 0, result.output
    old, new = tensors(model), tensors(out)
    if "no likelier" in result.stderr:
        assert all(torch.equal(old[name], new[name]) for name in old)
    else:
        pytest.fail(result.stderr)


def test_one_that_was_stopped_goes_on(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--model", model, "--peak-lr", 1e-2, "--epochs", 8
    assert adapt(text, *words, "--out", tmp_path / "whole").exit_code == 0
    update = TextTrainer._update

    def killed(self: TextTrainer, batch: TextBatch, step: int) -> None:
        if step == 3:
            self._ask_to_stop()
        update(self, batch, step)

    monkeypatch.setattr(TextTrainer, "_update", killed)
    stopped = adapt(text, *words, "--out", tmp_path / "cut")
    assert stopped.exit_code == 130
    assert "again" in stopped.stderr
    assert not (tmp_path / "cut").exists()
    monkeypatch.setattr(TextTrainer, "_update", update)
    assert adapt(text, *words, "--out", tmp_path / "cut").exit_code == 0
    one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["ctc", "transducer"])
def test_models_without_a_language_model_are_refused(family: str, text: Path, tmp_path: Path) -> None:
    result = adapt(text, "--model", save(tmp_path / family, family), "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert "factorized" in result.stderr
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_used_is_said_in_one_line(model: Path, text: Path, tmp_path: Path) -> None:
    for name, content in (("empty", ""), ("strange", "日本\n" * 20), ("short", "call me\n")):
        path = tmp_path / f"{name}.txt"
        path.write_text(content)
        result = adapt(path, "--model", model, "--out", tmp_path / "new")
        assert result.exit_code == 2, (name, result.output)
        assert result.stderr.splitlines()[-1].startswith("asr: error: ")
    assert adapt(text, "--model", model, "--out", model).exit_code == 2
    assert adapt(tmp_path / "none.txt", "--model", model, "--out", tmp_path / "new").exit_code == 2


def test_a_text_without_tags_is_named_where_the_model_knows_classes(
    model: Path, text: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("turn the light off\ncall me a taxi now\n" * 20)
    for given, warned in ((plain, True), (text, False)):
        result = adapt(given, "--model", model, "--out", tmp_path / given.stem, "--epochs", 1)
        assert result.exit_code == 0, result.output
        assert (f"warning: {given.name} has no class tags" in result.stderr) == warned
