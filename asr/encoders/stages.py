"""Training an encoder in stages that grow (Zeyer et al. 2018, arXiv 1805.03294, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from lm.config import Config


class PretrainStage(Config):
    """One stage: a part of the encoder's layers, for some epochs."""

    epochs: int = Field(ge=1)
    """How long it lasts."""
    layers: int = Field(ge=1)
    """Layers in use, the top one among them; those to come are inserted below it."""
    reductions: tuple[int, ...] | None = None
    """Other time reductions of a blstm, for example [16] behind a single first layer; its own if not given."""


def stage_of_epoch(stages: Sequence[PretrainStage], epoch: int) -> PretrainStage | None:
    """The stage that ``epoch``, counted from 0, belongs to; None when all are over."""
    for stage in stages:
        if epoch < stage.epochs:
            return stage
        epoch -= stage.epochs
    return None
