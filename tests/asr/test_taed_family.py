"""The hybrid transducer-attention model: its lattice, its chunks, its search, offline and in a stream."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.bundle import save_bundle
from asr.data.examples import Batch, Example, make_batch
from asr.decoding_config import DecodingConfig
from asr.encoders.masks import valid_frames
from asr.families import load_family
from asr.families.taed.config import TAEDConfig, TAEDLossConfig
from asr.families.taed.emitter import TAEDEmitter
from asr.families.taed.model import TAED, chunks_of
from asr.recognizer import Recognizer
from asr.streaming import StreamingRecognizer
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from decoding.internal_lm import ilme
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig

VOCAB = 4
ENCODER = {"features": 8, "layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "kernel": 3, "dropout": 0}
DECODER = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 16, "dropout": 0}
EXAMPLES = [Example("a", (1, 2, 2), ((0, 1, 3),)), Example("b", (3,), ()), Example("c", (), ())]
CHUNKS = pytest.mark.parametrize("chunk", [0, 1, 2, 3])


def make(chunk: int, vocab: int = VOCAB, sharpness: float = 1.0) -> TAED:
    torch.manual_seed(3)
    values = {"encoder": ENCODER, "decoder": DECODER, "joint_width": 12, "decoder_chunk": chunk}
    model = TAED(TAEDConfig.model_validate(values), vocab).eval()
    with torch.no_grad():
        model.joint.output.weight *= sharpness
        model.project.weight *= 3  # so that what the decoder heard is seen in the scores
    return model


def batch_of(examples: list[Example]) -> Batch:
    features = torch.randn(len(examples), 20, 8, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 14, 9][: len(examples)])
    return make_batch(features, lengths, examples, VOCAB, 0.0, torch.Generator().manual_seed(2))


def dense_logp(model: TAED, encoded: Tensor, labels: Tensor) -> Tensor:
    """(T, U+1, V+1) of one unpadded utterance, by the equation: a pass through the decoder for every frame."""
    frames, size = encoded.shape[1], model.config.chunk
    rows = []
    for frame in range(frames):
        heard = min(frames, (frame // size + 1) * size) if size else frames
        visible = torch.ones(1, heard, dtype=torch.bool)
        states = model.decoder(labels[None], model.decoder.remember(encoded[:, :heard]), visible)[0]
        logits = model.joint(model.joint.frame(encoded[0, frame]), model.project(states))
        rows.append(logits.log_softmax(-1))
    return torch.stack(rows)


# ---- training ----------------------------------------------------------------------------------------------


@CHUNKS
def test_the_lattice_is_the_equation(chunk: int) -> None:
    model, batch = make(chunk), batch_of(EXAMPLES)
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    whole, (blank, label) = model.scores(encoded, frames, batch, True)
    assert whole is not None
    assert whole.shape == (3, 4, 8)
    for row, example in enumerate(EXAMPLES):
        count, length = len(example.labels), int(frames[row])
        given = batch.labels[row, :count]
        logp = dense_logp(model, encoded[row : row + 1, :length], given)
        torch.testing.assert_close(blank[row, :length, : count + 1], logp[..., -1], atol=1e-5, rtol=1e-4)
        wanted = logp[:, :-1].gather(-1, given.expand(length, count)[..., None]).squeeze(-1)
        torch.testing.assert_close(label[row, :length, :count], wanted, atol=1e-5, rtol=1e-4)


def test_chunks_of_utterances() -> None:
    owner, chunk = chunks_of(torch.tensor([5, 2, 4]), 2)
    assert owner.tolist() == [0, 0, 0, 1, 2, 2]
    assert chunk.tolist() == [0, 1, 2, 0, 0, 1]


@CHUNKS
def test_a_chunk_hears_nothing_that_comes_later(chunk: int) -> None:
    model, batch = make(chunk), batch_of(EXAMPLES[:1])
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    changed = encoded.clone()
    changed[:, 4] += 1
    _, (blank, _) = model.scores(encoded, frames, batch, False)
    _, (other, _) = model.scores(changed, frames, batch, False)
    same = [torch.allclose(blank[0, t], other[0, t]) for t in range(5)]
    first = {0: 0, 1: 4, 2: 4, 3: 3}[chunk]  # the first frame whose chunk holds frame 4
    assert same == [t < first for t in range(5)]


def test_without_chunks_the_decoder_is_that_of_an_aed() -> None:
    model, batch = make(0), batch_of(EXAMPLES)
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    states, _ = model.scores(encoded, frames, batch, True)
    assert states is not None
    visible = valid_frames(frames, encoded.shape[1])
    assert states.equal(model.decoder(batch.labels, model.decoder.remember(encoded), visible))


@CHUNKS
def test_a_batch_loses_what_its_utterances_lose(chunk: int) -> None:
    model, batch, config = make(chunk), batch_of(EXAMPLES), TAEDLossConfig(attention_weight=0)
    whole = model.losses(batch, config)["total"].item() * 4
    alone = 0.0
    for row, example in enumerate(EXAMPLES):
        length = int(batch.feature_lengths[row])
        features = batch.features[row : row + 1, :length]
        lengths = batch.feature_lengths[row : row + 1]
        one = make_batch(features, lengths, [example], VOCAB, 0.0, torch.Generator())
        alone += model.losses(one, config)["total"].item() * max(1, len(example.labels))
    assert whole == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("chunk", [0, 2])
def test_twenty_steps_lower_the_loss_and_gradients_reach_every_part(chunk: int) -> None:
    model, batch = make(chunk).train(), batch_of(EXAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        total = model.losses(batch, TAEDLossConfig(label_smoothing=0))["total"]
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < 0.6 * values[0]
    reached = {n: p.grad is not None and bool(p.grad.abs().max() > 0) for n, p in model.named_parameters()}
    assert [n for n, hit in reached.items() if not hit] == []


# ---- search ------------------------------------------------------------------------------------------------


@CHUNKS
@pytest.mark.parametrize("top", [None, 2])
@torch.no_grad()
def test_search_scores_are_the_probabilities_that_training_uses(chunk: int, top: int | None) -> None:
    model = make(chunk, sharpness=3.0)
    encoded, lengths = model.encode(torch.randn(2, 20, 8), torch.tensor([20, 13]))
    labels = torch.tensor([[2, 0, 0], [3, 1, 2]])
    emitter = TAEDEmitter(model, encoded, lengths, top)
    state = emitter.start()
    for place in range(4):
        for first in range(place, 5):
            frames = torch.arange(first, min(5, first + emitter.lookahead)).expand(2, -1)
            scores = emitter.score(frames, state[:, None])
            for row in range(2):
                logp = dense_logp(model, encoded[row : row + 1, : int(lengths[row])], labels[row])
                real = frames[row][frames[row] < lengths[row]]
                blank = scores.blank_logp[row, 0, : len(real)]
                torch.testing.assert_close(blank, logp[real, place, -1], atol=1e-5, rtol=1e-4)
                wanted = logp[real, place].gather(-1, emitter.tokens[row, real])
                torch.testing.assert_close(scores.label[row, 0, : len(real)], wanted, atol=1e-5, rtol=1e-4)
        if place < 3:
            state = emitter.advance(state, labels[:, place])


def exhaustive(model: TAED, encoded: Tensor) -> dict[tuple[int, ...], float]:
    """Log probability of every label sequence: one label or a blank in each frame."""
    totals = {}
    for size in range(encoded.shape[1] + 1):
        for labels in itertools.product(range(model.num_tokens), repeat=size):
            logp = dense_logp(model, encoded, torch.tensor(labels, dtype=torch.long)).double()
            reached = torch.full((size + 1,), -torch.inf, dtype=torch.float64)
            reached[0] = 0
            for row in logp:
                after = reached + row[:, -1]
                for place, label in enumerate(labels):
                    after[place + 1] = torch.logaddexp(after[place + 1], reached[place] + row[place, label])
                reached = after
            totals[labels] = float(reached[-1])
    return totals


@CHUNKS
@torch.no_grad()
def test_a_wide_beam_finds_what_exhaustive_search_finds(chunk: int) -> None:
    model = make(chunk, vocab=2, sharpness=4.0)
    encoded, lengths = model.encode(torch.randn(1, 16, 8), torch.tensor([16]))
    totals = exhaustive(model, encoded)
    assert sum(map(math.exp, totals.values())) == pytest.approx(1, abs=1e-5)
    config = BeamConfig(beam=200, nbest=200, threshold=1e4)
    found = BeamSearch(TAEDEmitter(model, encoded, lengths), config).run()[0]
    assert {tuple(h.tokens): h.score for h in found} == pytest.approx(totals, abs=1e-4)


@pytest.mark.parametrize("chunk", [0, 4])
@torch.no_grad()
def test_a_beam_of_one_is_greedy_search_and_a_batch_is_its_utterances(chunk: int) -> None:
    model = make(chunk, sharpness=6.0)
    sizes = torch.tensor([60, 41, 8])
    features = torch.randn(3, 60, 8, generator=torch.Generator().manual_seed(8))
    encoded, lengths = model.encode(features, sizes)
    tokens = [t for t, _ in greedy_search(TAEDEmitter(model, encoded, lengths), 1)]
    assert any(tokens)
    beams = BeamSearch(TAEDEmitter(model, encoded, lengths), BeamConfig(beam=1)).run()
    assert [list(found[0].tokens) for found in beams] == tokens
    config = BeamConfig(beam=4)
    together = BeamSearch(TAEDEmitter(model, encoded, lengths, 3), config).run()
    for row in range(3):
        one, length = model.encode(features[row : row + 1, : int(sizes[row])], sizes[row : row + 1])
        alone = BeamSearch(TAEDEmitter(model, one, length, 3), config).run()[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[row]], abs=1e-3)


@torch.no_grad()
def test_the_internal_language_model_hears_nothing_and_is_one_for_all() -> None:
    model, found = make(2, sharpness=3.0), []
    for seed in range(2):
        torch.manual_seed(seed)
        encoded, lengths = model.encode(torch.randn(2, 40, 8), torch.tensor([40, 12]))
        scorer = ilme(TAEDEmitter(model, encoded, lengths).internal(), 1.0)
        state = scorer.advance(scorer.start(2), torch.tensor([1, 1]))
        found.append(scorer.score(state, torch.arange(VOCAB).expand(2, -1)))
    assert found[0].equal(found[1])
    assert found[0][0].equal(found[0][1])
    assert torch.allclose(found[0].exp().sum(-1), torch.ones(2), atol=1e-5)


# ---- as a family -------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32, "chunk": 4},
    "decoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
    "joint_width": 16,
}


def bundle(folder: Path, model: dict[str, Any] = TINY) -> Recognizer:
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    torch.manual_seed(1)
    family = load_family("taed", model, tokenizer, "here")
    weights = family.model.state_dict()
    weights["joint.output.weight"] *= 8
    save_bundle(folder, {"family": "taed", "model": model}, weights, tokenizer.model_bytes, "# Tiny")
    return Recognizer.load(folder)


def noise(seconds: float) -> Any:
    rng = np.random.default_rng(0)
    return rng.standard_normal(int(16000 * seconds)).astype(np.float32) / 10


def test_a_model_folder_is_loaded_and_transcribes(tmp_path: Path) -> None:
    recognizer = bundle(tmp_path)
    plain = recognizer.transcribe(noise(1.0))
    assert plain.text
    strong = DecodingConfig(biasing="phrases", phrase_bonus=30)
    boosted = recognizer.transcribe(noise(1.0), entities={"contact": ["maja novak"]}, options=strong)
    assert "MAJA NOVAK" in boosted.text
    assert "MAJA NOVAK" not in plain.text


@pytest.mark.parametrize("decoder_chunk", [None, 2])
def test_a_stream_gives_what_the_whole_recording_gives(tmp_path: Path, decoder_chunk: int | None) -> None:
    recognizer = bundle(tmp_path, TINY | {"decoder_chunk": decoder_chunk})
    samples = noise(2.3)
    stream = StreamingRecognizer(recognizer)
    for start in range(0, len(samples), 3000):
        stream.push(samples[start : start + 3000])
    assert stream.finish().text == recognizer.transcribe(samples).text != ""


@pytest.mark.parametrize("decoder_chunk", [0, 3])
def test_a_stream_whose_chunks_do_not_fit_says_so(tmp_path: Path, decoder_chunk: int) -> None:
    recognizer = bundle(tmp_path, TINY | {"decoder_chunk": decoder_chunk})
    stream = StreamingRecognizer(recognizer)
    with pytest.raises(ConfigError, match="decoder_chunk"):
        stream.push(noise(2.0))


def test_recipes_take_the_family_and_refuse_unknown_keys(tmp_path: Path) -> None:
    values = {"corpus": "contacts", "family": "taed", "systems": [{"name": "TAED"}]}
    good = values | {"loss": {"attention_weight": 0.5}, "model": {"decoder_chunk": 16}}
    assert asr_recipe(RecipeConfig.model_validate(good), tmp_path).stages
    bad = RecipeConfig.model_validate(values | {"model": {"decoder": {"layer": 2}}})
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        asr_recipe(bad, tmp_path)
