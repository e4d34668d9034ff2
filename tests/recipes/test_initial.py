"""Trainings that begin with parts of other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from asr.families import load_family
from asr.training.checkpoint import save_tensors
from lm.errors import ConfigError
from lm.model_files import save_language_model
from lm.tokenizer import Tokenizer
from lm.transformer import TransformerLM, TransformerLMConfig
from recipes.initial import InitialConfig, begin_with

ENCODER = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}
DECODER = {"layers": 1, "width": 8, "heads": 2, "feed_forward": 16}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])


def model(family: str, tokenizer: Tokenizer, seed: int, **values: Any) -> torch.nn.Module:
    torch.manual_seed(seed)
    return load_family(family, {"encoder": ENCODER, **values}, tokenizer, "here").model


def test_a_taed_begins_as_an_aed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    aed = model("aed", tokenizer, 1, decoder=DECODER)
    taed = model("taed", tokenizer, 2, decoder=DECODER)
    save_tensors(tmp_path / "model.safetensors", aed.state_dict())
    joint = taed.get_parameter("joint.output.weight").clone()
    names = ("normaliser", "encoder", "decoder", "output", "ctc")
    initial = InitialConfig(source=tmp_path, parts={name: name for name in names})
    assert begin_with(taed, [initial], tokenizer) == sum(t.numel() for t in aed.state_dict().values())
    for name, tensor in aed.state_dict().items():
        assert taed.state_dict()[name].equal(tensor)
    assert taed.get_parameter("joint.output.weight").equal(joint)


def test_a_predictor_begins_as_a_language_model(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shape = TransformerLMConfig(layers=1, width=8, heads=2, feed_forward=16)
    lm = TransformerLM(shape, tokenizer.vocab_size, 1)
    save_language_model(tmp_path / "lm.safetensors", "transformer", shape, lm, tokenizer)
    fnt = model("factorized", tokenizer, 2, predictor=shape.model_dump())
    begin_with(fnt, [InitialConfig(source=tmp_path / "lm.safetensors", parts={"predictor": ""})], tokenizer)
    for name, tensor in lm.state_dict().items():
        assert fnt.state_dict()[f"predictor.{name}"].equal(tensor)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"decodr": "decoder"}, "decodr"),
        ({"decoder": "predictor"}, "has nothing for decoder"),
        ({"decoder": "decoder"}, "of shape"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, tokenizer: Tokenizer, parts: dict[str, str], says: str
) -> None:
    aed = model("aed", tokenizer, 1, decoder=DECODER | {"width": 16})
    taed = model("taed", tokenizer, 2, decoder=DECODER)
    save_tensors(tmp_path / "model.safetensors", aed.state_dict())
    with pytest.raises(ConfigError, match=says):
        begin_with(taed, [InitialConfig(source=tmp_path, parts=parts)], tokenizer)
    with pytest.raises(ConfigError, match="nowhere"):
        begin_with(taed, [InitialConfig(source=tmp_path / "nowhere", parts=parts)], tokenizer)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"heads": 4}, "heads 4 for predictor; expected heads 2"),
        ({"positions": "none"}, "positions none for predictor"),
        ({"layers": 2}, "layers 2 for predictor"),
        ({"width": 16}, "width 16 for predictor"),
    ],
)
def test_a_language_model_of_another_shape_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, other: dict[str, Any], says: str
) -> None:
    """Also where the tensors have the same shapes."""
    shape = TransformerLMConfig(layers=1, width=8, heads=2, feed_forward=16)
    changed = TransformerLMConfig(**shape.model_dump() | other)
    lm = TransformerLM(changed, tokenizer.vocab_size, 1)
    save_language_model(tmp_path / "lm.safetensors", "transformer", changed, lm, tokenizer)
    fnt = model("factorized", tokenizer, 2, predictor=shape.model_dump() | {"dropout": 0.5})
    with pytest.raises(ConfigError, match=says):
        begin_with(
            fnt, [InitialConfig(source=tmp_path / "lm.safetensors", parts={"predictor": ""})], tokenizer
        )


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """All shapes are the same, and every token would be another."""
    other = Tokenizer.train(["fell maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    assert other.vocab_size == tokenizer.vocab_size
    shape = TransformerLMConfig(layers=1, width=8, heads=2, feed_forward=16)
    lm = TransformerLM(shape, other.vocab_size, 1)
    save_language_model(tmp_path / "lm.safetensors", "transformer", shape, lm, other)
    values = {"predictor": shape.model_dump()}
    fnt, theirs = model("factorized", tokenizer, 2, **values), model("factorized", other, 1, **values)
    with pytest.raises(ConfigError, match="of another tokenizer"):
        begin_with(
            fnt, [InitialConfig(source=tmp_path / "lm.safetensors", parts={"predictor": ""})], tokenizer
        )
    save_tensors(tmp_path / "model.safetensors", theirs.state_dict())
    other.save(tmp_path / "tokenizer.model")
    with pytest.raises(ConfigError, match="of another tokenizer for predictor"):
        begin_with(fnt, [InitialConfig(source=tmp_path, parts={"predictor": "predictor"})], tokenizer)
    begin_with(fnt, [InitialConfig(source=tmp_path, parts={"encoder": "encoder"})], tokenizer)
    assert fnt.state_dict()["encoder." + next(iter(theirs.get_submodule("encoder").state_dict()))].equal(
        next(iter(theirs.get_submodule("encoder").state_dict().values()))
    )
