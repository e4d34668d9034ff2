"""Vocative's recognizer: ``from asr import Recognizer``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.recognizer import Recognizer as Recognizer
    from asr.streaming import StreamingRecognizer as StreamingRecognizer

__all__ = ["Recognizer", "StreamingRecognizer"]


def __getattr__(name: str) -> Any:
    """Import the recognizers, and torch with them, only when they are asked for."""
    if name == "Recognizer":
        from asr.recognizer import Recognizer

        return Recognizer
    if name == "StreamingRecognizer":
        from asr.streaming import StreamingRecognizer

        return StreamingRecognizer
    raise AttributeError(f"module 'asr' has no attribute {name!r}")
