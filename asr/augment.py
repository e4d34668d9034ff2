"""Making training harder: masked features, other speeds, noise and rooms.

Whatever is random is drawn from the generator that is passed in, always on its device and in the same order,
so that a resumed training goes on exactly.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from asr.audio import SAMPLE_RATE, resample
from lm.config import Config
from lm.errors import AudioError


class SpecAugmentConfig(Config):
    """SpecAugment with masks that grow with the utterance (Park et al. 2020, arXiv 1912.05533, section 3)."""

    freq_masks: int = Field(2, ge=0)
    """Bands masked in each utterance."""
    freq_width: int = Field(27, ge=0)
    """Widest band, in bins; widths are drawn from 0 to this."""
    time_masks: int = Field(10, ge=0)
    """Stretches of time masked in each utterance."""
    time_share: float = Field(0.05, ge=0, le=1)
    """Longest stretch, as a share of the utterance; all together mask at most ``time_masks`` times this."""


class NoiseConfig(Config):
    """Recorded noise, mixed in; which recording, where it begins and how loud it is are drawn anew every time."""

    corpus: str
    """Folder of the recordings, or its name in $VOCATIVE_CORPORA; ``wav.scp`` is in it or in its ``all``, and
    paths begin at the folder."""
    held_out: tuple[str | int, ...] = ("5",)
    """Folds (of ``utt2fold``) that are kept for tests; a list without folds is used whole."""
    snr_db: tuple[float, float] = (5.0, 20.0)
    """Lowest and highest ratio of speech to noise, in mean power over the utterance."""
    probability: float = Field(0.5, ge=0, le=1)
    """Share of the utterances that get noise."""

    @model_validator(mode="after")
    def _range(self) -> NoiseConfig:
        if not self.snr_db[0] <= self.snr_db[1]:
            raise ValueError("snr_db as [lowest, highest]")
        return self


class ReverbConfig(Config):
    """SYNTHETIC rooms, a new one every time (`synthetic_rir`); no real room is behind them."""

    rt60_s: tuple[float, float] = (0.1, 0.5)
    """Shortest and longest time in which the sound of a room falls by 60 dB."""
    probability: float = Field(0.3, ge=0, le=1)
    """Share of the utterances that get a room."""

    @model_validator(mode="after")
    def _range(self) -> ReverbConfig:
        if not 0 < self.rt60_s[0] <= self.rt60_s[1]:
            raise ValueError("rt60_s as [shortest, longest], above 0")
        return self


def spec_augment(
    features: Tensor, lengths: Tensor, config: SpecAugmentConfig, generator: torch.Generator
) -> Tensor:
    """Replace random bands and stretches of time by each utterance's mean of that bin.

    On normalised features the mean is about 0; taken from the utterance it suits raw features as well.

    Args:
        features: (B, T, F); padding is left alone.
        lengths: (B,) frames.
        config: how much is masked.
        generator: source of the masks.

    Returns:
        (B, T, F), a new tensor.
    """
    batch, frames, bins = features.shape
    device = features.device
    lengths = lengths.to(device)
    bands = _masks(torch.full_like(lengths, bins), config.freq_width, config.freq_masks, bins, generator)
    longest = (lengths * config.time_share).long()
    stretches = _masks(lengths, longest, config.time_masks, frames, generator)
    valid = torch.arange(frames, device=device) < lengths[:, None]
    masked = (bands[:, None, :] | stretches[:, :, None]) & valid[:, :, None]
    total = features.masked_fill(~valid[:, :, None], 0.0).sum(dim=1)
    mean = total / lengths.clamp_min(1)[:, None].to(features.dtype)
    return torch.where(masked, mean.view(batch, 1, bins), features)


def speed(samples: Tensor, factor: float) -> Tensor:
    """Play (S,) ``factor`` times as fast, pitch included; about ``S / factor`` samples come back."""
    if not 0.5 <= factor <= 2.0:
        raise AudioError(f"speed factor {factor}", "0.5 to 2", "choose a factor near 1, like 0.9 or 1.1")
    return torch.from_numpy(resample(samples.numpy(), factor, 1.0))


def add_noise(samples: Tensor, noise: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """Add noise, begun at a random place and repeated if short, at ``snr_db`` below ``samples``.

    Powers are means over the whole of ``samples`` and over the piece of noise that is added. A piece of
    digital silence leaves ``samples`` as they are.

    Args:
        samples: (S,) float.
        noise: (any length,) float at the same rate.
        snr_db: signal-to-noise ratio in dB.
        generator: source of the place.

    Raises:
        AudioError: ``noise`` is empty or nothing but silence.
    """
    if not noise.any():
        raise AudioError(
            f"noise of {len(noise)} samples, all zero", "noise that can be heard", "leave it out"
        )
    start = int(torch.randint(len(noise), (), generator=generator))
    piece = noise.roll(-start).repeat(math.ceil(len(samples) / len(noise)))[: len(samples)]
    power = piece.square().mean()
    if power == 0:
        return samples.clone()
    return samples + piece * (samples.square().mean() / power).sqrt() * math.pow(10.0, -snr_db / 20)


def reverberate(samples: Tensor, rir: Tensor) -> Tensor:
    """Convolve (S,) with a room impulse response (R,); length, timing and energy stay.

    The direct path, the largest value of ``rir``, is moved to time 0, so that word times remain true.
    """
    direct = int(rir.abs().argmax())
    size = len(samples) + len(rir) - 1
    spectrum = torch.fft.rfft(samples, n=size) * torch.fft.rfft(rir, n=size)
    wet: Tensor = torch.fft.irfft(spectrum, n=size)[direct : direct + len(samples)]
    power = wet.square().mean()
    return wet * (samples.square().mean() / power).sqrt() if power > 0 else wet


def synthetic_rir(generator: torch.Generator, rt60_s: float, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Draw a synthetic room: a direct path, then noise that falls by 60 dB in ``rt60_s`` (Polack's model).

    No real room is behind it. Direct path and tail carry the same energy.

    Returns:
        (about rt60_s * sample_rate,) float32.
    """
    count = max(round(rt60_s * sample_rate), 2)
    decay = torch.exp(torch.arange(1, count) * (-math.log(1000.0) / (rt60_s * sample_rate)))
    tail = torch.randn(count - 1, generator=generator) * decay
    return torch.cat([torch.ones(1), tail / tail.norm()])


def _masks(
    sizes: Tensor, longest: Tensor | int, count: int, width: int, generator: torch.Generator
) -> Tensor:
    """Draw ``count`` runs inside 0 .. ``sizes`` (B,), each at most ``longest``; (B, width), true in a run."""
    draws = torch.rand((2, len(sizes), count), generator=generator, device=generator.device).to(sizes.device)
    widest = torch.minimum(torch.as_tensor(longest, device=sizes.device).expand_as(sizes), sizes)[:, None]
    run = (draws[0] * (widest + 1)).long()
    start = (draws[1] * (sizes[:, None] - run + 1)).long()
    index = torch.arange(width, device=sizes.device)
    return ((index >= start[..., None]) & (index < (start + run)[..., None])).any(dim=1)
