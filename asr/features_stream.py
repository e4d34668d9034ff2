"""Filter banks of a stream: samples in, in any amounts; out come the frames that `fbank` gives for the whole.

Frame t ends ``width - width // 2 + shift // 2`` samples behind ``t * shift`` (17.5 ms with 25 ms frames every
10 ms), so it comes out when those samples are in; only the last frames of a recording need its mirrored end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asr.features import FeatureConfig, fbank_inside, mirrored_samples
from lm.errors import AudioError


class FeatureStream:
    """The features of one recording, piece by piece; less than a frame of samples is kept.

    Args:
        config: the filter bank.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self.samples = 0
        """Samples fed so far."""
        self.frames = 0
        """Frames given out so far."""
        self.finished = False
        """Whether the end was told."""
        # With its start mirrored, frame t begins at t * shift. Kept are the samples from `_first` on: those of
        # the next frame and the one before them, which the mirrored end may reach.
        self._kept = torch.zeros(0)
        self._first = 0

    def push(self, samples: Tensor) -> Tensor:
        """Feed more of the recording.

        Args:
            samples: ``(S,)`` float in [-1, 1] at ``config.sample_rate``; S may be 0.

        Returns:
            ``(n, num_bins)`` float32, the frames that have become whole.

        Raises:
            AudioError: samples of another shape or type, or after the end.
        """
        if self.finished:
            raise AudioError("samples after the end of a stream", "none", "start a new stream")
        if samples.dim() != 1 or not samples.is_floating_point():
            raise AudioError(
                f"samples of shape {tuple(samples.shape)} and type {samples.dtype}",
                "(samples,) float in [-1, 1]",
                "convert them",
            )
        width, before = self.config.width, self.samples
        self.samples += len(samples)
        self._kept = torch.cat((self._kept, samples.float()))
        if before < width <= self.samples:
            left, _ = mirrored_samples(self.samples, self.config)
            self._kept = torch.cat((self._kept[:left].flip(0), self._kept))
        return self._whole_frames()

    def finish(self) -> Tensor:
        """Tell the end of the recording and give its remaining frames ``(n, num_bins)``.

        Raises:
            AudioError: the recording is shorter than a frame, or was finished before.
        """
        if self.finished:
            raise AudioError("the end of a stream, twice", "once", "start a new stream")
        self.finished = True
        width = self.config.width
        if self.samples < width:
            raise AudioError(f"a recording of {self.samples} samples", f"at least {width}", "leave it out")
        _, right = mirrored_samples(self.samples, self.config)
        self._kept = torch.cat((self._kept, self._kept[len(self._kept) - right :].flip(0)))
        return self._whole_frames()

    def _whole_frames(self) -> Tensor:
        width, shift = self.config.width, self.config.shift
        waiting = self._kept[self.frames * shift - self._first :]
        if self.samples < width or len(waiting) < width:
            return torch.zeros(0, self.config.num_bins)
        found = fbank_inside(waiting, self.config)
        self.frames += len(found)
        cut = max(0, self.frames * shift - 1) - self._first
        self._kept, self._first = self._kept[cut:], self._first + cut
        return found
