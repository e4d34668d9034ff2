"""Streams through a chunked Conformer give what it gives for the whole utterances."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.encoders.conformer import Conformer, ConformerConfig
from asr.encoders.streaming import EncoderStream, StreamingEncoder
from asr.families.factorized.config import FactorizedConfig
from asr.families.factorized.model import FactorizedTransducer
from asr.features import FeatureConfig, FeatureNormaliser, fbank
from asr.features_stream import FeatureStream
from lm.errors import ConfigError, DataError

SMALL: dict[str, Any] = {"width": 16, "heads": 2, "feed_forward": 32}


def make(**values: Any) -> Conformer:
    torch.manual_seed(0)
    return Conformer(ConformerConfig(**({"features": 8, "layers": 2, "kernel": 5} | SMALL | values))).eval()


def whole(model: Conformer, utterances: list[torch.Tensor]) -> list[torch.Tensor]:
    """What the masked forward pass gives for a padded batch."""
    lengths = torch.tensor([len(u) for u in utterances])
    with torch.no_grad():
        encoded, frames = model(torch.nn.utils.rnn.pad_sequence(utterances, batch_first=True), lengths)
    return [row[:count] for row, count in zip(encoded, frames.tolist(), strict=True)]


def cached(stream: EncoderStream) -> int:
    return sum(part.numel() for cache in stream.caches for part in cache)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    values = {
        "chunk": draw(st.integers(1, 5)),
        "kernel": draw(st.sampled_from([1, 4, 7])),
        "stacking": draw(st.sampled_from([1, 3, 4])),
        "attention": draw(st.booleans()),
    }
    if values["attention"]:
        values["left_chunks"] = draw(st.sampled_from([-1, 0, 1, 3]))
        values["dynamic_chunk"] = draw(st.booleans())
    return values


@settings(max_examples=50, deadline=None)
@given(configs(), st.lists(st.integers(0, 90), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_streams_fed_in_any_way_give_the_whole(
    values: dict[str, Any], lengths: list[int], luck: random.Random
) -> None:
    """Streams begin, go on and end at times of their own, some of them side by side in one call."""
    model = make(**values)
    utterances = [torch.randn(length, 8) for length in lengths]
    streaming = StreamingEncoder(model)
    streams = [streaming.start() for _ in lengths]
    found: list[list[torch.Tensor]] = [[] for _ in lengths]
    fed = [0] * len(lengths)
    going = set(range(len(lengths)))
    while going:
        some = [i for i in sorted(going) if luck.random() < 0.7]
        amounts = [min(luck.choice([0, 1, 5, 13, 60]), lengths[i] - fed[i]) for i in some]
        parts = [utterances[i][fed[i] : fed[i] + n] for i, n in zip(some, amounts, strict=True)]
        for i, n, out in zip(some, amounts, streaming.push([streams[i] for i in some], parts), strict=True):
            fed[i] += n
            found[i].append(out)
            # No frame of a finished chunk is held back.
            assert streams[i].frames == fed[i] // streaming.chunk_frames * values["chunk"]
        ended = [i for i in some if fed[i] == lengths[i]]
        for i, out in zip(ended, streaming.finish([streams[i] for i in ended]), strict=True):
            found[i].append(out)
        going -= set(ended)
    kept = [i for i, length in enumerate(lengths) if length]
    for i in set(range(len(lengths))) - set(kept):
        assert torch.cat(found[i]).shape == (0, 16)
    if kept:
        for i, expected in zip(kept, whole(model, [utterances[i] for i in kept]), strict=True):
            torch.testing.assert_close(torch.cat(found[i]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("left_chunks", "grows"), [(0, False), (2, False), (-1, True)])
def test_memory_grows_only_when_the_whole_past_is_kept(left_chunks: int, grows: bool) -> None:
    streaming = StreamingEncoder(make(chunk=3, left_chunks=left_chunks))
    stream = streaming.start()
    sizes = []
    for _ in range(12):
        streaming.push([stream], [torch.randn(15, 8)])
        sizes.append(cached(stream))
    assert (sizes[-1] > sizes[5] > sizes[3]) == grows
    if not grows:
        assert sizes[-1] == sizes[5] == 2 * 2 * 16 * 3 * left_chunks + 2 * 4 * 16  # attention, convolution
    assert len(stream.waiting) < streaming.chunk_frames


@torch.no_grad()
def test_a_stream_may_be_longer_than_any_position_trained() -> None:
    """Keys are turned relative to the oldest visible one: frame 10^6 is computed as exactly as frame 10."""
    model = make(chunk=2, left_chunks=2)
    streaming = StreamingEncoder(model)
    period = torch.randn(40, 8)
    stream = streaming.start()
    first = [streaming.push([stream], [period])[0] for _ in range(4)]
    for _ in range(100):
        last = streaming.push([stream], [period])[0]
    torch.testing.assert_close(last, first[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dynamic", "fix"), [(True, "any size will do"), (False, "train the model with it")])
def test_full_context_cannot_be_streamed(dynamic: bool, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        StreamingEncoder(make(dynamic_chunk=dynamic))


def test_what_cannot_be_fed_is_refused_before_anything_changes() -> None:
    streaming = StreamingEncoder(make(chunk=2))
    good, other = streaming.start(), streaming.start()
    with pytest.raises(DataError, match=r"shape \(5, 7\); expected \(frames, 8\)"):
        streaming.push([good, other], [torch.randn(30, 8), torch.randn(5, 7)])
    assert len(good.waiting) == good.frames == 0
    with pytest.raises(DataError, match="twice"):
        streaming.push([good, good], [torch.randn(3, 8)] * 2)
    streaming.finish([other])
    with pytest.raises(DataError, match="finished"):
        streaming.push([other], [torch.randn(3, 8)])
    with pytest.raises(DataError, match="finished"):
        streaming.finish([good, other])
    assert not good.finished


@torch.no_grad()
def test_from_samples_to_encoder_frames_as_a_family_encodes_them() -> None:
    torch.manual_seed(0)
    config = FactorizedConfig(encoder=ConformerConfig(layers=2, chunk=4, left_chunks=2, **SMALL))
    model = FactorizedTransducer(config, num_tokens=5, num_classes=0).eval()
    samples = 0.1 * torch.randn(30_000)
    features = fbank(samples, FeatureConfig())
    model.normaliser = FeatureNormaliser.estimate([features])
    expected, _ = model.encode(features[None], torch.tensor([len(features)]))

    heard, streaming = FeatureStream(FeatureConfig()), StreamingEncoder(model.encoder)
    stream = streaming.start()
    found = [streaming.push([stream], [model.normaliser(heard.push(s))])[0] for s in samples.split(1111)]
    found += streaming.push([stream], [model.normaliser(heard.finish())])
    found += streaming.finish([stream])
    torch.testing.assert_close(torch.cat(found), expected[0], atol=1e-3, rtol=0)
