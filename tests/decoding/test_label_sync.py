"""The label-synchronous search against exhaustive enumeration, greedy search and itself."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from label_toys import (
    AttendingLabels,
    ContextScorer,
    Scripted,
    TableScorer,
    Tokens,
    ToyLabels,
    model_totals,
    scorer_total,
)
from torch import Tensor
from torch.nn.functional import ctc_loss
from toys import BigramLM
from trees import tree_of

from decoding.class_status import ClassGrammar
from decoding.ctc_prefix import CTCPrefix
from decoding.label_sync import LabelBeamConfig, LabelBeamSearch
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from lm.class_lm import ClassLM, Derivation
from lm.errors import ConfigError
from lm.language_model import ContextStore
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES = 4, 2
STARTS = torch.tensor([True, True, False, False])
LISTS = {0: [([0, 2], 1.0), ([0], 2.0), ([1, 3, 1], 1.0)], 1: [([1, 3], 1.0), ([0, 2], 0.5)]}
WIDE = LabelBeamConfig(beam=300, threshold=1000.0, nbest=1000)


def same(found: list[RawHypothesis], expected: dict[Tokens, float]) -> None:
    assert {h.tokens for h in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], abs=1e-3), hypothesis.tokens
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def alike(found: list[RawHypothesis], other: list[RawHypothesis]) -> None:
    assert [(h.tokens, h.frames, [(s.start, s.end) for s in h.spans]) for h in found] == [
        (h.tokens, h.frames, [(s.start, s.end) for s in h.spans]) for h in other
    ]
    assert [h.score for h in found] == pytest.approx([h.score for h in other], abs=1e-4)
    for one, two in zip(found, other, strict=True):
        assert one.parts == pytest.approx(two.parts, abs=1e-4)


def stack_of(kind: str, vocab: int) -> list[Scorer]:
    boost = BoostGraph.build([([0, 1], 2.0), ([1, 1, 2], 1.5)], vocab)
    parts: dict[str, list[Scorer]] = {
        "none": [],
        "table": [TableScorer(vocab, 1, 0.7)],
        "both": [TableScorer(vocab, 1, 0.7), TableScorer(vocab, 2, -0.4, "internal")],
        "boost": [PhraseBoost([boost], 0.8), TableScorer(vocab, 3, 0.5)],
    }
    return parts[kind]


@pytest.mark.parametrize("kind", ["none", "table", "both", "boost"])
@pytest.mark.parametrize(("alpha", "bonus"), [(0.0, 0.0), (1.0, 0.0), (0.6, 0.5), (0.0, -0.3)])
def test_wide_beam_is_exhaustive(kind: str, alpha: float, bonus: float) -> None:
    emitter = ToyLabels([4, 2, 0], 3, seed=1)
    scorers = stack_of(kind, 3)
    config = WIDE.model_copy(update={"length_normalisation": alpha, "length_bonus": bonus})
    for utterance, found in enumerate(LabelBeamSearch(emitter, config, scorers=scorers).run()):
        expected = {
            tokens: (logp + bonus * len(tokens) + sum(scorer_total(s, tokens) for s in scorers))
            / (len(tokens) + 1) ** alpha
            for tokens, logp in model_totals(emitter, utterance).items()
        }
        same(found, expected)
        for hypothesis in found:
            assert sum(hypothesis.parts.values()) == pytest.approx(hypothesis.score, abs=1e-4)
            for scorer in scorers:
                part = hypothesis.parts[scorer.name]
                assert part == pytest.approx(scorer_total(scorer, hypothesis.tokens), abs=1e-4)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_ctc_beside_a_wide_beam_is_exhaustive(weight: float) -> None:
    emitter, lengths = ToyLabels([4, 2, 1], 3, seed=1), torch.tensor([7, 4, 1])
    logits = 2 * torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(2))
    logp = logits.log_softmax(-1)
    found = LabelBeamSearch(emitter, WIDE, scorers=[CTCPrefix(logp, lengths, weight)]).run()
    for utterance, hypotheses in enumerate(found):
        frames = logp[utterance : utterance + 1, : lengths[utterance]].transpose(0, 1)
        scores = {h.tokens: h.score for h in hypotheses}
        for tokens, model in model_totals(emitter, utterance).items():
            labels, sizes = torch.tensor([tokens], dtype=torch.long).view(1, -1), torch.tensor([len(tokens)])
            loss = ctc_loss(frames, labels, lengths[utterance : utterance + 1], sizes, 3, reduction="sum")
            if loss.isinf():
                assert scores.get(tokens, -torch.inf) < -900 * weight
            else:
                assert scores[tokens] == pytest.approx(model - weight * float(loss), abs=1e-3)
        for h in hypotheses:
            assert sum(h.parts.values()) == pytest.approx(h.score, abs=1e-3)


def test_end_threshold_rules_out_unlikely_ends_only() -> None:
    emitter = ToyLabels([4], 3, seed=5)
    config = WIDE.model_copy(update={"end_threshold": 1.1})
    expected = model_totals(emitter, 0, 1.1)
    assert 81 < len(expected) < 121
    # A scorer that makes labels dear does not change which ends the model may take.
    dear = TableScorer(3, 0, 1.0)
    dear.table = torch.full_like(dear.table, -2.0)
    found = LabelBeamSearch(emitter, config, scorers=[dear]).run()[0]
    same(found, {tokens: logp - 2.0 * (len(tokens) + 1) for tokens, logp in expected.items()})


@pytest.mark.parametrize(("weight", "alpha", "bonus"), [(1.0, 0.0, 0.0), (0.5, 0.0, 1.5), (0.5, 0.8, 1.5)])
def test_wide_beam_with_classes_sums_all_derivations(weight: float, alpha: float, bonus: float) -> None:
    lm = BigramLM(VOCAB, CLASSES, seed=3)
    emitter = ToyLabels([3], VOCAB, seed=4)
    tree = tree_of(LISTS, VOCAB, CLASSES)
    exact = ClassLM(lm, tree, STARTS, bonus)
    scorers = [TableScorer(VOCAB, 6, 0.5)]
    config = WIDE.model_copy(update={"class_weight": weight, "length_normalisation": alpha})
    search = LabelBeamSearch(emitter, config, grammar_of(lm.contexts(), [tree], bonus), scorers)
    expected = {}
    for tokens, logp in model_totals(emitter, 0).items():
        classes = derivations(exact, tokens, weight)
        if weight == 1.0:
            assert classes == pytest.approx(exact.score_text(list(tokens)), abs=1e-3)
        if classes > -math.inf:
            total = logp + classes + sum(scorer_total(s, tokens) for s in scorers)
            expected[tokens] = total / (len(tokens) + 1) ** alpha
    found = search.run()[0]
    same(found, expected)
    assert len(found) > 75
    allowed = {tuple(tokens) for entries in LISTS.values() for tokens, _ in entries}
    assert sum(len(h.spans) for h in found) > 20
    for hypothesis in found:
        assert all(hypothesis.tokens[s.start : s.end] in allowed for s in hypothesis.spans)
        assert ("classes" in hypothesis.parts) == bool(hypothesis.spans)


def grammar_of(contexts: ContextStore, trees: list[PrefixTree], bonus: float = 0.0) -> ClassGrammar:
    return ClassGrammar(contexts, STARTS, trees, bonus)


def derivations(exact: ClassLM, tokens: Tokens, weight: float) -> float:
    """log of the sum over all complete derivations of P(derivation) ** weight."""

    def walk(derivation: Derivation, rest: Tokens, logp: float) -> float:
        if not rest:
            return math.exp(weight * logp) if derivation.node < 0 else 0.0
        after = exact.advance({derivation: 0.0}, rest[0])
        return sum(walk(d, rest[1:], logp + step) for d, step in after.items())

    total = sum(walk(d, tokens, logp) for d, logp in exact.start.items())
    return math.log(total) if total else -math.inf


CONFIGS = st.builds(
    LabelBeamConfig,
    beam=st.integers(1, 5),
    threshold=st.sampled_from([2.0, 8.0]),
    length_normalisation=st.sampled_from([0.0, 0.5, 1.0]),
    length_bonus=st.sampled_from([0.0, 0.4]),
    end_threshold=st.sampled_from([None, 1.1]),
)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), config=CONFIGS, classes=st.booleans())
def test_batch_equals_single(seed: int, config: LabelBeamConfig, classes: bool) -> None:
    emitter = AttendingLabels([6, 0, 9, 3], VOCAB, seed, 2.0)
    contexts = BigramLM(VOCAB, CLASSES, seed).contexts()
    trees = [
        tree_of(LISTS, VOCAB, CLASSES),
        tree_of(LISTS, VOCAB, CLASSES),
        PrefixTree.empty(VOCAB, CLASSES),
        tree_of({1: [([1, 2, 2], 1.0), ([0], 1.0)]}, VOCAB, CLASSES),
    ]
    scorers = [TableScorer(VOCAB, seed, 0.5)]
    grammar = grammar_of(contexts, trees, 1.0) if classes else None
    for place, found in enumerate(LabelBeamSearch(emitter, config, grammar, scorers).run()):
        own = grammar_of(contexts, [trees[place]], 1.0) if classes else None
        assert found
        alike(LabelBeamSearch(emitter.alone(place), config, own, scorers).run()[0], found)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.0, 1.0]),
    bonus=st.sampled_from([0.0, 0.7]),
    weight=st.sampled_from([0.0, 0.6]),
    end_threshold=st.sampled_from([None, 1.2]),
)
def test_beam_of_one_is_greedy(
    seed: int, alpha: float, bonus: float, weight: float, end_threshold: float | None
) -> None:
    emitter = ToyLabels([7, 0, 4], 4, seed, sharpness=2.0)
    scorer = TableScorer(4, seed, weight)
    config = LabelBeamConfig(
        beam=1, length_normalisation=alpha, length_bonus=bonus, end_threshold=end_threshold
    )
    for place, found in enumerate(LabelBeamSearch(emitter, config, scorers=[scorer]).run()):
        tokens: Tokens = ()
        while len(tokens) < emitter.max_labels[place]:
            row = emitter.logp(place, tokens)
            total = row + weight * scorer.table[tokens[-1] if tokens else 4]
            total[:-1] += bonus
            if end_threshold and row[-1] < end_threshold * row[:-1].max():
                total[-1] = -math.inf
            best = int(total.argmax())
            if best == 4:
                break
            tokens = (*tokens, best)
        assert [h.tokens for h in found] == [tokens]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), config=CONFIGS)
def test_scorer_of_weight_zero_is_absent(seed: int, config: LabelBeamConfig) -> None:
    emitter = ToyLabels([6, 3], VOCAB, seed, 2.0)
    kept, silent = TableScorer(VOCAB, seed, 0.3), TableScorer(VOCAB, 1, 0.0, "silent")
    silent.table[0] = -math.inf  # 0 * inf is not a number
    found = LabelBeamSearch(emitter, config, scorers=[silent, kept]).run()
    assert found == LabelBeamSearch(emitter, config, scorers=[kept]).run()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), config=CONFIGS, weight=st.sampled_from([0.3, 1.0]))
def test_empty_lists_change_not_one_bit(seed: int, config: LabelBeamConfig, weight: float) -> None:
    """Without lists the class grammar is its plain language model as the last scorer."""
    emitter = ToyLabels([6, 3], VOCAB, seed, 2.0)
    contexts = BigramLM(VOCAB, CLASSES, seed).contexts()
    nothing = PrefixTree.empty(VOCAB, CLASSES)
    config = config.model_copy(update={"class_weight": weight})
    table = TableScorer(VOCAB, seed, 0.4)
    with_lists = LabelBeamSearch(emitter, config, grammar_of(contexts, [nothing, nothing], 2.0), [table])
    without = LabelBeamSearch(emitter, config, scorers=[table, ContextScorer(contexts, weight)])
    assert with_lists.run() == without.run()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), config=CONFIGS)
def test_order_of_lists_does_not_matter(seed: int, config: LabelBeamConfig) -> None:
    emitter = ToyLabels([7], VOCAB, seed, 2.0)
    lm = BigramLM(VOCAB, CLASSES, seed)
    dice = random.Random(seed)
    shuffled = {index: dice.sample(entries, len(entries)) for index, entries in reversed(LISTS.items())}
    one, two = (
        LabelBeamSearch(emitter, config, grammar_of(lm.contexts(), [tree_of(lists, VOCAB, CLASSES)], 2.0))
        for lists in (LISTS, shuffled)
    )
    assert one.run() == two.run()


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    bonus=st.sampled_from([-0.5, 0.0, 0.5]),
    end_bias=st.sampled_from([0.0, 2.0]),
)
def test_stopping_early_keeps_the_best(seed: int, alpha: float, bonus: float, end_bias: float) -> None:
    """Everything fits into the beam, so only the rule for the end of the search could lose the best."""
    emitter = ToyLabels([6], 2, seed, 0.7, end_bias)
    config = LabelBeamConfig(beam=130, length_normalisation=alpha, length_bonus=bonus)
    expected = {
        tokens: (logp + bonus * len(tokens)) / (len(tokens) + 1) ** alpha
        for tokens, logp in model_totals(emitter, 0).items()
    }
    best = max(expected, key=lambda t: expected[t])
    found = LabelBeamSearch(emitter, config).run()[0][0]
    assert found.tokens == best
    assert found.score == pytest.approx(expected[best], abs=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    score=st.floats(-50, 30),
    losses=st.lists(st.floats(0, 5), max_size=12),
    labels=st.integers(0, 10),
    alpha=st.floats(0, 1),
    bonus=st.floats(-1, 1),
    room=st.integers(0, 5),
)
def test_no_continuation_beats_the_bound(
    score: float, losses: list[float], labels: int, alpha: float, bonus: float, room: int
) -> None:
    most = labels + len(losses) + room
    config = LabelBeamConfig(length_normalisation=alpha, length_bonus=bonus, threshold=1e-6)
    bound = LabelBeamSearch(ToyLabels([most], 2, 0), config)._bound(torch.tensor([[score]]), labels)
    for more in range(len(losses) + 1):
        final = score + bonus * more - sum(losses[:more])
        assert final / (labels + more + 1) ** alpha <= float(bound) + 1e-4


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_search_stops_long_before_the_greatest_length(alpha: float) -> None:
    class Spoken(ToyLabels):
        """Says 0 1 2 two or three times and ends, in each with 99 %; behind the end nothing is clear."""

        def logp(self, utterance: int, prefix: Tokens) -> Tensor:
            logits = torch.zeros(self.num_tokens + 1)
            text = [0, 1, 2] * (2 + utterance) + [self.num_tokens]
            if len(prefix) < len(text):
                logits[text[len(prefix)]] = 6.0
            return logits.log_softmax(-1)

    emitter = Spoken([200, 200], 4, 0)
    config = LabelBeamConfig(length_normalisation=alpha)
    found = LabelBeamSearch(emitter, config).run()
    assert [nbest[0].tokens for nbest in found] == [(0, 1, 2) * 2, (0, 1, 2) * 3]
    assert 10 <= emitter.steps < 20


def test_class_paths_of_one_surface_count_once_in_the_beam() -> None:
    lm = BigramLM(VOCAB, CLASSES, seed=8)
    both = [([0], 1.0), ([1], 1.0)]
    tree = tree_of({0: both, 1: both}, VOCAB, CLASSES)
    config = LabelBeamConfig(beam=4, threshold=1000.0, nbest=4)
    emitter = ToyLabels([5], VOCAB, seed=9)
    found = LabelBeamSearch(emitter, config, grammar_of(lm.contexts(), [tree], 3.0)).run()[0]
    assert 3 <= len({h.tokens for h in found}) == len(found) <= 4
    assert any(h.spans for h in found)


def test_derivations_with_one_history_are_added_in_a_small_beam() -> None:
    """Names of one and two tokens cover eleven of them in 144 ways, but there are few histories."""
    lm = Eager()
    tree = tree_of({0: [([0], 1.0), ([0, 0], 1.0)]}, VOCAB, CLASSES)
    emitter = Scripted([30], VOCAB, 0)
    emitter.script = (0,) * 11
    config = LabelBeamConfig(beam=8, class_weight=1.0, threshold=30.0)
    best = LabelBeamSearch(emitter, config, grammar_of(lm.contexts(), [tree])).run()[0][0]
    assert best.tokens == emitter.script
    exact = ClassLM(lm, tree, STARTS).score_text(list(best.tokens))
    assert best.score == pytest.approx(exact, abs=1e-3)


def test_arcs_into_entities_are_chosen_by_what_is_heard() -> None:
    """The one arc that is looked at leads to the rare entry, because only that one was said."""
    tree = tree_of({0: [([0], 1000.0), ([1], 1.0)]}, VOCAB, CLASSES)
    emitter = Scripted([5], VOCAB, 0)
    emitter.script = (1, 2)
    grammar = ClassGrammar(
        BigramLM(VOCAB, CLASSES, 0).contexts(), torch.ones(VOCAB) > 0, [tree], 20.0, width=1
    )
    best = LabelBeamSearch(emitter, LabelBeamConfig(), grammar).run()[0][0]
    assert best.tokens == (1, 2)
    assert [(s.start, s.end) for s in best.spans] == [(0, 1)]


class Eager(BigramLM):
    """Class 0 is all but certain everywhere."""

    def __init__(self) -> None:
        super().__init__(VOCAB, CLASSES, 0)
        self.table[:, VOCAB] += 30.0


def test_no_end_inside_an_entity() -> None:
    """The end is likely after one label, but the entity has three: it is taken to its end or not at all."""
    tree = tree_of({0: [([0, 2, 3], 1.0)]}, VOCAB, CLASSES)
    config = LabelBeamConfig(beam=2, class_weight=1.0)
    emitter = ToyLabels([6], VOCAB, seed=3, end_bias=3.0)
    search = LabelBeamSearch(emitter, config, grammar_of(Eager().contexts(), [tree]))
    for hypothesis in search.run()[0]:
        covered = sum(span.end - span.start for span in hypothesis.spans)
        assert covered == len(hypothesis.tokens)
        assert all(hypothesis.tokens[s.start : s.end] == (0, 2, 3) for s in hypothesis.spans)


def test_where_nothing_else_is_left_an_unfinished_entity_stands_as_text() -> None:
    tree = tree_of({0: [([0, 2, 3], 1.0)]}, VOCAB, CLASSES)
    config = LabelBeamConfig(beam=2, class_weight=1.0, threshold=8.0)
    emitter = ToyLabels([2], VOCAB, seed=3, end_bias=-30.0)
    found = LabelBeamSearch(emitter, config, grammar_of(Eager().contexts(), [tree])).run()[0]
    assert [(h.tokens, h.spans) for h in found] == [((0, 2), ())]


def test_frames_are_where_each_label_was_heard() -> None:
    emitter = AttendingLabels([4, 0, 3], 3, seed=2)
    found = LabelBeamSearch(emitter, LabelBeamConfig(beam=6)).run()
    checked = 0
    for utterance, nbest in enumerate(found):
        for h in nbest:
            assert h.frames == tuple(emitter.frame(utterance, h.tokens[:i]) for i in range(len(h.tokens)))
            checked += len(h.frames)
    assert checked > 10
    assert all(h.frames == () for h in LabelBeamSearch(ToyLabels([4], 3, 2), LabelBeamConfig()).run()[0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.sampled_from([0.0, 1.0]))
def test_token_scores_are_the_models_own(seed: int, alpha: float) -> None:
    emitter = ToyLabels([5], VOCAB, seed)
    tree = tree_of(LISTS, VOCAB, CLASSES)
    grammar = grammar_of(BigramLM(VOCAB, CLASSES, seed).contexts(), [tree], 2.0)
    config = LabelBeamConfig(beam=3, length_normalisation=alpha, length_bonus=0.2)
    for h in LabelBeamSearch(emitter, config, grammar, [TableScorer(VOCAB, seed, 0.5)]).run()[0]:
        rows = [emitter.logp(0, h.tokens[:i]) for i in range(len(h.tokens) + 1)]
        own = [float(rows[i][t]) for i, t in enumerate(h.tokens)]
        assert h.token_logp == pytest.approx(own, abs=1e-4)
        assert h.parts["model"] == pytest.approx(sum(own) + float(rows[-1][-1]), abs=1e-4)


def test_scores_in_bfloat16_are_summed_in_float32() -> None:
    class Rounded(ToyLabels):
        def logp(self, utterance: int, prefix: Tokens) -> Tensor:
            return super().logp(utterance, prefix).bfloat16()

    class Widened(Rounded):
        def logp(self, utterance: int, prefix: Tokens) -> Tensor:
            return super().logp(utterance, prefix).float()

    rounded, widened = (LabelBeamSearch(kind([5, 3], 4, 1), LabelBeamConfig()) for kind in (Rounded, Widened))
    assert rounded.run() == widened.run()


def test_two_parts_of_one_name_are_refused() -> None:
    emitter, table = ToyLabels([2], VOCAB, 0), TableScorer(VOCAB, 0, 1.0, "length")
    assert LabelBeamSearch(emitter, LabelBeamConfig(), scorers=[table]).run()
    with pytest.raises(ConfigError, match="'length'"):
        LabelBeamSearch(emitter, LabelBeamConfig(length_bonus=0.1), scorers=[table])
