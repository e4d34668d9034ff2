"""Classes whose nodes are reached in several ways, inside the search: against the exact class-based model."""

from __future__ import annotations

import math

import pytest
import torch
from toys import BigramLM, ToyEmitter, alignment_sums
from trees import tree_of

from decoding.class_status import ClassGrammar
from decoding.entity_graph import EntityGraph
from decoding.frame_sync import BeamConfig, BeamSearch
from lm.class_lm import ClassLM
from lm.classes import EntityCatalog, encode_catalog
from lm.prefix_tree import PrefixTree
from lm.tokenizer import Tokenizer

# Five tokens: the word mark and four letters; "a" to "d" are words of two tokens.
TOKENIZER = Tokenizer.train(["a b c d", "d c b a"] * 4, 5, ["thing", "name"], "char")
VOCAB, CLASSES = TOKENIZER.vocab_size, TOKENIZER.num_classes
STARTS = torch.from_numpy(TOKENIZER.starts_word)
LISTS = {
    "thing": [{"pattern": "a? b (c | d)?"}, {"text": "<name> a", "weight": 2}, "c"],
    "name": {"entries": ["a", "b", "a b"]},
}
TREE = PrefixTree.build(encode_catalog(EntityCatalog.from_mapping(LISTS), TOKENIZER), VOCAB, CLASSES)


def test_the_class_is_one_graph_with_shared_nodes() -> None:
    thing = TOKENIZER.class_id("thing")
    inside = torch.bincount(TREE.arc_target, minlength=TREE.num_nodes)[TREE.node_class == thing]
    assert (inside > 1).any()


@pytest.mark.parametrize("bonus", [2.0])
def test_wide_beam_is_alignments_times_class_lm(bonus: float) -> None:
    lm = BigramLM(VOCAB, CLASSES, seed=3)
    emitter = ToyEmitter([4], lm, seed=4)
    exact = ClassLM(lm, TREE, STARTS, bonus)
    grammar = ClassGrammar(emitter.contexts, STARTS, [TREE], bonus)
    config = BeamConfig(beam=2000, threshold=1000.0, nbest=3000)
    found = {h.tokens: h for h in BeamSearch(emitter, config, grammar).run()[0]}
    checked = 0
    for tokens, logp in alignment_sums(emitter, 0, 1).items():
        expected = logp + exact.score_text(list(tokens))
        if expected > -math.inf:
            assert found[tokens].score == pytest.approx(expected, abs=1e-3), tokens
            checked += 1
    assert checked > 500
    shown = [(h, span) for h in found.values() for span in h.spans]
    assert len(shown) > 20
    for hypothesis, span in shown:
        tokens = hypothesis.tokens[span.start : span.end]
        assert math.isfinite(grammar.graph.share_logp(span.node, tokens))


def test_prefixes_of_each_length_sum_to_one() -> None:
    model = ClassLM(BigramLM(VOCAB, CLASSES, 7), TREE, STARTS, bonus=1.0)
    prefixes = {(): model.start}
    for _ in range(4):
        prefixes = {
            (*tokens, token): found
            for tokens, prefix in prefixes.items()
            for token in range(VOCAB)
            if (found := model.advance(prefix, token))
        }
        total = sum(math.exp(logp) for prefix in prefixes.values() for logp in prefix.values())
        assert total == pytest.approx(1.0, abs=1e-5)


def test_graphs_of_a_batch_stand_side_by_side() -> None:
    other = tree_of({0: [([0, 1], 1.0)]}, VOCAB, CLASSES)
    nothing = PrefixTree.empty(VOCAB, CLASSES)
    thing = TOKENIZER.class_id("thing")
    tokens = TOKENIZER.encode("a b d")
    shares = []
    for trees in ([TREE], [nothing, TREE], [other, nothing, TREE], [TREE, other, TREE]):
        graph = EntityGraph(trees, torch.device("cpu"))
        place = len(trees) - 1
        node = graph.root_target[place, thing, tokens[0]]
        for token in tokens[1:]:
            node, logp = graph.child(node, torch.tensor(token))
            assert math.isfinite(float(logp))
        shares.append(graph.share_logp(int(node), tokens))
        assert graph.entries(int(node)) == (thing, [])
        assert graph.class_cost.shape == (len(trees), CLASSES)
    assert shares == pytest.approx([shares[0]] * 4)
    # One of four of the weight, three choices: a said, c or d said, d rather than c.
    assert shares[0] == pytest.approx(math.log(1 / 4 / 8), abs=1e-5)


def test_all_lists_empty() -> None:
    graph = EntityGraph([PrefixTree.empty(VOCAB, CLASSES)] * 2, torch.device("cpu"))
    assert len(graph.end_logp) == len(graph.on_logp) == len(graph.node_class) == 1
    assert not graph.active.any()
    node, logp = graph.child(torch.tensor([-1, 0]), torch.tensor([0, 1]))
    assert node.tolist() == [-1, -1]
    assert torch.isneginf(logp).all()
