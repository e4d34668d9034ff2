"""The transducer: trained and searched with the numbers of its dense joint network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
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
from asr.decoding_config import DecodingConfig
from asr.families import load_family
from asr.families.transducer import joint as joint_module
from asr.families.transducer.config import PredictorConfig, TransducerConfig, TransducerLossConfig
from asr.families.transducer.emitter import TransducerEmitter
from asr.families.transducer.joint import Joint
from asr.families.transducer.model import Transducer
from asr.families.transducer.predictor import LSTMHistories, StatelessPredictor
from asr.recognizer import Recognizer
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from lm.errors import BundleError, ConfigError
from lm.tokenizer import Tokenizer
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig

VOCAB = 4
ENCODER = {"features": 8, "layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "kernel": 3, "dropout": 0}
PREDICTORS: dict[str, dict[str, Any]] = {
    "stateless": {"dropout": 0.0},
    "projected": {"dropout": 0.0, "width": 6, "context": 1},
    "lstm": {"dropout": 0.0, "kind": "lstm", "width": 7, "layers": 2},
}
EXAMPLES = [Example("a", (1, 2, 2), ((0, 1, 3),)), Example("b", (3,), ()), Example("c", (), ())]


def make(kind: str, vocab: int = VOCAB, sharpness: float = 1.0) -> Transducer:
    torch.manual_seed(3)
    values = {"encoder": ENCODER, "predictor": PREDICTORS[kind], "joint_width": 12}
    model = Transducer(TransducerConfig.model_validate(values), vocab).eval()
    with torch.no_grad():
        model.joint.output.weight *= sharpness
    return model


def batch_of(examples: list[Example]) -> Batch:
    features = torch.randn(len(examples), 20, 8, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 14, 9][: len(examples)])
    return make_batch(features, lengths, examples, VOCAB, 0.0, torch.Generator().manual_seed(2))


def dense_logits(model: Transducer, encoded: Tensor, labels: Tensor) -> Tensor:
    """(B, T, U+1, V+1), blank last."""
    logits: Tensor = model.joint(model.joint.frame(encoded)[:, :, None], model.predictor(labels)[:, None])
    return logits


# ---- the loss ----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 4)), min_size=1, max_size=4),
    block=st.sampled_from([1, 40, 300, 1 << 20]),
    small=st.sampled_from([1, 8, 256]),
    passed=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_blocks_give_the_dense_log_probabilities_and_gradients(
    sizes: list[tuple[int, int]], block: int, small: int, passed: float, seed: int
) -> None:
    """Also where paths pass few cells or none."""
    generator = torch.Generator().manual_seed(seed)
    frames, labels = (torch.tensor(x) for x in zip(*sizes, strict=True))
    batch, longest, most = len(sizes), int(frames.max()), int(labels.max())

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    frame, label = random(batch, longest, 6), random(batch, most + 1, 6)
    targets = torch.randint(VOCAB, (batch, most), generator=generator)
    joint = Joint(1, 6, VOCAB).double()
    weights = torch.rand(batch, longest, 2 * most + 1, generator=generator, dtype=torch.float64)
    weights *= torch.rand(weights.shape, generator=generator) < passed
    inside = (torch.arange(longest) < frames[:, None])[:, :, None]
    blanks = inside & (torch.arange(most + 1) <= labels[:, None])[:, None]
    nexts = inside & (torch.arange(most) < labels[:, None])[:, None]
    leaves = [frame, label, joint.output.weight, joint.output.bias]

    def gradients(blank: Tensor, label_logp: Tensor) -> tuple[Tensor, ...]:
        total = (blank * weights[..., : most + 1] * blanks).sum()
        return torch.autograd.grad(total + (label_logp * weights[..., most + 1 :] * nexts).sum(), leaves)

    logp = joint(frame[:, :, None], label[:, None]).log_softmax(-1)
    index = targets[:, None, :, None].expand(-1, longest, -1, -1)
    wanted = logp[..., -1], logp[:, :, :-1].gather(3, index).squeeze(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(joint_module, "_BLOCK_CPU", block)
        patch.setattr(joint_module, "_SMALL", small)
        found = joint.lattice_logp(frame, label, targets, frames, labels)
        grads = gradients(*found)
    assert torch.allclose(found[0][blanks], wanted[0][blanks], atol=1e-9)
    assert torch.allclose(found[1][nexts], wanted[1][nexts], atol=1e-9)
    for mine, theirs in zip(grads, gradients(*wanted), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9)


@pytest.mark.parametrize("largest", [1.0, 70.0, 76.0, 77.0, 1000.0])
def test_logits_of_any_size_are_summed_in_float32(largest: float) -> None:
    """Whether or not the weights bound them: all at the bound, all at its negative, one far above the others."""
    joint = Joint(1, 4, 2000)
    frame, label = torch.full((1, 3, 4), 50.0), torch.zeros(1, 2, 4)
    frame[:, 1] = -50.0
    frame[:, 2] = torch.tensor([0.3, -0.1, 50.0, 0.0])
    with torch.no_grad():
        joint.output.weight.fill_(largest / 4)
        joint.output.bias.zero_()
        joint.output.weight[5] = torch.tensor([0.1, -0.2, 0.1, 0.3]) * largest
    targets = torch.tensor([[5]])
    blank, label_logp = joint.lattice_logp(frame, label, targets, torch.tensor([3]), torch.tensor([1]))
    logp = joint.double()(frame.double()[:, :, None], label.double()[:, None]).log_softmax(-1)
    torch.testing.assert_close(blank.double(), logp[..., -1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(label_logp.double(), logp[:, :, :-1, 5], rtol=1e-5, atol=1e-4)


def test_cells_that_no_path_passes_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient on the diagonal alone: backward's blocks are much less than the lattice, and NaN stays NaN."""
    joint, cells = Joint(1, 6, VOCAB), []
    monkeypatch.setattr(joint_module, "_SMALL", 4)
    blocks = joint_module._passed

    def counted(*gradients: Tensor) -> Iterator[joint_module._Block]:
        for block in blocks(*gradients):
            cells.append((block.frames.stop - block.frames.start) * (block.labels.stop - block.labels.start))
            yield block

    monkeypatch.setattr(joint_module, "_passed", counted)
    frame, label = torch.randn(1, 20, 6), torch.randn(1, 21, 6)
    frame.requires_grad_()
    targets = torch.zeros(1, 20, dtype=torch.int64)
    blank, _ = joint.lattice_logp(frame, label, targets, torch.tensor([20]), torch.tensor([20]))
    blank.backward(torch.eye(20, 21)[None], retain_graph=True)
    assert sum(cells) <= 40
    assert frame.grad is not None
    assert bool((frame.grad != 0).any(-1).all())
    blank.backward(torch.full_like(blank, torch.nan))
    assert bool(frame.grad.isnan().all())


