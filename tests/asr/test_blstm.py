"""The BLSTM encoder and what encoders have in common."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from asr.encoders.blstm import BLSTM, BLSTMConfig, pool
from asr.encoders.build import EncoderConfig, build_encoder
from asr.encoders.conformer import Conformer, ConformerConfig
from asr.families import load_family
from lm.config import Config, build_config
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer


def blstm(**changes: Any) -> BLSTM:
    torch.manual_seed(0)
    values = {"kind": "blstm", "features": 6, "layers": 3, "width": 5, "dropout": 0.0} | changes
    return BLSTM(BLSTMConfig.model_validate(values)).eval()


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 17), min_size=1, max_size=4),
    reductions=st.sampled_from([(), (2,), (2, 2), (3, 1, 2)]),
)
@torch.no_grad()
def test_a_batch_gives_what_its_utterances_give_alone(
    lengths: list[int], reductions: tuple[int, ...]
) -> None:
    encoder = blstm(reductions=reductions)
    features = torch.randn(len(lengths), max(lengths) + 2, 6)
    encoded, frames = encoder(features, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, count = encoder(features[row : row + 1, :length], torch.tensor([length]))
        assert int(count) == int(frames[row]) == math.ceil(length / math.prod(reductions))
        torch.testing.assert_close(encoded[row, : int(count)], alone[0])


def test_pooling_takes_the_largest_and_never_padding() -> None:
    x = -torch.arange(1.0, 8.0).view(1, 7, 1)
    pooled, length = pool(x, torch.tensor([5]), 2)
    assert pooled.flatten().tolist() == [-1, -3, -5, 0]
    assert length.tolist() == [3]


def test_a_stage_uses_the_lowest_layers_and_the_top_one() -> None:
    encoder = blstm(layers=4, reductions=(2, 2, 2)).train()
    features, lengths = torch.randn(2, 32, 6), torch.tensor([32, 20])
    whole, frames = encoder(features, lengths)
    encoder.set_stage(2, (8,))
    encoded, same = encoder(features, lengths)
    assert same.equal(frames)
    encoded.sum().backward()
    used = [block.weight_hh_l0.grad is not None for block in encoder.blocks]
    assert used == [True, False, False, True]
    encoder.set_stage(2, None)
    assert encoder(features, lengths)[1].equal(frames)
    encoder.set_stage(None, None)
    torch.testing.assert_close(encoder(features, lengths)[0], whole)
    assert "_used" not in encoder.state_dict()


def test_a_conformer_grows_too() -> None:
    torch.manual_seed(0)
    config = ConformerConfig(features=6, layers=3, width=8, heads=2, feed_forward=8, kernel=3, dropout=0)
    encoder = Conformer(config)
    features, lengths = torch.randn(1, 16, 6), torch.tensor([16])
    whole = encoder(features, lengths)[0]
    encoder.set_stage(2, None)
    encoder(features, lengths)[0].sum().backward()
    used = [next(block.parameters()).grad is not None for block in encoder.blocks]
    assert used == [True, False, True]
    encoder.set_stage(None, None)
    torch.testing.assert_close(encoder(features, lengths)[0], whole)


@pytest.mark.parametrize(("layers", "reductions"), [(9, None), (2, (2, 2, 2, 2, 2, 2))])
def test_a_stage_that_does_not_fit_is_refused(layers: int, reductions: tuple[int, ...] | None) -> None:
    with pytest.raises(ConfigError, match=r"training.pretrain"):
        blstm().set_stage(layers, reductions)
    with pytest.raises(ConfigError, match=r"training.pretrain"):
        Conformer(ConformerConfig(layers=1)).set_stage(1, (2,))


class Holder(Config):
    """A model's configuration."""

    encoder: EncoderConfig = ConformerConfig()
    """Its encoder."""


def test_the_kind_decides_and_is_a_conformer_if_unsaid() -> None:
    plain: BaseModel = build_config(Holder, {"encoder": {"layers": 2}}, "here").encoder
    other = build_config(Holder, {"encoder": {"kind": "blstm", "reductions": [3]}}, "here").encoder
    assert isinstance(plain, ConformerConfig)
    assert isinstance(other, BLSTMConfig)
    assert other.stacking == 3
    assert isinstance(build_encoder(other), BLSTM)
    with pytest.raises(ConfigError, match="did you mean 'reductions'"):
        build_config(Holder, {"encoder": {"kind": "blstm", "reduction": [3]}}, "here")
    with pytest.raises(ConfigError, match="one reduction a layer"):
        build_config(Holder, {"encoder": {"kind": "blstm", "layers": 1, "reductions": [2, 2]}}, "here")
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        build_config(Holder, {"encoder": {"layer": 3}}, "here")


@pytest.mark.parametrize("family", ["ctc", "transducer", "factorized", "aed", "taed"])
def test_every_family_takes_it(family: str) -> None:
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    model = {"encoder": {"kind": "blstm", "layers": 2, "width": 8, "reductions": [2, 2]}}
    built = load_family(family, model, tokenizer, "here")
    built.model.eval()
    assert built.stacking == 4
    emitter = built.emitter(torch.randn(2, 30, 80), torch.tensor([30, 11]), 1.0, 8)
    assert emitter.lengths.tolist() == [8, 3]


def test_autocast_does_not_need_a_processor_with_bfloat16() -> None:
    torch.manual_seed(0)
    encoder = BLSTM(
        BLSTMConfig(kind="blstm", features=6, layers=2, width=5, reductions=(2,), dropout=0)
    ).eval()
    features, lengths = torch.randn(2, 9, 6), torch.tensor([9, 5])
    with torch.no_grad():
        plain, _ = encoder(features, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            cast, _ = encoder(features, lengths)
    assert torch.equal(plain, cast)
