"""The factorized transducer: additive, trained and searched with the same numbers."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "decoding"))
from trees import tree_of

from asr.data.examples import Example, make_batch
from asr.encoders.conformer import ConformerConfig
from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.families.factorized.emitter import FactorizedEmitter
from asr.families.factorized.model import FactorizedTransducer
from asr.losses.factorized import Variant, blank_joint, dense_factorized_logits, factorized_loss
from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from lm.class_lm import ClassLM, Derivation
from lm.transformer import TransformerLMConfig

VOCAB, CLASSES = 5, 2


BOTH = pytest.mark.parametrize("variant", ["fnt", "mhat"])


def make(variant: Variant = "fnt", vocab: int = VOCAB, sharpness: float = 1.0) -> FactorizedTransducer:
    torch.manual_seed(0)
    encoder = ConformerConfig(features=8, layers=1, width=16, heads=2, feed_forward=16, kernel=3, dropout=0.0)
    predictor = TransformerLMConfig(layers=1, width=16, heads=2, feed_forward=16, dropout=0.0)
    config = FactorizedConfig(variant=variant, encoder=encoder, predictor=predictor, blank_width=12)
    model = FactorizedTransducer(config, vocab, CLASSES)
    with torch.no_grad():
        for part in (model.acoustic, model.blank_output, model.predictor.output):
            part.weight *= sharpness
    return model.eval()


def dense_logp(model: FactorizedTransducer, encoded: Tensor, labels: Tensor) -> Tensor:
    """Log probabilities ``(T, U + 1, V + 1)`` of one utterance, blank last, from the whole tensor of logits."""
    labels = labels[None]
    blank = blank_joint(
        model.blank_frame(encoded), model.blank_predictor(labels), model.blank_output.weight[0],
        model.blank_output.bias,
    )  # fmt: skip
    lm_logp = model.predictor(labels)[..., : model.num_tokens].log_softmax(-1)
    logits = dense_factorized_logits(
        blank, model.acoustic_logits(encoded), lm_logp, 1.0, model.config.variant
    )
    return logits.log_softmax(-1)[0]


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


@BOTH
@torch.no_grad()
def test_search_scores_are_the_probabilities_that_training_uses(variant: Variant) -> None:
    """One path of blanks and labels, added up from the emitter, against the dense softmax of the model."""
    model = make(variant)
    encoded, frames = model.encode(torch.randn(1, 16, 8), torch.tensor([16]))
    labels = torch.tensor([2, 0])
    emitter = FactorizedEmitter(model, encoded, frames, top=VOCAB)
    logp, state = dense_logp(model, encoded, labels), emitter.start()
    for place in range(3):
        for frame in range(int(frames)):
            scores = emitter.score(torch.tensor([[frame]]), state[:, None])
            assert float(scores.blank_logp) == pytest.approx(float(logp[frame, place, VOCAB]), abs=1e-5)
            total = scores.label + emitter.lm_logp(state[:, None], emitter.tokens[:, frame, None])
            wanted = logp[frame, place, emitter.tokens[0, frame]]
            assert torch.allclose(total[0, 0, 0], wanted, atol=1e-4)
        if place < 2:
            state = emitter.advance(state, labels[place : place + 1])


@BOTH
@torch.no_grad()
def test_a_wide_beam_finds_what_enumeration_finds(variant: Variant) -> None:
    """All label sequences with all their alignments: a label or a blank in each frame."""
    model = make(variant, vocab=2, sharpness=4.0)
    encoded, lengths = model.encode(torch.randn(1, 16, 8), torch.tensor([16]))
    totals = {}
    for size in range(encoded.shape[1] + 1):
        for labels in itertools.product(range(2), repeat=size):
            reached = torch.full((size + 1,), -torch.inf)
            reached[0] = 0
            for row in dense_logp(model, encoded, torch.tensor(labels, dtype=torch.long)):
                after = reached + row[:, -1]
                spoken = reached[:-1] + row[torch.arange(size), list(labels)]
                after[1:] = torch.logaddexp(after[1:], spoken)
                reached = after
            totals[labels] = float(reached[-1])
    assert sum(map(math.exp, totals.values())) == pytest.approx(1, abs=1e-5)
    config = BeamConfig(beam=200, nbest=200, threshold=1e4)
    found = BeamSearch(FactorizedEmitter(model, encoded, lengths), config).run()[0]
    assert {tuple(h.tokens): h.score for h in found} == pytest.approx(totals, abs=1e-4)


@BOTH
@torch.no_grad()
def test_with_lists_a_wide_beam_finds_all_alignments_and_readings(variant: Variant) -> None:
    """The class language model takes the predictor's place; the normaliser stays that of the predictor over V.

    Inside an entity the normaliser is of what was said of it so far; the class language model waits before it.
    """
    model, starts = make(variant, vocab=3, sharpness=3.0), torch.tensor([True, False, True])
    encoded, lengths = model.encode(torch.randn(1, 16, 8), torch.tensor([16]))
    tree = tree_of({0: [([0, 1], 1.0), ([2], 2.0)], 1: [([2, 1], 1.0)]}, 3, CLASSES)
    classes, acoustic = ClassLM(model.predictor, tree, starts, 0.5), model.acoustic_logits(encoded)[0]
    expected: dict[tuple[int, ...], float] = {}
    contexts, start = classes._contexts, next(iter(classes.start))
    beam: dict[tuple[tuple[int, ...], Derivation, int], float] = {((), start, start.history): 0.0}
    for frame, heard in enumerate(acoustic):
        after: dict[tuple[tuple[int, ...], Derivation, int], list[float]] = {}
        for (tokens, derivation, said), score in beam.items():
            blank = float(blank_logits(model, encoded, tokens)[frame])
            expects = contexts.score(torch.tensor(said))[:3]
            mass = float((heard + expects).logsumexp(-1))
            total = float(torch.logaddexp(torch.tensor(blank), torch.tensor(mass)))
            if variant == "mhat":  # P(blank) against one, and the labels among themselves
                blank_logp = -math.log1p(math.exp(-blank))
                total = mass + math.log1p(math.exp(blank))
            else:
                blank_logp = blank - total
            after.setdefault((tokens, derivation, said), []).append(score + blank_logp)
            for token in range(3):
                for reading, logp in classes.advance({derivation: 0.0}, token).items():
                    spoken, inner = score + float(heard[token]) - total + logp, reading.history
                    if reading.node >= 0:
                        inner = int(contexts.advance(torch.tensor([said]), torch.tensor([token])))
                    after.setdefault(((*tokens, token), reading, inner), []).append(spoken)
        beam = {key: float(torch.tensor(parts).logsumexp(0)) for key, parts in after.items()}
    for (tokens, derivation, _), score in beam.items():
        if derivation.node < 0:
            before = expected.get(tokens, -math.inf)
            expected[tokens] = float(torch.logaddexp(torch.tensor(before), torch.tensor(score)))
    emitter = FactorizedEmitter(model, encoded, lengths)
    grammar = ClassGrammar(emitter.contexts, starts, [tree], 0.5)
    config = BeamConfig(beam=500, nbest=500, threshold=1e4)
    found = BeamSearch(emitter, config, grammar).run()[0]
    assert any(h.spans for h in found)
    assert {tuple(h.tokens): h.score for h in found} == pytest.approx(expected, abs=1e-3)


def blank_logits(model: FactorizedTransducer, encoded: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """z^B ``(T,)`` of one utterance after ``tokens``."""
    label = model.blank_predictor(torch.tensor([tokens], dtype=torch.long))[0, -1]
    hidden = torch.tanh(model.blank_frame(encoded)[0] + label)
    logits: Tensor = hidden @ model.blank_output.weight[0] + model.blank_output.bias
    return logits


@BOTH
def test_losses_are_means_over_labels_of_what_each_utterance_gives(variant: Variant) -> None:
    model, config = make(variant), FactorizedLossConfig()
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
            variant=variant,
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


@BOTH
def test_training_steps_lower_the_loss_and_gradients_reach_every_part(variant: Variant) -> None:
    model, config = make(variant).train(), FactorizedLossConfig()
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


@BOTH
@torch.no_grad()
def test_beam_of_one_is_greedy_and_candidates_do_not_matter_when_all_are_there(variant: Variant) -> None:
    model = make(variant)
    encoded, lengths = model.encode(torch.randn(3, 30, 8), torch.tensor([30, 21, 8]))
    encoded *= 3
    tokens = [t for t, _ in greedy_search(FactorizedEmitter(model, encoded, lengths, top=VOCAB))]
    beams = BeamSearch(FactorizedEmitter(model, encoded, lengths, top=VOCAB), BeamConfig(beam=1)).run()
    assert [list(found[0].tokens) for found in beams] == tokens
    assert all(math.isfinite(found[0].score) for found in beams)