@pytest.mark.parametrize("kind", PREDICTORS)
def test_the_loss_is_torchaudios_on_the_dense_logits(kind: str) -> None:
    functional = pytest.importorskip("torchaudio.functional")
    model, batch = make(kind, sharpness=3.0), batch_of(EXAMPLES)
    parts = model.losses(batch, TransducerLossConfig())
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    expected = functional.rnnt_loss(
        dense_logits(model, encoded, batch.labels),
        batch.labels.int(),
        frames.int(),
        batch.label_lengths.int(),
        blank=VOCAB,
        reduction="sum",
    )
    assert parts["transducer"].item() == pytest.approx(expected.item() / 4, rel=1e-5)
    ctc = torch.nn.functional.ctc_loss(
        model.ctc(encoded).log_softmax(-1).transpose(0, 1), batch.labels, frames, batch.label_lengths,
        blank=VOCAB, reduction="sum",
    )  # fmt: skip
    assert parts["ctc"].item() == pytest.approx(ctc.item() / 4, rel=1e-5)
    assert parts["total"].item() == pytest.approx((parts["transducer"] + 0.3 * parts["ctc"]).item(), rel=1e-6)
    mine = torch.autograd.grad(parts["transducer"], list(model.joint.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(expected / 4, list(model.joint.parameters()))
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    kernel = model.losses(batch, TransducerLossConfig(backend="torchaudio", ctc_weight=0.0))
    assert set(kernel) == {"transducer", "total"}
    assert kernel["total"].item() == pytest.approx(parts["transducer"].item(), rel=1e-5)


def test_the_loss_is_the_sum_over_all_alignments() -> None:
    model, batch = make("stateless", sharpness=3.0), batch_of(EXAMPLES[:1])
    encoded, frames = model.encode(batch.features, batch.feature_lengths)
    logp = dense_logits(model, encoded, batch.labels).log_softmax(-1)[0].detach()
    length, labels = int(frames), batch.labels[0].tolist()
    paths = []
    for spread in itertools.combinations_with_replacement(range(length), len(labels)):
        total, emitted = 0.0, 0
        for frame in range(length):
            while emitted < len(labels) and spread[emitted] == frame:
                total += float(logp[frame, emitted, labels[emitted]])
                emitted += 1
            total += float(logp[frame, emitted, VOCAB])
        paths.append(total)
    expected = -math.log(sum(map(math.exp, paths))) / len(labels)
    found = model.losses(batch, TransducerLossConfig())["transducer"]
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", PREDICTORS)
def test_autocast_changes_the_rounding_only(kind: str) -> None:
    model, batch = make(kind), batch_of(EXAMPLES)
    plain = model.losses(batch, TransducerLossConfig())
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.losses(batch, TransducerLossConfig())
    assert cast["total"].dtype == torch.float32
    assert cast["total"].item() == pytest.approx(plain["total"].item(), rel=0.02)
    mine, theirs = (torch.autograd.grad(x["total"], model.joint.output.weight)[0] for x in (cast, plain))
    assert float((mine - theirs).norm() / theirs.norm()) < 0.05


def test_a_batch_loses_what_its_utterances_lose() -> None:
    model, batch = make("lstm"), batch_of(EXAMPLES)
    whole = model.losses(batch, TransducerLossConfig())["total"].item() * 4
    alone = 0.0
    for row, example in enumerate(EXAMPLES):
        length = int(batch.feature_lengths[row])
        one = make_batch(
            batch.features[row : row + 1, :length],
            batch.feature_lengths[row : row + 1],
            [example],
            VOCAB,
            0.0,
            torch.Generator(),
        )
        alone += model.losses(one, TransducerLossConfig())["total"].item() * max(1, len(example.labels))
    assert whole == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", PREDICTORS)
def test_twenty_steps_lower_the_loss_and_gradients_reach_every_part(kind: str) -> None:
    model, batch = make(kind).train(), batch_of(EXAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        total = model.losses(batch, TransducerLossConfig())["total"]
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < 0.6 * values[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().max() > 0 for p in model.predictor.parameters() if p.grad is not None)


# ---- histories and scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PREDICTORS)
@torch.no_grad()
def test_histories_step_by_step_are_the_predictor_on_the_whole(kind: str) -> None:
    model = make(kind)
    labels = torch.randint(VOCAB, (3, 6), generator=torch.Generator().manual_seed(5))
    labels[1, :3] = labels[0, :3]  # the start of one is the start of another
    whole = model.predictor(labels)
    histories = model.predictor.histories()
    state = histories.start(3)
    for place in range(7):
        assert torch.allclose(histories.rows(state), whole[:, place], atol=1e-5)
        assert histories.rows(state[:, None]).shape == (3, 1, 12)
        if place < 6:
            state = histories.advance(state, labels[:, place])


def test_equal_histories_are_one_number() -> None:
    stateless = make("stateless").predictor.histories()
    state = stateless.advance(stateless.start(2), torch.tensor([0, 3]))
    for token in (2, 1):
        state = stateless.advance(state, torch.tensor([token, token]))
    assert state[0] == state[1]
    assert stateless.advance(state[:1], torch.tensor([0])) != state[:1]
    recurrent = make("lstm").predictor.histories()
    assert isinstance(recurrent, LSTMHistories)
    first = recurrent.advance(recurrent.start(3), torch.tensor([1, 1, 2]))
    assert first.tolist() == [1, 1, 2]
    assert recurrent.advance(recurrent.start(2), torch.tensor([2, 1])).tolist() == [2, 1]
    assert len(recurrent._joint.data) == 3


@settings(max_examples=50, deadline=None)
@given(vocab=st.integers(1, 40000), context=st.integers(1, 4), data=st.data())
def test_a_stateless_number_holds_the_last_tokens(vocab: int, context: int, data: st.DataObject) -> None:
    with torch.device("meta"):
        predictor = StatelessPredictor(PredictorConfig(context=context), vocab, 1)
    predictor.embedding.weight = torch.nn.Parameter(torch.zeros(1))
    seen: list[Tensor] = []

    def look_up(last: Tensor) -> Tensor:
        seen.append(last)
        return torch.zeros(())

    predictor.look_up = look_up  # type: ignore[method-assign]
    histories = predictor.histories()
    tokens = data.draw(st.lists(st.integers(0, vocab - 1), max_size=6))
    state = histories.start(1)
    for token in tokens:
        state = histories.advance(state, torch.tensor([token]))
    histories.rows(state[None])
    assert seen[0].tolist() == [[([vocab] * context + tokens)[-context:]]]


@pytest.mark.parametrize("width", [None, 6])
@pytest.mark.parametrize("context", [1, 2, 3])
@torch.no_grad()
def test_compiled_look_up_is_that_in_tensors(width: int | None, context: int) -> None:
    torch.manual_seed(context)
    histories = StatelessPredictor(PredictorConfig(context=context, width=width), 5, 9).eval().histories()
    state = torch.randint(6**context, (40,))
    assert torch.allclose(histories.rows(state), histories.rows(state[None])[0], atol=1e-6)


@pytest.mark.parametrize("kind", PREDICTORS)
@pytest.mark.parametrize("top", [None, VOCAB, 2])
@torch.no_grad()
def test_search_scores_are_the_probabilities_that_training_uses(kind: str, top: int | None) -> None:
    model = make(kind, sharpness=3.0)
    encoded, lengths = model.encode(torch.randn(2, 20, 8), torch.tensor([20, 13]))
    labels = torch.tensor([[2, 0, 0], [3, 1, 2]])
    logp = dense_logits(model, encoded, labels).log_softmax(-1)
    emitter = TransducerEmitter(model, encoded, lengths, top)
    width = 2 if top == 2 else VOCAB
    assert emitter.tokens.shape == emitter.evidence.shape == (2, 5, width)
    state = emitter.start()
    for place in range(4):
        frames = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]])[:, place:]
        scores = emitter.score(frames, state[:, None])
        assert torch.allclose(scores.blank_logp[:, 0], logp[:, place:, place, VOCAB], atol=1e-5)
        wanted = logp[:, place:, place].gather(2, emitter.tokens[:, place:])
        assert torch.allclose(scores.label[:, 0], wanted, atol=1e-5)
        apart = emitter.score(torch.tensor([[4], [2]]), state[:, None]).blank_logp[:, 0, 0]
        assert torch.allclose(
            apart, torch.stack((logp[0, 4, place, VOCAB], logp[1, 2, place, VOCAB])), atol=1e-5
        )
        assert emitter.close(state).equal(state)
        if place < 3:
            state = emitter.advance(state, labels[:, place])


