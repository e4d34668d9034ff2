from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.augment import SpecAugmentConfig, add_noise, reverberate, spec_augment, speed, synthetic_rir
from lm.errors import AudioError


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tone(hertz: float, count: int = 16000) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz * torch.arange(count) / 16000)


# SpecAugment. Values of the inputs are all different, so a masked cell is one that changed.


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    freq_masks=st.integers(0, 3),
    freq_width=st.integers(0, 40),
    time_masks=st.integers(0, 5),
    time_share=st.floats(0, 1),
)
def test_masks_keep_their_limits(
    seed: int, lengths: list[int], freq_masks: int, freq_width: int, time_masks: int, time_share: float
) -> None:
    config = SpecAugmentConfig(
        freq_masks=freq_masks, freq_width=freq_width, time_masks=time_masks, time_share=time_share
    )
    bins = 20
    features = torch.randn(len(lengths), max(lengths), bins, generator=gen(seed), dtype=torch.float64)
    before = features.clone()
    out = spec_augment(features, torch.tensor(lengths), config, gen(seed))
    assert torch.equal(features, before)
    for row, length in enumerate(lengths):
        assert torch.equal(out[row, length:], features[row, length:])
        changed = out[row, :length] != features[row, :length]
        mean = features[row, :length].mean(0).expand(length, bins)
        torch.testing.assert_close(out[row, :length][changed], mean[changed])
        if length > 1:
            whole_frames, whole_bins = changed.all(1), changed.all(0)
            assert torch.equal(changed, whole_frames[:, None] | whole_bins[None, :])
            if not whole_bins.all():
                assert whole_frames.sum() <= time_masks * math.floor(time_share * length + 1e-6)
            if not whole_frames.all():
                assert whole_bins.sum() <= freq_masks * freq_width


def test_masks_differ_between_utterances_and_reach_every_cell() -> None:
    features = torch.randn(400, 50, 80, generator=gen())
    out = spec_augment(features, torch.full((400,), 50), SpecAugmentConfig(), gen())
    masked = (out != features).float()
    per_bin, per_frame = masked.mean((0, 1)), masked.mean((0, 2))
    assert per_bin.min() > 0.05
    assert per_frame.min() > 0.05
    assert len({tuple(row.flatten().tolist()) for row in masked}) > 390


def test_widths_are_uniform_up_to_the_limit() -> None:
    config = SpecAugmentConfig(freq_masks=1, freq_width=4, time_masks=0)
    features = torch.randn(4000, 3, 16, generator=gen())
    widths = (spec_augment(features, torch.full((4000,), 3), config, gen()) != features).all(1).sum(1)
    shares = torch.bincount(widths, minlength=5) / 4000
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.03, rtol=0)


def test_masks_come_from_the_generator_alone() -> None:
    features, lengths = torch.randn(3, 90, 80), torch.tensor([90, 70, 20])
    one = spec_augment(features, lengths, SpecAugmentConfig(), gen(5))
    torch.manual_seed(123)
    assert torch.equal(one, spec_augment(features, lengths, SpecAugmentConfig(), gen(5)))
    assert not torch.equal(one, spec_augment(features, lengths, SpecAugmentConfig(), gen(6)))


def test_normalised_features_are_masked_with_about_zero() -> None:
    features = torch.randn(1, 2000, 80, generator=gen())
    out = spec_augment(features, torch.tensor([2000]), SpecAugmentConfig(), gen(1))
    assert (out != features).any()
    assert out[out != features].abs().max() < 0.15


def test_no_masks_change_nothing() -> None:
    features = torch.randn(2, 30, 80)
    config = SpecAugmentConfig(freq_masks=0, time_masks=0)
    assert torch.equal(spec_augment(features, torch.tensor([30, 10]), config, gen()), features)


