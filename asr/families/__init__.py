"""Model families: each is a folder with ``config.py model.py emitter.py family.py``, found by its name."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from lm.tokenizer import Tokenizer


class Family(Protocol):
    """What recognition asks of a model family.

    ``knows_classes`` says whether the model has a language model of its own that knows class tags; ``stacking`` how
    many feature frames an encoder frame stands for.
    """

    model: nn.Module
    stacking: int
    knows_classes: bool

    def loss_config(self, values: dict[str, Any]) -> Any:
        """The training objective's settings, as the model's ``losses`` takes them."""
        ...

    def emitter(self, features: Tensor, lengths: Tensor, lm_scale: float, candidates: int) -> Any:
        """Encode ``features`` ``(B, S, F)`` and offer them to a search."""
        ...


def load_family(name: str, config: dict[str, Any], tokenizer: Tokenizer, source: str) -> Family:
    """Build the family ``name`` with fresh weights from its configuration."""
    from importlib import import_module

    family: Family = import_module(f"asr.families.{name}.family").build(config, tokenizer, source)
    return family


def knows_classes(name: str) -> bool:
    """Whether models of family ``name`` have a language model of their own that knows class tags."""
    from importlib import import_module

    return bool(import_module(f"asr.families.{name}.family").KNOWS_CLASSES)