@torch.no_grad()
def test_candidates_are_the_best_without_a_predictor() -> None:
    model = make("stateless", sharpness=3.0)
    encoded, lengths = model.encode(torch.randn(1, 20, 8), torch.tensor([20]))
    whole = TransducerEmitter(model, encoded, lengths)
    best = model.joint(model.joint.frame(encoded), torch.zeros(12))[..., :VOCAB].topk(2).indices
    assert TransducerEmitter(model, encoded, lengths, 2).tokens.equal(best)
    assert whole.tokens[0, 3].tolist() == list(range(VOCAB))
    assert whole.evidence.topk(2).indices.equal(best)
    assert whole.tokens.untyped_storage().nbytes() == VOCAB * 8  # not copied for each frame


# ---- search ------------------------------------------------------------------------------------------------


def exhaustive(model: Transducer, encoded: Tensor, most: int) -> dict[tuple[int, ...], float]:
    """Log probability of every label sequence: per frame up to ``most`` labels, then a blank unless full."""
    frames = encoded.shape[1]
    totals = {}
    for size in range(frames * most + 1):
        for labels in itertools.product(range(model.num_tokens), repeat=size):
            given = torch.tensor([labels], dtype=torch.long).view(1, size)
            logp = dense_logits(model, encoded, given).log_softmax(-1)[0].double()
            reached = torch.full((size + 1,), -torch.inf, dtype=torch.float64)
            reached[0] = 0
            for frame in range(frames):
                after = torch.full_like(reached, -torch.inf)
                for start in range(size + 1):
                    score = reached[start]
                    for count in range(min(most, size - start) + 1):
                        place = start + count
                        blank = logp[frame, place, -1] if count < most else 0.0
                        after[place] = torch.logaddexp(after[place], score + blank)
                        if place < size:
                            score = score + logp[frame, place, labels[place]]
                reached = after
            totals[labels] = float(reached[-1])
    return totals