# Speed.


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    fast = speed(tone(500), factor)
    assert abs(len(fast) - 16000 / factor) <= 1
    hertz = torch.fft.rfft(fast).abs().argmax().item() * 16000 / len(fast)
    assert hertz == pytest.approx(500 * factor, abs=1.5)
    torch.testing.assert_close(fast.square().mean(), tone(500).square().mean(), rtol=0.02, atol=0)


def test_speed_one_is_the_same() -> None:
    assert torch.equal(speed(tone(500), 1.0), tone(500))


def test_absurd_speed() -> None:
    with pytest.raises(AudioError, match=r"0\.5 to 2"):
        speed(tone(500), 0.0)


# Noise.


@settings(max_examples=30, deadline=None)
@given(snr_db=st.floats(-10, 40), count=st.integers(100, 5000), seed=st.integers(0, 99))
def test_noise_has_the_ratio_asked_for(snr_db: float, count: int, seed: int) -> None:
    samples = tone(300, 2000).double()
    noise = torch.randn(count, generator=gen(seed), dtype=torch.float64)
    added = add_noise(samples, noise, snr_db, gen(seed)) - samples
    ratio = 10 * torch.log10(samples.square().mean() / added.square().mean())
    assert ratio.item() == pytest.approx(snr_db, abs=1e-6)


def test_noise_begins_anywhere_and_repeats() -> None:
    noise = torch.arange(1.0, 8.0)
    starts = set()
    for seed in range(40):
        added = add_noise(torch.ones(20), noise, 0.0, gen(seed)) - 1
        torch.testing.assert_close(added[:13], added[7:], atol=1e-6, rtol=0)
        starts.add(round(float(added[0] / added[:7].min())))
    assert starts == set(range(1, 8))


def test_noise_that_is_silent() -> None:
    with pytest.raises(AudioError, match="all zero"):
        add_noise(tone(300), torch.zeros(100), 10.0, gen())
    late = torch.cat([torch.zeros(9999), torch.ones(1)])  # most pieces of 100 samples hold nothing
    assert torch.equal(add_noise(tone(300, 100), late, 10.0, gen()), tone(300, 100))


# Rooms.


def test_reverberation_is_convolution_at_the_same_energy() -> None:
    samples = torch.randn(200, generator=gen(), dtype=torch.float64)
    rir = torch.tensor([0.1, 1.0, 0.0, -0.4, 0.2], dtype=torch.float64)
    direct = torch.zeros(200, dtype=torch.float64)
    for t in range(200):
        for lag, value in enumerate(rir):
            if 0 <= t + 1 - lag < 200:
                direct[t] += value * samples[t + 1 - lag]
    wanted = direct * (samples.square().mean() / direct.square().mean()).sqrt()
    torch.testing.assert_close(reverberate(samples, rir), wanted)


def test_an_impulse_response_of_one_click_changes_nothing() -> None:
    rir = torch.zeros(50)
    rir[20] = -2.0
    torch.testing.assert_close(reverberate(tone(300), rir), -tone(300), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rt60_s", [0.2, 0.6])
def test_synthetic_room_decays_by_60_db_in_rt60(rt60_s: float) -> None:
    """The slope of Schroeder's backward integral from -5 to -25 dB, as ISO 3382 measures T20."""
    rir = synthetic_rir(gen(), rt60_s)
    assert abs(len(rir) - rt60_s * 16000) <= 1
    assert rir.abs().argmax() == 0
    energy = rir[1:].double().square().flip(0).cumsum(0).flip(0)
    level = 10 * torch.log10(energy / energy[0])
    first, last = (int((level < db).nonzero()[0]) for db in (-5, -25))
    assert 3 * (last - first) / 16000 == pytest.approx(rt60_s, rel=0.1)


def test_rooms_come_from_the_generator_alone() -> None:
    assert torch.equal(synthetic_rir(gen(3), 0.3), synthetic_rir(gen(3), 0.3))
    assert not torch.equal(synthetic_rir(gen(3), 0.3), synthetic_rir(gen(4), 0.3))
