"""Bidirectional LSTM encoder with max-pooling in time (Zeyer et al. 2018, arXiv 1805.03294, section 2)."""

from __future__ import annotations

import math
from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from asr.encoders.masks import valid_frames
from lm.config import Config
from lm.errors import ConfigError
from lm.recurrent import run_lstm


class BLSTMConfig(Config):
    """Shape of a bidirectional LSTM encoder."""

    kind: Literal["blstm"]
    """What it is."""
    features: int = 80
    """Filter-bank bins per input frame."""
    layers: int = Field(4, ge=1)
    """Number of layers."""
    width: int = Field(192, ge=1)
    """Width of each direction; an encoder frame has twice as many numbers."""
    reductions: tuple[int, ...] = (2, 2)
    """Frames joined into one, the largest of each number, behind the first layer, the second, and so on."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the output of every layer, in training only."""

    @model_validator(mode="after")
    def _pools(self) -> BLSTMConfig:
        if len(self.reductions) > self.layers or any(each < 1 for each in self.reductions):
            raise ValueError("at most one reduction a layer, each of 1 or more frames")
        return self

    @property
    def stacking(self) -> int:
        """Input frames that an encoder frame stands for."""
        return math.prod(self.reductions)

    @property
    def chunk(self) -> int:
        """0: it sees the whole utterance."""
        return 0


class BLSTM(nn.Module):
    """Features ``(B, S, F)`` in, encoder frames ``(B, T, 2 width)`` out, T = ceil(S / stacking).

    Pooling rounds up and never mixes in padding, so a batch gives what its utterances give alone.
    """

    def __init__(self, config: BLSTMConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.features] + [2 * config.width] * (config.layers - 1)
        self.blocks = nn.ModuleList(
            nn.LSTM(width, config.width, batch_first=True, bidirectional=True) for width in widths
        )
        self.dropout = nn.Dropout(config.dropout)
        self.set_stage(None, None)

    @property
    def width(self) -> int:
        """Width D of the output."""
        return 2 * self.config.width

    def set_stage(self, layers: int | None, reductions: tuple[int, ...] | None) -> None:
        """Use only the first ``layers`` - 1 layers and the top one, with other reductions; None for all there is.

        Layers to come are inserted below the top layer, which is kept (section 4 of the paper). They have their
        weights from the start and get no gradient until they are used. No part of the weights.

        Raises:
            ConfigError: more layers or reductions than there are.
        """
        count = self.config.layers if layers is None else layers
        pools = self.config.reductions if reductions is None else reductions
        if count > self.config.layers or len(pools) > max(count, len(self.config.reductions)):
            raise ConfigError(
                f"a stage of {count} layers and {len(pools)} reductions",
                f"at most the encoder's {self.config.layers} layers and a reduction each",
                "correct training.pretrain",
            )
        self._used = [*range(min(count, self.config.layers) - 1), self.config.layers - 1]
        self._pools = pools

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            features: ``(B, S, F)`` normalised features, padded with anything.
            lengths: ``(B,)`` input frames of each utterance, 1 or more.

        Returns:
            Encoder frames ``(B, T, D)`` and their number ``(B,)``.
        """
        x = features
        for place, layer in enumerate(self._used):
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            hidden, _ = run_lstm(cast("nn.LSTM", self.blocks[layer]), packed)
            x, _ = pad_packed_sequence(hidden, batch_first=True, total_length=x.shape[1])
            # The top layer of a stage stands above all reductions that the stage has left.
            pools = self._pools[place:] if place == len(self._used) - 1 else self._pools[place : place + 1]
            if (size := math.prod(pools)) > 1:
                x, lengths = pool(x, lengths, size)
            x = self.dropout(x)
        return x, lengths


def pool(x: Tensor, lengths: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The largest of each ``size`` frames of ``x`` ``(B, T, D)``, the last ones possibly fewer."""
    x = x.masked_fill(~valid_frames(lengths, x.shape[1])[..., None], -torch.inf)
    x = F.pad(x, (0, 0, 0, -x.shape[1] % size), value=-torch.inf)
    x = x.reshape(len(x), -1, size, x.shape[2]).amax(2)
    lengths = (lengths + size - 1) // size
    return x.masked_fill(~valid_frames(lengths, x.shape[1])[..., None], 0.0), lengths
