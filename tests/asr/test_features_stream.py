"""Features of a stream: the same frames as of the whole recording, however it is cut."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import read_audio
from asr.features import FeatureConfig, fbank
from asr.features_stream import FeatureStream
from lm.errors import AudioError

ODD: dict[str, Any] = {"sample_rate": 1000, "num_bins": 4, "high_freq": 0.0}
CONFIGS = [
    FeatureConfig(),
    FeatureConfig(sample_rate=8000, num_bins=23, low_freq=64.0, high_freq=3800.0),
    FeatureConfig(frame_length_ms=32.0, frame_shift_ms=8.0),
    FeatureConfig(frame_shift_ms=25.0),  # frames that do not overlap
    FeatureConfig(**ODD, frame_length_ms=21.0, frame_shift_ms=4.0),
    FeatureConfig(**ODD, frame_length_ms=25.0, frame_shift_ms=1.0),
    FeatureConfig(**ODD, frame_length_ms=21.0, frame_shift_ms=20.0),  # mirrors more than the last frame holds
]


def streamed(samples: torch.Tensor, config: FeatureConfig, cuts: list[int]) -> torch.Tensor:
    stream = FeatureStream(config)
    bounds = [0, *sorted(cut % (len(samples) + 1) for cut in cuts), len(samples)]
    found = [stream.push(samples[a:b]) for a, b in pairwise(bounds)]
    found.append(stream.finish())
    assert stream.frames == sum(len(part) for part in found)
    return torch.cat(found)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CONFIGS), st.integers(0, 900), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cut_gives_the_frames_of_the_whole(config: FeatureConfig, more: int, cuts: list[int]) -> None:
    samples = 0.1 * torch.randn(config.width + more, generator=torch.Generator().manual_seed(more))
    torch.testing.assert_close(streamed(samples, config, cuts), fbank(samples, config), atol=1e-4, rtol=0)


def test_sample_by_sample() -> None:
    samples = 0.1 * torch.randn(1234)
    found = streamed(samples, CONFIGS[0], list(range(1234)))
    torch.testing.assert_close(found, fbank(samples, CONFIGS[0]), atol=1e-4, rtol=0)


def test_without_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = 0.1 * torch.randn(3000)
    whole = fbank(samples, CONFIGS[0])
    names = [m for m in sys.modules if m.split(".")[0] == "torchaudio"]
    for name in {*names, "torchaudio", "torchaudio.compliance"}:
        monkeypatch.setitem(sys.modules, name, None)
    torch.testing.assert_close(streamed(samples, CONFIGS[0], [77, 1500]), whole, atol=1e-3, rtol=0)


def test_a_frame_comes_out_with_its_last_sample() -> None:
    stream = FeatureStream(CONFIGS[0])
    assert len(stream.push(torch.zeros(399))) == 0
    assert len(stream.push(torch.zeros(1))) == 1  # the first waits until the recording is long enough
    for frame in range(1, 30):
        missing = frame * 160 + 280 - stream.samples  # 17.5 ms behind the frame's time
        assert len(stream.push(torch.zeros(missing - 1))) == 0
        assert len(stream.push(torch.zeros(1))) == 1


def test_a_long_stream_keeps_no_more_than_a_frame() -> None:
    stream = FeatureStream(CONFIGS[0])
    for _ in range(50):
        stream.push(torch.randn(1601))
        assert len(stream._kept) <= 400


def test_what_cannot_be_fed_is_refused() -> None:
    stream = FeatureStream(CONFIGS[0])
    for wrong in (torch.zeros(1, 800), torch.zeros(800, dtype=torch.int16)):
        with pytest.raises(AudioError, match="float in"):
            stream.push(wrong)
    stream.push(torch.zeros(399))
    with pytest.raises(AudioError, match="399 samples; expected at least 400"):
        stream.finish()
    with pytest.raises(AudioError, match="after the end"):
        stream.push(torch.zeros(800))
    with pytest.raises(AudioError, match="twice"):
        stream.finish()


@pytest.mark.corpora
def test_real_speech(corpora: Path) -> None:
    path = next(iter(sorted((corpora / "mini_librispeech" / "audio").glob("*.opus"))))
    samples = torch.from_numpy(read_audio(path))
    found = streamed(samples, CONFIGS[0], list(range(0, len(samples), 1600)))
    torch.testing.assert_close(found, fbank(samples, CONFIGS[0]), atol=1e-3, rtol=0)
