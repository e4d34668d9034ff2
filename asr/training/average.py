"""Averaging the weights of the last epochs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from asr.training.checkpoint import load_tensors
from lm.errors import BundleError


def average_epochs(folder: Path, epochs: int, last: int) -> dict[str, Tensor]:
    """Mean of ``epoch-NNNN.safetensors`` over the last ``last`` of ``epochs`` epochs."""
    names = [folder / f"epoch-{e:04d}.safetensors" for e in range(max(0, epochs - last), epochs)]
    missing = [p for p in names if not p.exists()]
    if missing:
        raise BundleError(f"{missing[0]} is missing", "the weights of each epoch to average", "train again")
    total: dict[str, Tensor] = {}
    for path in names:
        for name, tensor in load_tensors(path).items():
            value = tensor.double() if tensor.is_floating_point() else tensor
            total[name] = total[name] + value if name in total else value
    return {
        name: (value / len(names)).float() if value.dtype == torch.float64 else value // len(names)
        for name, value in total.items()
    }
