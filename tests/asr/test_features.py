from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import read_audio
from asr.features import FeatureConfig, FeatureNormaliser, fbank, fbank_reference
from lm.config import build_config
from lm.errors import AudioError, ConfigError, DataError

CONFIG = FeatureConfig()


def voice(count: int, seed: int = 0) -> torch.Tensor:
    """Noise that swells and fades, over a little hum with an offset."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(count) / 16000
    swell = 0.2 * torch.sin(2 * np.pi * 3 * t) ** 2 + 0.001
    return torch.randn(count, generator=generator) * swell + 0.05 * torch.sin(2 * np.pi * 120 * t) + 0.01


def kaldi_native(samples: torch.Tensor, config: FeatureConfig) -> torch.Tensor:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.frame_opts.samp_freq = config.sample_rate
    options.frame_opts.frame_length_ms = config.frame_length_ms
    options.frame_opts.frame_shift_ms = config.frame_shift_ms
    options.mel_opts.num_bins = config.num_bins
    options.mel_opts.low_freq = config.low_freq
    options.mel_opts.high_freq = config.high_freq
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(config.sample_rate, (samples * 32768).tolist())
    computer.input_finished()
    return torch.from_numpy(np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)]))


OTHERS = [
    CONFIG,
    FeatureConfig(num_bins=40, high_freq=0.0),
    FeatureConfig(sample_rate=8000, num_bins=23, low_freq=64.0, high_freq=3800.0),
    FeatureConfig(frame_length_ms=32.0, frame_shift_ms=8.0),
]


@pytest.mark.parametrize("config", OTHERS)
def test_reference_agrees_with_torchaudio_and_kaldi(config: FeatureConfig) -> None:
    pytest.importorskip("torchaudio")
    samples = voice(16123)
    reference = fbank_reference(samples, config)
    assert reference.shape == ((16123 + config.shift // 2) // config.shift, config.num_bins)
    torch.testing.assert_close(reference, fbank(samples, config), atol=1e-3, rtol=0)
    torch.testing.assert_close(reference, kaldi_native(samples, config), atol=1e-3, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(400, 2000))
def test_any_length_gives_kaldis_frames(count: int) -> None:
    pytest.importorskip("torchaudio")
    samples = voice(count)
    reference = fbank_reference(samples, CONFIG)
    assert reference.shape == ((count + 80) // 160, 80)
    torch.testing.assert_close(reference, fbank(samples, CONFIG), atol=1e-3, rtol=0)


def test_a_tone_lands_in_its_filter() -> None:
    """Filter m is centred on mel low + (m + 1) * step."""
    features = fbank_reference(0.5 * torch.sin(2 * np.pi * 1000 * torch.arange(16000) / 16000), CONFIG)

    def mel(hertz: float) -> float:
        return 1127 * np.log1p(hertz / 700)

    wanted = (mel(1000) - mel(20)) / (mel(7600) - mel(20)) * 81 - 1
    assert abs(features.mean(0).argmax().item() - wanted) <= 0.51


def test_frames_are_centred_where_the_docstring_says() -> None:
    click = torch.zeros(16000)
    click[16 * 505] = 0.5  # 505 ms: centre of frame 50
    assert fbank_reference(click, CONFIG).sum(1).argmax() == 50


def test_digital_silence_is_the_floor_and_finite() -> None:
    floor = float(np.log(np.finfo(np.float32).eps))
    torch.testing.assert_close(fbank(torch.zeros(800), CONFIG), torch.full((5, 80), floor))
    torch.testing.assert_close(fbank_reference(torch.zeros(800), CONFIG), torch.full((5, 80), floor))


def test_without_torchaudio_plain_torch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = voice(4000)
    for name in [m for m in sys.modules if m.split(".")[0] == "torchaudio"] + [
        "torchaudio",
        "torchaudio.compliance",
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        import torchaudio  # noqa: F401
    assert torch.equal(fbank(samples, CONFIG), fbank_reference(samples, CONFIG))


@pytest.mark.parametrize("compute", [fbank, fbank_reference])
@pytest.mark.parametrize("shape", [(399,), (0,), (1, 800)])
def test_too_short_or_not_one_recording(compute: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match="at least 400"):
        compute(torch.zeros(shape), CONFIG)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"low_freq": 8000.0}, "low_freq < high_freq"),
        ({"high_freq": 9000.0}, "low_freq < high_freq"),
        ({"frame_shift_ms": 30.0}, "frame_shift_ms"),
        ({"frame_shift_ms": 0.01}, "frame_shift_ms"),
        ({"num_bin": 80}, "did you mean 'num_bins'"),
        ({"num_bins": 0}, "num_bins = 0"),
    ],
)
def test_bad_configurations(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(FeatureConfig, values, "features")
    assert words in str(caught.value)


def test_normaliser_whitens_what_it_was_estimated_from() -> None:
    data = [fbank_reference(voice(n, seed=n), CONFIG) for n in (4000, 9000, 16000)]
    normaliser = FeatureNormaliser.estimate(iter(data))
    everything = torch.cat(data)
    torch.testing.assert_close(normaliser.mean, everything.mean(0), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(normaliser.std, everything.std(0, correction=0), atol=1e-4, rtol=1e-4)
    done = normaliser(everything)
    torch.testing.assert_close(done.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    torch.testing.assert_close(done.std(0, correction=0), torch.ones(80), atol=1e-3, rtol=0)
    assert normaliser(everything[None]).shape == (1, *everything.shape)


def test_normaliser_estimate_takes_half_precision() -> None:
    data = fbank_reference(voice(16000), CONFIG)
    half = FeatureNormaliser.estimate([data.half()])
    torch.testing.assert_close(half.mean, FeatureNormaliser.estimate([data]).mean, atol=2e-3, rtol=0)


def test_normaliser_travels_as_two_vectors() -> None:
    fitted = FeatureNormaliser.estimate([torch.randn(50, 4) * 3 + 7])
    assert sorted(fitted.state_dict()) == ["mean", "std"]
    assert list(fitted.parameters()) == []
    fresh = FeatureNormaliser(4)
    x = torch.randn(5, 4)
    assert torch.equal(fresh(x), x)
    fresh.load_state_dict(fitted.state_dict())
    assert torch.equal(fresh(x), fitted(x))


def test_a_bin_that_never_moves_does_not_explode() -> None:
    normaliser = FeatureNormaliser.estimate([torch.full((10, 4), -15.9)])
    assert normaliser(torch.full((4,), -14.9)).abs().max() < 10.1


def test_normaliser_needs_finite_frames() -> None:
    with pytest.raises(DataError, match="no frames"):
        FeatureNormaliser.estimate([])
    with pytest.raises(DataError, match="NaN"):
        FeatureNormaliser.estimate([torch.tensor([[1.0, float("nan")]])])


@pytest.mark.corpora
def test_real_speech_agrees_with_kaldi(corpora: Path) -> None:
    path = next(iter(sorted((corpora / "mini_librispeech" / "audio").glob("*.opus"))))
    samples = torch.from_numpy(read_audio(path))
    reference = fbank_reference(samples, CONFIG)
    torch.testing.assert_close(reference, fbank(samples, CONFIG), atol=1e-3, rtol=0)
    torch.testing.assert_close(reference, kaldi_native(samples, CONFIG), atol=1e-3, rtol=0)
    assert 3 < reference.mean() < 15
