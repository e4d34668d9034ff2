"""Models by size: as many parameters as the table says, and what a configuration says itself wins."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import recipes.sizes as sizes
from asr.families import load_family
from lm.config import build_config
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer
from recipes.config import RecipeConfig

TABLE = [line.split() for line in (sizes.__doc__ or "").splitlines() if line.startswith("    ")]
FAMILIES = TABLE[0][1:]


def recipe(**values: Any) -> RecipeConfig:
    return build_config(RecipeConfig, {"corpus": "an4", "systems": [{"name": "x"}], **values}, "here")


def parameters(config: RecipeConfig) -> float:
    """Millions."""
    tokenizer = cast("Tokenizer", SimpleNamespace(vocab_size=500, num_classes=4))
    with torch.device("meta"):
        model = load_family(config.family, config.model, tokenizer, "here").model
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_the_table_has_every_size_and_family() -> None:
    assert [row[0] for row in TABLE[1:]] == list(sizes.SIZES)
    assert sorted(FAMILIES) == ["aed", "ctc", "factorized", "taed", "transducer"]


@pytest.mark.parametrize("row", TABLE[1:], ids=lambda row: row[0])
def test_models_have_as_many_parameters_as_the_table_says(row: list[str]) -> None:
    for family, millions in zip(FAMILIES, row[1:], strict=True):
        assert f"{parameters(recipe(family=family, size=row[0])):.1f}" == millions


def test_what_the_configuration_says_wins() -> None:
    config = recipe(size="small", model={"encoder": {"layers": 3, "chunk": 16}, "blank_width": 32})
    assert config.model["encoder"] == {
        "layers": 3,
        "chunk": 16,
        "width": 144,
        "heads": 4,
        "feed_forward": 576,
    }
    assert config.model["blank_width"] == 32
    assert config.model["predictor"]["width"] == 144
    assert recipe(**config.model_dump(mode="json")) == config


def test_without_a_size_nothing_is_set() -> None:
    assert recipe(model={"encoder": {"layers": 3}}).model == {"encoder": {"layers": 3}}
    given = {"family": "ctc", "model": {"encoder": {"layers": 3}}}
    sizes.tiny(given)
    assert given == {"family": "ctc", "model": {"encoder": {"layers": 3}}}


@pytest.mark.parametrize("size", sizes.SIZES)
def test_other_kinds_of_parts_have_sizes_too(size: str) -> None:
    blstm = recipe(size=size, family="aed", model={"encoder": {"kind": "blstm"}, "decoder": {"kind": "lstm"}})
    assert 0.3 < parameters(blstm) < 150
    assert "heads" not in blstm.model["encoder"]


@pytest.mark.parametrize("size", ["smal", "", 3, ["small"]])
def test_an_unknown_size_is_told(size: object) -> None:
    with pytest.raises(ConfigError, match=r"here: size = .*'tiny', 'small', 'medium' or 'large'"):
        recipe(size=size)