@pytest.mark.parametrize(("kind", "most"), [("stateless", 1), ("lstm", 1), ("projected", 2)])
@torch.no_grad()
def test_a_wide_beam_finds_what_exhaustive_search_finds(kind: str, most: int) -> None:
    model = make(kind, vocab=2, sharpness=4.0)
    count = 4 if most == 1 else 3
    features = torch.randn(1, 4 * count, 8, generator=torch.Generator().manual_seed(7))
    encoded, lengths = model.encode(features, torch.tensor([4 * count]))
    totals = exhaustive(model, encoded, most)
    assert sum(map(math.exp, totals.values())) == pytest.approx(1, abs=1e-5)
    config = BeamConfig(beam=200, nbest=200, threshold=1e4, max_symbols_per_frame=most)
    found = BeamSearch(TransducerEmitter(model, encoded, lengths), config).run()[0]
    assert {tuple(h.tokens): h.score for h in found} == pytest.approx(totals, abs=1e-4)


@pytest.mark.parametrize("kind", PREDICTORS)
@pytest.mark.parametrize("most", [1, 3])
@torch.no_grad()
def test_a_beam_of_one_is_greedy_search_and_a_batch_is_its_utterances(kind: str, most: int) -> None:
    model = make(kind, sharpness=6.0)
    features = torch.randn(3, 60, 8, generator=torch.Generator().manual_seed(8))
    sizes = torch.tensor([60, 41, 8])
    encoded, lengths = model.encode(features, sizes)
    tokens = [t for t, _ in greedy_search(TransducerEmitter(model, encoded, lengths), most)]
    assert len(tokens[0]) > 3
    narrow = BeamConfig(beam=1, max_symbols_per_frame=most)
    beams = BeamSearch(TransducerEmitter(model, encoded, lengths), narrow).run()
    assert [list(found[0].tokens) for found in beams] == tokens
    config = BeamConfig(beam=4, max_symbols_per_frame=most)
    together = BeamSearch(TransducerEmitter(model, encoded, lengths, 3), config).run()
    for row in range(3):
        one, length = model.encode(features[row : row + 1, : int(sizes[row])], sizes[row : row + 1])
        alone = BeamSearch(TransducerEmitter(model, one, length, 3), config).run()[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[row]]
        for mine, theirs in zip(alone, together[row], strict=True):
            assert mine.score == pytest.approx(theirs.score, abs=1e-3)


