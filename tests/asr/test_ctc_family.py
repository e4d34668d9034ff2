"""The CTC model: its loss, and that its emitter's steps add up to the same probabilities."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.bundle import save_bundle
from asr.data.examples import Batch, Example, make_batch
from asr.families import load_family
from asr.families.ctc.config import CTCConfig, CTCLossConfig
from asr.families.ctc.emitter import CTCEmitter
from asr.families.ctc.model import CTC
from asr.losses.ctc import ctc_loss
from asr.recognizer import Recognizer
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig

VOCAB = 3
ENCODER = {"features": 8, "layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "kernel": 3, "dropout": 0}
EXAMPLES = [Example("a", (1, 2, 2), ((0, 1, 3),)), Example("b", (2,), ()), Example("c", (), ())]


def make(sharpness: float = 1.0) -> CTC:
    torch.manual_seed(3)
    model = CTC(CTCConfig.model_validate({"encoder": ENCODER}), VOCAB).eval()
    with torch.no_grad():
        model.output.weight *= sharpness
    return model


def batch_of(examples: list[Example]) -> Batch:
    features = torch.randn(len(examples), 20, 8, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 14, 9][: len(examples)])
    return make_batch(features, lengths, examples, VOCAB, 0.0, torch.Generator().manual_seed(2))


def said(path: tuple[int, ...]) -> tuple[int, ...]:
    """What a path of symbols means: repeats merged, blanks removed."""
    return tuple(s for s, _ in itertools.groupby(path) if s != VOCAB)


def test_the_loss_is_the_sum_over_all_paths() -> None:
    model, batch = make(3.0), batch_of(EXAMPLES)
    found = model.losses(batch, CTCLossConfig())
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    logp = model.logp(encoded).detach()
    total = 0.0
    for row, example in enumerate(EXAMPLES):
        paths = itertools.product(range(VOCAB + 1), repeat=int(frames[row]))
        sums = [
            sum(float(logp[row, t, s]) for t, s in enumerate(path))
            for path in paths
            if said(path) == example.labels
        ]
        total -= math.log(sum(map(math.exp, sums)))
    assert found["ctc"].item() == pytest.approx(total / 4, rel=1e-5)
    assert found["total"].equal(found["ctc"])
    assert found["unaligned"].item() == 0.0
    reference = torch.nn.functional.ctc_loss(
        logp.transpose(0, 1), batch.labels, frames, batch.label_lengths, blank=VOCAB, reduction="sum"
    )
    assert found["total"].item() == pytest.approx(float(reference) / 4, rel=1e-5)


def test_utterances_that_cannot_be_aligned_are_counted() -> None:
    model = make()
    batch = batch_of([Example("a", (1, 2), ()), Example("b", (0,) * 4, ())])
    found = model.losses(batch, CTCLossConfig())  # four equal labels need seven frames and have four
    assert found["unaligned"].item() == 0.5
    assert found["total"].isfinite()


def test_a_batch_loses_what_its_utterances_lose() -> None:
    model, batch = make(), batch_of(EXAMPLES)
    alone = 0.0
    for row, example in enumerate(EXAMPLES):
        length = int(batch.feature_lengths[row])
        features = batch.features[row : row + 1, :length]
        one = make_batch(features, torch.tensor([length]), [example], VOCAB, 0.0, torch.Generator())
        alone += model.losses(one, CTCLossConfig())["total"].item() * max(1, len(example.labels))
    assert model.losses(batch, CTCLossConfig())["total"].item() * 4 == pytest.approx(alone, rel=1e-4)


def test_twenty_steps_lower_the_loss_and_gradients_reach_every_part() -> None:
    model, batch = make().train(), batch_of(EXAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        total = model.losses(batch, CTCLossConfig())["total"]
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < 0.6 * values[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_self_attention_a_frame_hears_its_neighbours_only() -> None:
    """The control of arXiv 2102.09928: one block of kernel 3 hears one encoder frame to each side."""
    features = torch.randn(1, 40, 8)
    other = features.clone()
    other[:, 36:] += 1
    for attention, changed in ((False, 2), (True, 10)):
        torch.manual_seed(3)
        config = CTCConfig.model_validate({"encoder": {**ENCODER, "attention": attention}})
        model = CTC(config, VOCAB).eval()
        one, two = (model.logp(model.encode(x, torch.tensor([40]))[0]) for x in (features, other))
        assert int((one != two).any(-1).sum()) == changed


# ---- the emitter -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_of_open_and_closed_states() -> None:
    model = make(3.0)
    encoded, lengths = model.encode(torch.randn(2, 20, 8), torch.tensor([20, 12]))
    logp = model.logp(encoded)
    emitter = CTCEmitter(model, encoded, lengths)
    start = emitter.start()
    said_two = emitter.advance(start, torch.tensor([2, 2]))
    state = torch.stack((start, said_two, emitter.close(said_two)), dim=1)
    for first in range(4):
        frames = torch.tensor([[first, first + 1], [4 - first, 5 - first]])  # the second utterance elsewhere
        scores = emitter.score(frames.clamp_max(4), state)
        assert scores.repeat_logp is not None
        for row in range(2):
            here = frames[row].clamp_max(4)
            wanted = logp[row, here].gather(1, emitter.tokens[row, here])
            assert torch.equal(scores.blank_logp[row], logp[row, here, VOCAB].expand(3, 2))
            assert scores.repeat_logp[row, [0, 2]].isneginf().all()
            assert scores.repeat_logp[row, 1].tolist() == [logp[row, here[0], 2], -math.inf]
            assert torch.equal(scores.label[row, 0], wanted)
            assert torch.equal(scores.label[row, 2], wanted)
            # behind a blank the second column may say the token once more
            assert torch.equal(scores.label[row, 1, 1], wanted[1])
            again = emitter.tokens[row, here[0]] == 2
            assert again.sum() == 1
            assert torch.equal(scores.label[row, 1, 0], wanted[0].masked_fill(again, -torch.inf))
    assert emitter.advance(said_two, torch.tensor([0, 2])).tolist() == [3, 7]
    assert emitter.close(emitter.close(said_two)).equal(emitter.close(said_two))
    assert emitter.close(start).equal(start)


@torch.no_grad()
def test_candidates_are_the_best_of_each_frame_and_a_repeat_needs_none() -> None:
    model = make(3.0)
    encoded, lengths = model.encode(torch.randn(1, 40, 8), torch.tensor([40]))
    logp = model.logp(encoded)
    emitter = CTCEmitter(model, encoded, lengths, top=1)
    assert torch.equal(emitter.tokens[..., 0], logp[..., :VOCAB].argmax(-1))
    assert torch.equal(emitter.evidence[..., 0], logp[..., :VOCAB].amax(-1))
    state = 2 * (torch.arange(VOCAB)[None] + 1) + 1
    for frame in range(10):
        scores = emitter.score(torch.tensor([[frame]]), state)
        assert scores.repeat_logp is not None
        assert torch.equal(scores.repeat_logp[..., 0], logp[:, frame, :VOCAB])


def prefixes(emitter: CTCEmitter, row: int) -> dict[tuple[int, ...], float]:
    """Log probability of all that utterance ``row`` may say, by nothing but the steps of the protocol."""
    live: dict[tuple[tuple[int, ...], int], float] = {((), int(emitter.start()[row])): 0.0}
    for frame in range(int(emitter.lengths[row])):
        states = torch.tensor([state for _, state in live])
        batch = len(emitter.lengths)
        scores = emitter.score(torch.full((batch, 1), frame), states.expand(batch, -1))
        assert scores.repeat_logp is not None
        after: dict[tuple[tuple[int, ...], int], float] = {}

        def add(labels: tuple[int, ...], state: Tensor, logp: float, after=after) -> None:  # type: ignore[no-untyped-def]
            if logp > -math.inf:
                key = labels, int(state)
                after[key] = float(torch.logaddexp(*torch.tensor([after.get(key, -math.inf), logp]).double()))

        for k, ((labels, _), score) in enumerate(live.items()):
            add(labels, emitter.close(states[k]), score + float(scores.blank_logp[row, k, 0]))
            add(labels, states[k], score + float(scores.repeat_logp[row, k, 0]))
            for token, logp in zip(emitter.tokens[row, frame], scores.label[row, k, 0], strict=True):
                add((*labels, int(token)), emitter.advance(states[k], token), score + float(logp))
        live = after
    totals: dict[tuple[int, ...], list[float]] = {}
    for (labels, _), score in live.items():
        totals.setdefault(labels, []).append(score)
    return {labels: math.log(sum(map(math.exp, scores))) for labels, scores in totals.items()}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), sharpness=st.sampled_from([1.0, 5.0]))
@torch.no_grad()
def test_steps_of_the_emitter_add_up_to_the_ctc_loss(seed: int, sharpness: float) -> None:
    model = make(sharpness)
    features = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(seed))
    encoded, lengths = model.encode(features, torch.tensor([16, 12]))
    emitter = CTCEmitter(model, encoded, lengths)
    for row in range(2):
        found = prefixes(emitter, row)
        assert sum(map(math.exp, found.values())) == pytest.approx(1, abs=1e-5)
        size = max(map(len, found))
        targets = torch.tensor([[*labels, *[0] * (size - len(labels))] for labels in found])
        count = torch.tensor([len(labels) for labels in found])
        logp = model.logp(encoded)[row].expand(len(found), -1, -1)
        losses, impossible = ctc_loss(logp, targets, lengths[row].expand(len(found)), count, blank=VOCAB)
        assert impossible == 0
        assert list(found.values()) == pytest.approx((-losses).tolist(), abs=1e-4)


@torch.no_grad()
def test_a_batch_is_scored_as_its_utterances() -> None:
    model = make(3.0)
    features, sizes = torch.randn(3, 40, 8), torch.tensor([40, 23, 4])
    together = CTCEmitter(model, *model.encode(features, sizes), top=2)
    for row in range(3):
        length = sizes[row : row + 1]
        alone = CTCEmitter(model, *model.encode(features[row : row + 1, : int(length)], length), top=2)
        frames = int(alone.lengths)
        assert torch.equal(alone.tokens[0], together.tokens[row, :frames])
        assert torch.allclose(alone.evidence[0], together.evidence[row, :frames], atol=1e-4)


# ---- search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_a_wide_beam_finds_what_the_sum_over_all_paths_finds(seed: int) -> None:
    """Labels said twice are the trap: right after a label and behind its blank are two hypotheses."""
    model = make((1.0, 5.0)[seed % 2])
    features = torch.randn(2, 24, 8, generator=torch.Generator().manual_seed(seed))
    emitter = CTCEmitter(model, *model.encode(features, torch.tensor([24, 13])))
    lists = BeamSearch(emitter, BeamConfig(beam=400, nbest=400, threshold=1e4)).run()
    for row in range(2):
        found = {tuple(h.tokens): h.score for h in lists[row]}
        assert found == pytest.approx(prefixes(emitter, row), abs=1e-4)


@torch.no_grad()
def test_greedy_search_is_the_best_path_and_a_batch_is_its_utterances() -> None:
    model = make(8.0)
    features = torch.randn(3, 120, 8, generator=torch.Generator().manual_seed(4))
    sizes = torch.tensor([120, 71, 8])
    encoded, lengths = model.encode(features, sizes)
    emitter = CTCEmitter(model, encoded, lengths)
    best = model.logp(encoded).argmax(-1)
    wanted = [said(tuple(best[row, : int(lengths[row])].tolist())) for row in range(3)]
    assert any(a == b for a, b in itertools.pairwise(wanted[0]))
    assert [tuple(tokens) for tokens, _ in greedy_search(emitter)] == wanted
    together = BeamSearch(emitter, BeamConfig(beam=4)).run()
    for row in range(3):
        one = model.encode(features[row : row + 1, : int(sizes[row])], sizes[row : row + 1])
        alone = BeamSearch(CTCEmitter(model, *one), BeamConfig(beam=4)).run()[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        for mine, theirs in zip(alone, together[row], strict=True):
            assert mine.score == pytest.approx(theirs.score, abs=1e-3)


# ---- as a family -------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {"encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}}


@torch.no_grad()
def test_a_model_folder_is_loaded_with_the_same_scores(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    family = load_family("ctc", TINY, tokenizer, "here")
    weights = family.model.eval().state_dict()
    config = {"family": "ctc", "model": TINY}
    save_bundle(tmp_path / "model", config, weights, tokenizer.model_bytes, "# Tiny")
    recognizer = Recognizer.load(tmp_path / "model")
    loaded = recognizer.family
    assert loaded.stacking == family.stacking
    features, lengths = torch.randn(2, 50, 80), torch.tensor([50, 31])
    one, other = (f.emitter(features, lengths, 1.0, 8) for f in (family, loaded))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.evidence, other.evidence)
    assert one.tokens.shape == (2, 13, 8)
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    assert recognizer.transcribe(samples).duration_s == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": {"ctc_weight": 1}}, "unknown key 'ctc_weight'"),
        ({"loss": {"class_rate": 0.5}}, "unknown key 'class_rate'"),
        ({"model": {"encodr": {}}}, "did you mean 'encoder'"),
        ({"model": {"encoder": {"layer": 1}}}, "did you mean 'layers'"),
    ],
)
def test_recipes_take_the_family_and_refuse_unknown_keys(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    values = {"corpus": "contacts", "family": "ctc", "systems": [{"name": "CTC"}], "model": TINY}
    assert asr_recipe(RecipeConfig.model_validate(values), tmp_path).stages
    with pytest.raises(ConfigError, match=says.replace("'", ".")):
        asr_recipe(RecipeConfig.model_validate(values | change), tmp_path)
