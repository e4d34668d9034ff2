"""Start a training from parts of models trained before: an AED for a TAED, a language model for a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from torch import Tensor, nn

from lm.config import Config
from lm.errors import ConfigError


class InitialConfig(Config):
    """Weights to begin with."""

    source: Path
    """A model folder, or a file of weights (``weights.safetensors``, a language model)."""
    parts: dict[str, str] = Field(min_length=1)
    """What of it becomes which part of the model: ``{decoder: decoder}``; ``{predictor: ""}`` takes all there is.
    An encoder should come with its ``normaliser``."""

    @property
    def file(self) -> Path:
        """The file of weights."""
        return self.source / "model.safetensors" if self.source.is_dir() else self.source


def begin_with(model: nn.Module, initial: Sequence[InitialConfig]) -> int:
    """Copy the chosen parts into ``model``; returns how many numbers were copied.

    Raises:
        ConfigError: a file or part that is not there, or of another shape.
    """
    from asr.training.checkpoint import load_tensors

    copied = 0
    for each in initial:
        if not each.file.is_file():
            raise ConfigError(
                f"initial.source {each.source}", "a model folder or a file of weights", "train it"
            )
        found = load_tensors(each.file)
        for target, source in each.parts.items():
            copied += _copy(model, found, target, source, each.file)
    return copied


def _copy(model: nn.Module, found: dict[str, Tensor], target: str, source: str, file: Path) -> int:
    state = model.state_dict()
    wanted = {name: name[len(target) + 1 :] for name in state if name.startswith(f"{target}.")}
    if not wanted:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ConfigError(f"initial.parts {target!r}", f"a part of the model: {parts}", "correct its name")
    copied = 0
    for name, inner in wanted.items():
        theirs = found.get(f"{source}.{inner}" if source else inner)
        if theirs is None or theirs.shape != state[name].shape:
            had = "nothing" if theirs is None else f"a tensor of shape {tuple(theirs.shape)}"
            raise ConfigError(
                f"initial.source {file} has {had} for {name}",
                f"one of shape {tuple(state[name].shape)}",
                "give both models the same shape and tokenizer, or leave this part out",
            )
        state[name].copy_(theirs)
        copied += theirs.numel()
    return copied
