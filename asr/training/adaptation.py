"""Text-only adaptation of a factorized transducer: its vocabulary predictor learns a text, all else stays.

Chen et al. 2022 (arXiv 2110.01500) adapt the predictor like any language model; the divergence from what it was
(Zhao et al. 2022, arXiv 2212.01992) keeps it from forgetting.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import Field

from asr.data.text_batches import TextBatch, TextBatches
from asr.data.token_text import TokenText
from asr.losses.text import adaptation_loss
from asr.recognizer import Recognizer
from asr.training.text_config import TextTrainingConfig
from asr.training.text_loop import TextTrainer
from lm.errors import ConfigError
from lm.language_model import LanguageModel

PREDICTOR = "predictor"
"""The part of a model that is a language model of its own, where it has one."""


class AdaptationConfig(TextTrainingConfig):
    """How a predictor learns a text."""

    epochs: int = Field(5, ge=1)
    evaluations: int = Field(10, ge=1)
    peak_lr: float = Field(5e-4, gt=0)
    kl_weight: float = Field(0.3, ge=0, lt=1)
    """ρ, the weight of the divergence from what the predictor was; the text itself has 1 - ρ."""


@dataclass(frozen=True)
class Adapted:
    """What came of it.

    Attributes:
        losses: nats a token on dev before and after.
    """

    losses: tuple[float, float]

    @property
    def better(self) -> bool:
        """Whether dev is likelier than before; otherwise the predictor was left as it was."""
        return self.losses[1] < self.losses[0]


def vocabulary_predictor(recognizer: Recognizer) -> LanguageModel:
    """The language model inside a model.

    Raises:
        ConfigError: its family has none.
    """
    found = getattr(recognizer.family.model, PREDICTOR, None)
    if not isinstance(found, LanguageModel):
        raise ConfigError(
            f"a model of type {type(recognizer.family.model).__name__}, which has no language model of its own",
            "a factorized transducer",
            "train a language model on the text and fuse it: --lm",
        )
    return found


class Adaptation:
    """The training of the vocabulary predictor of a model on a text.

    Args:
        recognizer: with the model.
        text: to learn, in the model's tokens.
        dev: text to choose the weights with.
        config: settings.
        folder: checkpoints and curves.
        base: fingerprint of the model.
        seed: of batches and dropout.

    Raises:
        ConfigError: the model has no language model of its own.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        text: TokenText,
        dev: TokenText,
        config: AdaptationConfig,
        folder: Path,
        base: str,
        seed: int = 0,
    ) -> None:
        self._predictor = predictor = vocabulary_predictor(recognizer)
        self._was = copy.deepcopy(predictor).eval().requires_grad_(False)
        parts = [
            config.model_dump(mode="json", exclude={"checkpoint_s"}),
            seed,
            base,
            text.digest,
            dev.digest,
        ]
        batching = predictor.num_tokens, config.batch_tokens, config.class_rate, config.buffer, seed
        self._trainer = TextTrainer(
            predictor,
            config,
            TextBatches(text, *batching),
            TextBatches(dev, *batching),
            folder,
            hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
            seed,
            str(next(predictor.parameters()).device),
            loss=partial(_loss, self._was, config.kl_weight),
        )

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self._trainer.steps

    def run(self, on_step: Callable[[int], None] | None = None) -> Adapted:
        """Train the predictor in place; goes on where an earlier training of the same was stopped.

        Args:
            on_step: called after each update with the updates done.

        Raises:
            Interrupted: it was stopped.
        """
        before = self._trainer.validate()
        self._trainer.on_step = on_step
        weights = self._trainer.run()
        found = Adapted((before, self._trainer.best))
        self._predictor.load_state_dict(weights if found.better else self._was.state_dict())
        self._predictor.eval()
        return found


def _loss(
    base: LanguageModel, kl_weight: float, model: LanguageModel, batch: TextBatch
) -> tuple[torch.Tensor, int]:
    return adaptation_loss(model, base, kl_weight, batch)
