"""Weights, gradients and optimizer state in pieces, one piece a process: for models too large for one device.

Fully sharded data parallelism as torch has it (``fully_shard``; Zhao et al. 2023, arXiv 2304.11277). Every block
of the encoder is fetched when it is needed and dropped again; the rest of the model is one more piece. Files hold
whole tensors, so a run may be continued with sharding or without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asr.data.examples import Batch
from lm.errors import ConfigError


class Objective(nn.Module):
    """A model called for its losses, with the whole of its weights at hand meanwhile.

    Args:
        model: whose weights are taken to pieces; its ``losses`` are what is computed.
        device: where each process keeps its pieces.
        processes: how many there are.

    Raises:
        ConfigError: one process only, or an encoder without ``blocks``.
    """

    def __init__(self, model: nn.Module, device: torch.device, processes: int) -> None:
        super().__init__()
        refuse_one_process(processes)
        blocks = getattr(model.get_submodule("encoder"), "blocks", None)
        if not isinstance(blocks, nn.ModuleList):
            raise ConfigError(
                f"training.shard=true with a {type(model.get_submodule('encoder')).__name__}",
                "an encoder with a list of blocks", "leave training.shard out",
            )  # fmt: skip
        self.model = model
        pieces = {id(p) for p in blocks.parameters()}
        self._rest = [name for name, p in model.named_parameters() if id(p) not in pieces and p.requires_grad]
        self._shard(blocks, device, processes)

    def _shard(self, blocks: nn.ModuleList, device: torch.device, processes: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(device.type, (processes,))
        for module in (*blocks, self):
            sharded: Any = fully_shard(module, mesh=mesh)
            assert isinstance(sharded, FSDPModule)
            sharded.set_gradient_divide_factor(
                1.0
            )  # each batch's gradient has its share of the update already
            sharded.set_force_sum_reduction_for_comms(True)

    def forward(self, batch: Batch, config: Any) -> dict[str, Tensor]:
        """The model's ``losses``; every weight outside the blocks gets a gradient, as all processes must agree."""
        parts: dict[str, Tensor] = dict(self.model.losses(batch, config))  # type: ignore[operator]
        nothing = sum(self.model.get_parameter(name).sum() for name in self._rest) * 0.0
        parts["total"] = parts["total"] + nothing
        return parts


def refuse_one_process(processes: int) -> None:
    """Raise ConfigError where there is nobody to share the pieces with."""
    if processes == 1:
        raise ConfigError(
            "training.shard=true with one process", "at least two processes",
            "start with torchrun --nproc-per-node N -m recipes …, or leave training.shard out",
        )  # fmt: skip


def whole(state: Any, keep: bool = True) -> Any:
    """``state`` (tensors in dictionaries and lists) with whole tensors in place of pieces; all processes must ask.

    Args:
        state: a state dict of a model or an optimizer.
        keep: whether the caller wants the tensors; otherwise it only helps to gather them.
    """
    if isinstance(state, dict):
        return {key: whole(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep) for value in state]
    if not hasattr(state, "full_tensor"):
        return state
    full = state.full_tensor()
    return full.cpu() if keep else None


def pieces_of(full: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors cut as those of the same names in ``like`` are; what is whole there stays whole."""
    return {name: _cut(tensor, like[name]) if name in like else tensor for name, tensor in full.items()}


def cut_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state, cut as the weights are that it belongs to."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        index: {name: _cut(value, weights[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": cut}


def _cut(full: Any, like: Tensor) -> Any:
    mesh: Any = getattr(like, "device_mesh", None)
    if mesh is None or not isinstance(full, Tensor) or full.shape != like.shape:
        return full  # shape: the step count of an optimizer is a number, whatever the weight is
    from torch.distributed.tensor import distribute_tensor

    placements: Any = like.placements  # type: ignore[attr-defined]
    return distribute_tensor(full.to(like.device), mesh, placements, src_data_rank=None)
