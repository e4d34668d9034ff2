"""Samples of a stream, piece by piece: checked, and brought to one rate as the whole recording would be."""

from __future__ import annotations

from typing import Any

import numpy as np

from asr.audio import Samples, _as_float, _check_scale, _count_bad, _not_finite
from asr.audio_files import check_rate
from lm.errors import AudioError


class AudioStream:
    """Takes pieces of one recording; what is wrong with a piece is said before anything changes.

    Args:
        sample_rate: Hz that the pieces are brought to.
    """

    def __init__(self, sample_rate: int) -> None:
        self._target = sample_rate
        self._rate: int | None = None
        self._resampler: Any = None
        self._samples = 0

    @property
    def seconds(self) -> float:
        """Seconds pushed so far."""
        return self._samples / self._rate if self._rate else 0.0

    def push(self, samples: Any, sample_rate: int | None = None) -> Samples:
        """One more piece, at the rate wanted; resampling holds a few milliseconds back.

        Args:
            samples: ``(S,)`` array or tensor, S > 0: floats of full scale 1, or integers.
            sample_rate: of all pieces; None for the rate wanted.

        Raises:
            AudioError: the piece cannot be used.
        """
        rate = self._target if sample_rate is None else sample_rate
        check_rate(rate, "the stream")
        if self._rate not in (None, rate):
            given, expected = f"a piece at {rate} Hz", f"{self._rate} Hz as the pieces before"
            raise AudioError(given, expected, "start a new stream for another rate")
        piece = _checked(samples)
        if self._rate is None:
            self._rate = rate
            if rate != self._target:
                import soxr

                self._resampler = soxr.ResampleStream(rate, self._target, 1, dtype="float32")
        self._samples += len(piece)
        return piece if self._resampler is None else self._resampler.resample_chunk(piece)

    def finish(self) -> Samples:
        """What was held back."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)


def _checked(samples: Any) -> Samples:
    array = np.asarray(samples.detach().cpu() if hasattr(samples, "detach") else samples)
    if array.ndim != 1 or not len(array):
        raise AudioError(
            f"a piece of shape {tuple(array.shape)}",
            "(samples,) of one channel, at least one sample",
            "average the channels; leave out empty pieces",
        )
    floats = _as_float(array, "the piece")
    bad = _count_bad(floats[:, None])
    if bad:
        raise _not_finite("the piece", bad, len(floats))
    _check_scale(floats, "the piece")
    return floats
