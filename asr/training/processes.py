"""Several processes that train one model, as ``torchrun`` starts them; one process where it did not.

Each process works on some of an update's batches; gradients are added up, so that all make the same update.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from torch import nn

PATIENCE = timedelta(days=2)
"""How long processes wait for the first, which prepares data and language models alone."""


class Processes:
    """What a training asks of the processes it runs in."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        if self.count > 1 and not torch.distributed.is_initialized():
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            if backend == "nccl":
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # objects are sent through it
            torch.distributed.init_process_group(backend, timeout=PATIENCE)

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mine(self, index: int) -> bool:
        """Whether part ``index`` of an update is this process's."""
        return index % self.count == self.rank

    def turns(self, parts: int, together: bool) -> list[tuple[int, bool]]:
        """This process's parts of an update, and whether each counts.

        Args:
            parts: how many parts the update has.
            together: every process must take as many: who has none left takes the first, which does not count.
        """
        own = [(index, True) for index in range(parts) if self.mine(index)]
        missing = -(-parts // self.count) - len(own) if together else 0
        return own + [(0, False)] * missing

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value)
        return found

    def tell(self, value: Any) -> Any:
        """What the first process gave, in all."""
        if self.count == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box)
        return box[0]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes; what no process has a gradient of keeps none."""
        if self.count == 1:
            return
        every = [p for p in parameters if p.requires_grad]
        device = every[0].device
        have = torch.tensor([p.grad is not None for p in every], dtype=torch.float32, device=device)
        torch.distributed.all_reduce(have)
        used = [p for p, some in zip(every, have.tolist(), strict=True) if some]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in used])
        torch.distributed.all_reduce(flat)
        for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            parameter.grad = part.view_as(parameter)


def add_up(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    """The sum of each name's values."""
    total: dict[str, float] = {}
    for each in parts:
        for name, value in each.items():
            total[name] = total.get(name, 0.0) + value
    return total
