"""PyTorch's LSTM where mixed precision is on."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Sequence = TypeVar("Sequence", Tensor, PackedSequence)


def run_lstm(
    lstm: nn.LSTM, x: Sequence, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Sequence, tuple[Tensor, Tensor]]:
    """What ``lstm`` makes of ``x`` ``(B, U, D)``: output and state; on a CPU in float32, also under autocast.

    oneDNN has bfloat16 LSTMs only for processors that multiply bfloat16; elsewhere it raises an error.
    """
    if x.is_cuda or not torch.is_autocast_enabled("cpu"):
        result: tuple[Sequence, tuple[Tensor, Tensor]] = lstm(x, state)
        return result
    with torch.autocast("cpu", enabled=False):
        result = lstm(x.float(), None if state is None else (state[0].float(), state[1].float()))
    return result
