"""Models by size: functions that edit a recipe's configuration; what the configuration says itself wins.

Parameters in millions, with a Conformer and the family's other defaults, 500 tokens and 4 classes:

    size     ctc   transducer   factorized     taed      aed
    tiny     0.9          1.2          1.3      1.4      1.3
    small    4.0          4.4          4.6      5.0      4.8
    medium  18.4         19.3         20.7     23.4     22.9
    large   97.3         98.6        107.9    124.0    123.0

Only shapes are set: learning rate, batches and epochs remain those of the recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lm.config import merge


@dataclass(frozen=True)
class Shape:
    """What the sizes differ in; see the configurations of the parts."""

    layers: int
    width: int
    heads: int
    label_layers: int
    """Of a decoder; a factorized transducer's predictor has half as many."""
    joint_width: int
    blank_width: int
    lstm_layers: int
    """Of a BLSTM encoder."""


def tiny(base: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the smallest model."""
    return _edited(base, Shape(4, 96, 4, 2, 128, 64, 2))


def small(base: dict[str, Any]) -> dict[str, Any]:
    """``base`` with a small model."""
    return _edited(base, Shape(8, 144, 4, 2, 256, 128, 4))


def medium(base: dict[str, Any]) -> dict[str, Any]:
    """``base`` with a middling model."""
    return _edited(base, Shape(12, 256, 4, 4, 512, 256, 5))


def large(base: dict[str, Any]) -> dict[str, Any]:
    """``base`` with a large model."""
    return _edited(base, Shape(16, 512, 8, 6, 640, 256, 6))


SIZES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "tiny": tiny,
    "small": small,
    "medium": medium,
    "large": large,
}
"""By the name that a configuration says."""


def _edited(base: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """``base`` with a model of this shape below its own settings; only with parts that its family has."""
    given = base.get("model") or {}
    if not isinstance(given, dict):
        return base
    parts: dict[str, dict[str, Any]] = {
        "ctc": {},
        "transducer": {"joint_width": shape.joint_width},
        "factorized": {
            "predictor": _transformer(shape, max(1, shape.label_layers // 2)),
            "blank_width": shape.blank_width,
        },
        "taed": {"decoder": _transformer(shape, shape.label_layers), "joint_width": shape.joint_width},
        "aed": {"decoder": _decoder(given.get("decoder"), shape)},
    }
    family = base.get("family", "factorized")
    if not isinstance(family, str) or family not in parts:
        return base
    model = {"encoder": _encoder(given.get("encoder"), shape), **parts[family]}
    return merge({"model": model}, {**base, "model": given})


def _encoder(given: Any, shape: Shape) -> dict[str, Any]:
    if _kind(given) == "blstm":
        return {"layers": shape.lstm_layers, "width": shape.width}
    return _transformer(shape, shape.layers)


def _decoder(given: Any, shape: Shape) -> dict[str, Any]:
    if _kind(given) == "lstm":
        return {"embedding": shape.width // 2, "width": 2 * shape.width, "key": shape.width}
    return _transformer(shape, shape.label_layers)


def _transformer(shape: Shape, layers: int) -> dict[str, Any]:
    return {
        "layers": layers,
        "width": shape.width,
        "heads": shape.heads,
        "feed_forward": 4 * shape.width,
    }


def _kind(given: Any) -> Any:
    return given.get("kind") if isinstance(given, dict) else None
