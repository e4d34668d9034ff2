"""Kaldi-compatible log-mel filter banks, and their normalisation with global statistics.

Frames are those of Kaldi with ``--snip-edges=false`` (as lhotse and icefall have it): frame t is centred on
``(t + 1/2) * frame_shift_ms``, the ends are mirrored, and S samples give ``round(S / shift)`` frames, so
frame numbers are times. There is no dither: features are exact and may be cached; Kaldi's floor on the mel
energies (float32 epsilon) takes its place on digital silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from lm.config import Config
from lm.errors import AudioError, DataError

_SCALE = 32768.0  # Kaldi's samples are 16-bit numbers; ours are in [-1, 1]
_PREEMPHASIS = 0.97
_MIN_STD = 0.1  # a bin that hardly moves in training must not explode where it does


class FeatureConfig(Config):
    """Acoustic features: log energies of triangular mel filters."""

    sample_rate: int = Field(16000, ge=1000)
    """Hz; audio is resampled to it."""
    num_bins: int = Field(80, ge=4)
    """Mel filters, the last axis of the features."""
    frame_length_ms: float = Field(25.0, gt=0)
    """Length of the analysis window."""
    frame_shift_ms: float = Field(10.0, gt=0)
    """Time from one frame to the next."""
    low_freq: float = Field(20.0, ge=0)
    """Hz; lower edge of the first filter."""
    high_freq: float = -400.0
    """Hz; upper edge of the last filter; zero or less counts from half the sample rate."""

    @model_validator(mode="after")
    def _frequencies_and_frames(self) -> FeatureConfig:
        if not self.low_freq < self.top_freq <= self.sample_rate / 2:
            raise ValueError(f"low_freq < high_freq <= {self.sample_rate / 2:g} Hz")
        if not self.shift <= self.width or self.shift < 1:
            raise ValueError("frame_shift_ms of one sample or more, at most frame_length_ms")
        return self

    @property
    def width(self) -> int:
        """Samples in a frame."""
        return int(self.sample_rate * self.frame_length_ms * 0.001)

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.frame_shift_ms * 0.001)

    @property
    def top_freq(self) -> float:
        """Upper edge of the last filter in Hz."""
        return self.high_freq if self.high_freq > 0 else self.sample_rate / 2 + self.high_freq


def fbank(samples: Tensor, config: FeatureConfig) -> Tensor:
    """Compute log-mel features, by torchaudio where it can be imported, else by `fbank_reference`.

    Args:
        samples: (S,) float in [-1, 1] at ``config.sample_rate``; scaled by 32768 as Kaldi's are.
        config: the filter bank.

    Returns:
        (T, num_bins) float32, ``T = (S + shift // 2) // shift``.

    Raises:
        AudioError: ``samples`` are not one recording of at least a frame.
    """
    return fbank_inside(_mirrored(_check(samples, config), config), config)


def fbank_inside(samples: Tensor, config: FeatureConfig) -> Tensor:
    """Compute the features of `fbank` for the frames that lie inside ``samples``, the first at their start.

    Nothing is mirrored (Kaldi's ``--snip-edges=true``): for a stream, whose ends are mirrored only once.

    Returns:
        (T, num_bins) float32, ``T = 1 + (S - width) // shift``.

    Raises:
        AudioError: as for `fbank`.
    """
    samples = _check(samples, config).mul(_SCALE)
    try:
        from torchaudio.compliance import kaldi
    except (ImportError, OSError):  # OSError: a torchaudio built for another torch
        return _log_mel(samples.unfold(0, config.width, config.shift), config)
    features: Tensor = kaldi.fbank(
        samples[None],
        sample_frequency=float(config.sample_rate),
        num_mel_bins=config.num_bins,
        frame_length=config.frame_length_ms,
        frame_shift=config.frame_shift_ms,
        low_freq=config.low_freq,
        high_freq=config.high_freq,
        preemphasis_coefficient=_PREEMPHASIS,
        snip_edges=True,
        dither=0.0,
    )
    return features


def fbank_reference(samples: Tensor, config: FeatureConfig) -> Tensor:
    """Compute the features of `fbank` in plain torch (Kaldi: feature-window.cc, mel-computations.cc)."""
    samples = _mirrored(_check(samples, config), config).mul(_SCALE)
    return _log_mel(samples.unfold(0, config.width, config.shift), config)


def _log_mel(frames: Tensor, config: FeatureConfig) -> Tensor:
    """Features of frames (T, width)."""
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hann_window(config.width, periodic=False, device=frames.device).pow(0.85)  # Povey's
    fft_size = _fft_size(config)
    power = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=fft_size).abs().pow(2.0)
    mel: Tensor = power[:, : fft_size // 2] @ _mel_filters(config).to(frames.device).T
    return mel.clamp_min(torch.finfo(torch.float32).eps).log()


def _check(samples: Tensor, config: FeatureConfig) -> Tensor:
    if samples.dim() != 1 or len(samples) < config.width:
        raise AudioError(
            f"audio of shape {tuple(samples.shape)}", f"(samples,) of at least {config.width}", "leave it out"
        )
    return samples.float()


def mirrored_samples(count: int, config: FeatureConfig) -> tuple[int, int]:
    """How many samples of a recording of ``count`` are mirrored at its start, and how many at its end.

    Frames are then cut every ``shift`` samples, the first centred on ``shift / 2``.
    """
    width, shift = config.width, config.shift
    frames = (count + shift // 2) // shift
    left = width // 2 - shift // 2
    return left, max((frames - 1) * shift + width - left - count, 0)


def _mirrored(samples: Tensor, config: FeatureConfig) -> Tensor:
    """``samples`` (S,) with as much of their mirror image at both ends as the frames need."""
    left, right = mirrored_samples(len(samples), config)
    return torch.cat([samples[:left].flip(0), samples, samples[len(samples) - right :].flip(0)])


def _fft_size(config: FeatureConfig) -> int:
    return 1 << (config.width - 1).bit_length()


@lru_cache(maxsize=8)
def _mel_filters(config: FeatureConfig) -> Tensor:
    """Triangles (num_bins, fft_size / 2), equally wide on the mel scale and linear on it."""
    size = _fft_size(config)
    hertz = torch.arange(size // 2, dtype=torch.float64) * (config.sample_rate / size)
    mel = 1127.0 * torch.log1p(hertz / 700.0)
    low, high = (1127.0 * math.log1p(edge / 700.0) for edge in (config.low_freq, config.top_freq))
    edges = torch.linspace(low, high, config.num_bins + 2, dtype=torch.float64)[:, None]
    up = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return torch.minimum(up, down).clamp_min(0.0).float()


class FeatureNormaliser(nn.Module):
    """Brings each bin to mean 0 and standard deviation 1 with two vectors stored in the model.

    A new one changes nothing; `estimate` makes one from data.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_bins))
        self.register_buffer("std", torch.ones(num_bins))

    @classmethod
    def estimate(cls, features: Iterable[Tensor]) -> FeatureNormaliser:
        """Compute the statistics over all frames of ``features``, each (T, F).

        Raises:
            DataError: there are no frames, or values that are not finite.
        """
        frames, total, squares = 0, torch.zeros(()), torch.zeros(())
        for item in features:
            wide = item.double()
            frames, total, squares = frames + len(wide), total + wide.sum(0), squares + wide.square().sum(0)
        if not frames:
            raise DataError("no frames to normalise by", "features of some recordings", "check the data")
        mean = total / frames
        variance = squares / frames - mean.square()
        if not torch.isfinite(variance).all():
            raise DataError("features with NaN or infinite values", "finite features", "check the recordings")
        normaliser = cls(len(mean))
        normaliser.mean.copy_(mean)
        normaliser.std.copy_(variance.clamp_min(_MIN_STD**2).sqrt())
        return normaliser

    def forward(self, features: Tensor) -> Tensor:
        """Normalise (..., F)."""
        return (features - self.mean) / self.std