# ---- as a family -------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
    "predictor": {"kind": "lstm", "width": 8},
    "joint_width": 16,
}


def test_a_model_folder_is_loaded_and_transcribes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    torch.manual_seed(1)
    family = load_family("transducer", TINY, tokenizer, "here")
    weights = family.model.state_dict()
    weights["joint.output.weight"] *= 8
    config = {"family": "transducer", "model": TINY, "decoding": {"biasing": "phrases"}}
    save_bundle(tmp_path / "model", config, weights, tokenizer.model_bytes, "# Tiny")
    recognizer = Recognizer.load(tmp_path / "model")
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    plain = recognizer.transcribe(samples)
    assert plain.text
    strong = DecodingConfig(biasing="phrases", phrase_bonus=30)
    boosted = recognizer.transcribe(samples, entities={"contact": ["maja novak"]}, options=strong)
    assert "MAJA NOVAK" in boosted.text
    assert "MAJA NOVAK" not in plain.text
    del weights["joint.frame.bias"]
    save_bundle(tmp_path / "broken", config, weights, tokenizer.model_bytes, "# Tiny")
    with pytest.raises(BundleError, match="joint.frame.bias"):
        Recognizer.load(tmp_path / "broken")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": {"ctc_wieght": 1}}, "did you mean 'ctc_weight'"),
        ({"loss": {"class_rate": 0.5}}, "unknown key 'class_rate'"),
        ({"loss": {"backend": "warp"}}, "loss: backend = 'warp'"),
        ({"model": {"predictor": {"contxt": 2}}}, "did you mean 'context'"),
        ({"model": {"predictor": {"layers": 2}}}, "no layers in a stateless predictor"),
        ({"model": {"predictor": {"kind": "lstm", "context": 3}}}, "no context in an lstm predictor"),
    ],
)
def test_recipes_take_the_family_and_refuse_unknown_keys(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    values = {"corpus": "contacts", "family": "transducer", "systems": [{"name": "RNN-T"}]}
    good = values | {"loss": {"ctc_weight": 0.5}, "model": {"predictor": {"kind": "lstm", "layers": 2}}}
    assert asr_recipe(RecipeConfig.model_validate(good), tmp_path).stages
    with pytest.raises(ConfigError, match=says.replace("'", ".")):
        asr_recipe(RecipeConfig.model_validate(values | change), tmp_path)
