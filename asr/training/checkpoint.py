"""Checkpoints that survive kill -9: complete folders, renamed into place, holding nothing that can run code."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from asr.training.sharding import cut_optimizer, pieces_of, whole
from lm.errors import BundleError, VocativeError


@dataclass(frozen=True)
class Progress:
    """Where a training stands: ``batch`` batches of ``epoch`` are done, ``step`` updates in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


class CheckpointStore:
    """The checkpoints of one training run.

    Args:
        folder: where they live.
        fingerprint: identifies configuration, data and tokenizer; a run only continues its own checkpoints.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, write: bool = True
    ) -> None:
        """Write a checkpoint, then drop older ones; without ``write``, only give one's pieces to who writes."""
        weights, moments = whole(model.state_dict(), write), whole(optimizer.state_dict(), write)
        if not write:
            return
        target = self._folder / f"step-{progress.step:08d}"
        scratch = self._folder / ".writing"
        with disk_errors(self._folder):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            save_file(_contiguous(weights), scratch / "model.safetensors")
            tensors, scalars = _flatten(moments)
            save_file(tensors, scratch / "optimizer.safetensors")
            state = {"fingerprint": self._fingerprint, "progress": asdict(progress), "optimizer": scalars}
            (scratch / "state.json").write_text(json.dumps(state))
            for file in scratch.iterdir():
                _sync(file)
            shutil.rmtree(target, ignore_errors=True)
            os.rename(scratch, target)
            _sync(self._folder)
        for old in self._complete():
            if old != target:
                shutil.rmtree(old, ignore_errors=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Load the newest checkpoint into ``model`` and ``optimizer``; None when there is none."""
        found = self._complete()
        if not found:
            return None
        folder = found[-1]
        state = json.loads((folder / "state.json").read_text())
        if state["fingerprint"] != self._fingerprint:
            raise BundleError(
                f"{folder} was made with another configuration, tokenizer or data",
                "a checkpoint of this run",
                "restore the earlier settings, or remove that folder to start afresh",
            )
        weights = load_tensors(folder / "model.safetensors")
        model.load_state_dict(pieces_of(weights, model.state_dict()))
        moments = _unflatten(load_tensors(folder / "optimizer.safetensors"), state["optimizer"])
        optimizer.load_state_dict(cut_optimizer(moments, optimizer))
        return Progress(**state["progress"])

    def _complete(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("step-*") if (p / "state.json").exists())


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write ``tensors`` to ``path`` as safetensors, complete or not at all."""
    scratch = path.with_name(f".{path.name}.writing")
    with disk_errors(path.parent):
        save_file(_contiguous(tensors), scratch)
        _sync(scratch)
        os.replace(scratch, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; a damaged file gives one clear line."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path} cannot be read ({error})", "a complete safetensors file", "restore or remove it"
        ) from None


class disk_errors:
    """Turn a full disk into one clear line; what was written before stays as it was."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or (isinstance(error, SafetensorError) and "No space" in str(error)):
            raise VocativeError(
                f"the disk of {self._folder} is full",
                "room for a checkpoint",
                "free some space and run the same command again; the last checkpoint is intact",
            ) from None


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, scalars = {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                scalars[f"{index}.{name}"] = value
    return tensors, {"groups": state["param_groups"], "scalars": scalars}


def _unflatten(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *rest["scalars"].items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
