"""Vocative's recognizer: ``from asr import Recognizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.recognizer import Recognizer as Recognizer

__all__ = ["Recognizer"]


def __getattr__(name: str) -> Any:
    """Import the recognizer, and torch with it, only when it is asked for."""
    if name == "Recognizer":
        from asr.recognizer import Recognizer

        return Recognizer
    raise AttributeError(f"module 'asr' has no attribute {name!r}")
