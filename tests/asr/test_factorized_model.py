"""The factorized transducer: additive, trained and searched with the same numbers."""

from __future__ import annotations

import math

import pytest
import torch

from asr.data.examples import Example, make_batch
from asr.encoders.conformer import ConformerConfig
from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.families.factorized.emitter import FactorizedEmitter
from asr.families.factorized.model import FactorizedTransducer
from asr.losses.factorized import blank_joint, factorized_loss
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from lm.transformer import TransformerLMConfig

VOCAB, CLASSES = 5, 2


def make() -> FactorizedTransducer:
    torch.manual_seed(0)
    encoder = ConformerConfig(features=8, layers=1, width=16, heads=2, feed_forward=16, kernel=3, dropout=0.0)
    predictor = TransformerLMConfig(layers=1, width=16, heads=2, feed_forward=16, dropout=0.0)
    model = FactorizedTransducer(
        FactorizedConfig(encoder=encoder, predictor=predictor, blank_width=12), VOCAB, CLASSES
    )
    return model.eval()


EXAMPLES = [Example("a", (1, 2, 3), ((0, 1, 3),)), Example("b", (4,), ()), Example("c", (), ())]


def batch_of(examples: list[Example], rate: float = 1.0):  # type: ignore[no-untyped-def]
    features = torch.randn(len(examples), 20, 8, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 14, 9][: len(examples)])
    return make_batch(features, lengths, examples, VOCAB, rate, torch.Generator().manual_seed(2))


def test_a_change_of_the_language_model_reaches_the_logits_unchanged() -> None:
    """Mistake 1 of METHODS: the LM's log probabilities must enter the output additively."""
    model = make()
    encoded, lengths = model.encode(torch.randn(1, 20, 8), torch.tensor([20]))
    with torch.no_grad():
        emitter = FactorizedEmitter(model, encoded, lengths, top=VOCAB)
        state = emitter.start()[:, None]
        first = torch.tensor([[0]])
        before = emitter.score(first, state).label + emitter.lm_logp(state, emitter.tokens[:, :1])
        delta = torch.tensor([0.5, -1.0, 0.0, 2.0, -0.3])
        emitter.contexts._logits.data[0, :VOCAB] += delta
        after = emitter.score(first, state).label + emitter.lm_logp(state, emitter.tokens[:, :1])
    moved = after - before
    assert torch.allclose(moved[0, 0, 0], delta[emitter.tokens[0, 0]], atol=1e-5)


def test_search_scores_are_the_probabilities_that_training_uses() -> None:
    """One path of blanks and labels, added up from the emitter, against the dense softmax of the model."""
    model = make()
    features, lengths = torch.randn(1, 16, 8), torch.tensor([16])
    labels = torch.tensor([[2, 0]])
    with torch.no_grad():
        encoded, frames = model.encode(features, lengths)
        emitter = FactorizedEmitter(model, encoded, frames, top=VOCAB)
        blank = blank_joint(
            model.blank_frame(encoded), model.blank_predictor(labels), model.blank_output.weight[0],
            model.blank_output.bias,
        )  # fmt: skip
        lm_logp = model.predictor(labels)[..., :VOCAB].log_softmax(-1)
        dense = model.acoustic_logits(encoded)[:, :, None] + lm_logp[:, None]
        logp = torch.cat((dense, blank[..., None]), dim=-1).log_softmax(-1)[0]
        state = emitter.start()
        for place in range(3):
            for frame in range(int(frames)):
                scores = emitter.score(torch.tensor([[frame]]), state[:, None])
                assert float(scores.blank_logp) == pytest.approx(float(logp[frame, place, VOCAB]), abs=1e-5)
                total = scores.label + emitter.lm_logp(state[:, None], emitter.tokens[:, frame, None])
                wanted = logp[frame, place, emitter.tokens[0, frame]]
                assert torch.allclose(total[0, 0, 0], wanted, atol=1e-4)
            if place < 2:
                state = emitter.advance(state, labels[:, place])


def test_losses_are_means_over_labels_of_what_each_utterance_gives() -> None:
    model, config = make(), FactorizedLossConfig()
    batch = batch_of(EXAMPLES)
    parts = model.losses(batch, config)
    assert set(parts) == {"transducer", "ctc", "lm", "class_lm", "total"}
    lm_logp = model.predictor(batch.labels)[..., :VOCAB].log_softmax(-1)
    alone = 0.0
    for row in range(3):
        encoded, frames = model.encode(batch.features[row : row + 1], batch.feature_lengths[row : row + 1])
        count = batch.label_lengths[row : row + 1]
        labels = batch.labels[row : row + 1, : int(count)]
        blank = blank_joint(
            model.blank_frame(encoded), model.blank_predictor(labels), model.blank_output.weight[0],
            model.blank_output.bias,
        )  # fmt: skip
        loss = factorized_loss(
            blank,
            model.acoustic_logits(encoded),
            lm_logp[row : row + 1, : int(count) + 1],
            labels,
            frames,
            count,
        )
        alone += float(loss.sum().detach())
    assert float(parts["transducer"].detach()) == pytest.approx(alone / 4, rel=1e-4)
    weighted = sum(
        w * float(parts[n].detach())
        for n, w in (("transducer", 1.0), ("ctc", config.ctc_weight), ("lm", 0.5), ("class_lm", 0.5))
    )
    assert float(parts["total"].detach()) == pytest.approx(weighted, rel=1e-5)


def test_entities_become_tags_in_the_patterns_only() -> None:
    batch = batch_of(EXAMPLES, rate=1.0)
    assert batch.patterns[0, :2].tolist() == [1, VOCAB]
    assert batch.pattern_lengths.tolist() == [2, 1, 0]
    assert batch.labels[0].tolist() == [1, 2, 3]
    assert batch_of(EXAMPLES, rate=0.0).patterns[0].tolist() == [1, 2, 3]


def test_training_steps_lower_the_loss_and_gradients_reach_every_part() -> None:
    model, config = make().train(), FactorizedLossConfig()
    batch = batch_of(EXAMPLES[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        total = model.losses(batch, config)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < 0.5 * values[0]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@torch.no_grad()
def test_beam_of_one_is_greedy_and_candidates_do_not_matter_when_all_are_there() -> None:
    model = make()
    encoded, lengths = model.encode(torch.randn(3, 30, 8), torch.tensor([30, 21, 8]))
    encoded *= 3
    tokens = [t for t, _ in greedy_search(FactorizedEmitter(model, encoded, lengths, top=VOCAB))]
    beams = BeamSearch(FactorizedEmitter(model, encoded, lengths, top=VOCAB), BeamConfig(beam=1)).run()
    assert [list(found[0].tokens) for found in beams] == tokens
    assert all(math.isfinite(found[0].score) for found in beams)
