"""Start a training from parts of models trained before: an AED for a TAED, a language model for a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn

from lm.config import Config
from lm.errors import ConfigError
from lm.vocabulary import TOKENIZER

if TYPE_CHECKING:
    from lm.tokenizer import Tokenizer

_WITHOUT_TOKENS = ("encoder", "normaliser")


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


def begin_with(model: nn.Module, initial: Sequence[InitialConfig], tokenizer: Tokenizer) -> int:
    """Copy the chosen parts into ``model``; returns how many numbers were copied.

    Raises:
        ConfigError: a file or part that is not there, of another shape, or of another tokenizer.
    """
    from asr.training.checkpoint import load_tensors

    copied = 0
    for each in initial:
        if not each.file.is_file():
            raise ConfigError(
                f"initial.source {each.source}", "a model folder or a file of weights", "train it"
            )
        _check_tokenizer(each, tokenizer)
        if not each.source.is_dir():
            _check_shape(model, each, tokenizer)
        found = load_tensors(each.file)
        for target, source in each.parts.items():
            copied += _copy(model, found, target, source, each.file)
    return copied


def _check_tokenizer(initial: InitialConfig, tokenizer: Tokenizer) -> None:
    """Tensors over other tokens may have the same shape."""
    from lm.tokenizer import Tokenizer

    file = initial.source / TOKENIZER
    parts = [name for name in initial.parts if name.partition(".")[0] not in _WITHOUT_TOKENS]
    if parts and file.is_file() and Tokenizer.load(file).digest != tokenizer.digest:
        raise ConfigError(
            f"initial.source {initial.source} of another tokenizer for {', '.join(parts)}",
            "a model over the tokens of this one",
            "take its encoder and normaliser only, or train both with one tokenizer",
        )


def _check_shape(model: nn.Module, initial: InitialConfig, tokenizer: Tokenizer) -> None:
    """A language model may differ in what no tensor shows, such as its heads."""
    from lm.model_files import shape_of

    theirs = shape_of(initial.source, tokenizer)
    if theirs is None:
        return
    modules = dict(model.named_modules())
    for target, source in initial.parts.items():
        own = getattr(modules.get(target), "config", None)
        if source or not isinstance(own, Config):
            continue
        for name, value in own.model_dump(mode="json", exclude={"dropout"}).items():
            if name in theirs and theirs[name] != value:
                raise ConfigError(
                    f"initial.source {initial.source} with {name} {theirs[name]} for {target}",
                    f"{name} {value}",
                    "give both models the same shape",
                )


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
