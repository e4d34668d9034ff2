"""Against real k2, in an environment of its own (.ci/k2); elsewhere these tests are skipped.

Nothing here may import what that environment lacks: it has torch 1.13, numpy 1 and pytest.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

k2: Any = pytest.importorskip("k2", reason="real k2 is tested in the environment that .ci/k2 makes")

from asr.losses.rnnt import transducer_loss_from_logp  # noqa: E402
from decoding.k2_bridge import lattice_from_k2, lattice_to_k2, ngram_to_k2, tree_to_k2  # noqa: E402
from decoding.lattice import Lattice  # noqa: E402
from lm.errors import DataError  # noqa: E402
from lm.kneser_ney import train_arpa  # noqa: E402
from lm.ngram import NGramModel  # noqa: E402

V = 5
ENTRIES = {(0,): 1.0, (0, 1): 2.0, (0, 1, 4): 1.0, (2, 1): 3.0, (2, 1, 1, 0): 0.5, (3,): 1.0}


def linear(tokens: tuple[int, ...] | list[int]) -> Any:
    """An acceptor of one sequence."""
    return k2.linear_fsa([token + 1 for token in tokens])


def total(fsa: Any, tokens: tuple[int, ...] | list[int], log_semiring: bool) -> float:
    """Score of a sequence in an automaton, -inf where it is not accepted."""
    sentence = linear(tokens)
    found = k2.connect(k2.intersect(k2.arc_sort(fsa), k2.arc_sort(sentence), treat_epsilons_specially=True))
    if found.arcs.num_elements() == 0:
        return -math.inf
    vec = k2.create_fsa_vec([k2.top_sort(found)])
    return float(vec.get_tot_scores(use_double_scores=True, log_semiring=log_semiring)[0])


def tree() -> tuple[Any, ...]:
    """The entries as flat arrays, written out by hand."""
    nodes = sorted(
        {entry[: i + 1] for entry in ENTRIES for i in range(len(entry))}, key=lambda n: (len(n), n)
    )
    number = {node: i for i, node in enumerate(nodes)}
    mass = {node: sum(w for e, w in ENTRIES.items() if e[: len(node)] == node) for node in [*nodes, ()]}
    root_logp, root_target = torch.full((V,), -math.inf), torch.full((V,), -1)
    key, target, logp = [], [], []
    on, end = torch.full((len(nodes),), -math.inf), torch.full((len(nodes),), -math.inf)
    for node, i in number.items():
        own = ENTRIES.get(node, 0.0)
        if own:
            end[i] = math.log(own / mass[node])
        if mass[node] > own:
            on[i] = math.log(1 - own / mass[node])
        if len(node) == 1:
            root_logp[node[0]], root_target[node[0]] = math.log(mass[node] / mass[()]), i
        else:
            above = node[:-1]
            key.append(number[above] * V + node[-1])
            target.append(i)
            logp.append(math.log(mass[node] / (mass[above] - ENTRIES.get(above, 0.0))))
    order = torch.tensor(key).argsort()
    arcs = torch.tensor(key)[order], torch.tensor(target)[order], torch.tensor(logp)[order]
    return (root_logp, root_target), arcs, on, end


def test_a_list_accepts_its_entries_with_their_probabilities() -> None:
    fsa = tree_to_k2(*tree())
    assert fsa.properties & k2.fsa_properties.TOPSORTED
    whole = sum(ENTRIES.values())
    for entry, weight in ENTRIES.items():
        assert total(fsa, entry, True) == pytest.approx(math.log(weight / whole), abs=1e-5)
    for other in ((1,), (0, 1, 4, 4), (2,), (2, 1, 1), (3, 3), (4,)):
        assert total(fsa, other, True) == -math.inf
    vec = k2.create_fsa_vec([fsa])
    assert float(vec.get_tot_scores(True, True)[0]) == pytest.approx(0.0, abs=1e-5), "all entries sum to one"


def test_a_class_without_entries() -> None:
    root, arcs, on, end = tree()
    with pytest.raises(DataError, match="without entries"):
        tree_to_k2((root[0], torch.full((V,), -1)), arcs, on, end)


def random_lattice(seed: int) -> Lattice:
    random = np.random.default_rng(seed)
    nodes = int(random.integers(3, 9))
    pairs = [(i, j) for i in range(nodes) for j in range(i + 1, nodes) if j == i + 1 or random.random() < 0.5]
    count, final = len(pairs), sorted({nodes - 1, int(random.integers(1, nodes))})
    return Lattice(
        parts=("model", "lm"),
        source=np.array([i for i, _ in pairs]),
        target=np.array([j for _, j in pairs]),
        token=random.integers(-1, V, count),
        frame=random.integers(0, 50, count),
        logp=random.normal(size=count),
        entered=random.random(count) < 0.5,
        node=random.integers(-1, 4, count),
        scores=random.normal(size=(count, 2)),
        final=np.array(final),
        final_scores=random.normal(size=(len(final), 2)),
    )


def paths(lattice: Lattice) -> dict[tuple[int, ...], float]:
    """Scores of all arc sequences."""
    found, open_ = {}, [((), 0, 0.0)]
    ends = dict(zip(lattice.final.tolist(), lattice.final_scores.sum(-1).tolist(), strict=True))
    while open_:
        arcs, node, score = open_.pop()
        if node in ends:
            found[arcs] = score + ends[node]
        for arc in np.flatnonzero(lattice.source == node):
            open_.append(
                ((*arcs, int(arc)), int(lattice.target[arc]), score + float(lattice.scores[arc].sum()))
            )
    return found


@pytest.mark.parametrize("seed", range(20))
def test_lattices_there_and_back(seed: int) -> None:
    lattice = random_lattice(seed)
    fsa, known = lattice_to_k2(lattice), paths(lattice)
    vec = k2.create_fsa_vec([fsa])
    best = max(known.values())
    assert float(vec.get_tot_scores(True, False)[0]) == pytest.approx(best, abs=1e-4)
    summed = math.log(sum(math.exp(score - best) for score in known.values())) + best
    assert float(vec.get_tot_scores(True, True)[0]) == pytest.approx(summed, abs=1e-4)
    way = k2.shortest_path(vec, use_double_scores=True)
    labels = [label - 1 for label in way[0].labels.tolist() if label > 0]
    arcs = max(known, key=lambda path: known[path])
    assert labels == [int(lattice.token[a]) for a in arcs if lattice.token[a] >= 0]
    again = lattice_from_k2(fsa)
    assert again.parts == lattice.parts
    for name in ("source", "target", "token", "frame", "entered", "node", "final"):
        assert np.array_equal(getattr(again, name), getattr(lattice, name)), name
    for name in ("logp", "scores", "final_scores"):
        assert np.allclose(getattr(again, name), getattr(lattice, name), atol=1e-5), name
    assert again.best_path().score == pytest.approx(lattice.best_path().score, abs=1e-4)


def test_an_automaton_of_another_origin() -> None:
    with pytest.raises(DataError, match="convert a lattice"):
        lattice_from_k2(linear([1, 2]))


WORDS = ("a", "b", "c", "d", "<city>")
TOKENIZER: Any = SimpleNamespace(pieces=WORDS[:4], classes=("city",), vocab_size=4, num_classes=1)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams(tmp_path: Path, order: int) -> None:
    random = np.random.default_rng(order)
    text = [[WORDS[i] for i in random.integers(0, 5, 8)] for _ in range(40)]
    train_arpa(text, order, tmp_path / "m.arpa")
    model = NGramModel.from_arpa(tmp_path / "m.arpa", TOKENIZER)
    fsa = ngram_to_k2(model)
    equal = 0
    for _ in range(40):
        sentence = random.integers(0, 5, int(random.integers(1, 6))).tolist()
        exact, best = model.score_text(sentence), total(fsa, sentence, False)
        assert best >= exact - 1e-3
        equal += abs(best - exact) < 1e-3
    assert equal >= 36, "the n-gram's own path is nearly always the best"


def test_transducer_losses_agree() -> None:
    torch.manual_seed(0)
    frames, labels = torch.tensor([7, 4, 5]), torch.tensor([3, 0, 5])
    losses, gradients = [], []
    logits = torch.randn(3, 7, 6, 4)
    for backend in ("torch", "k2"):
        scores = logits.clone().requires_grad_()
        logp = scores.log_softmax(-1)
        loss = transducer_loss_from_logp(logp[..., 0], logp[:, :, :-1, 1], frames, labels, backend)
        loss.sum().backward()
        losses.append(loss.detach())
        gradients.append(scores.grad)
    assert torch.allclose(losses[0], losses[1], atol=1e-4)
    assert torch.allclose(gradients[0], gradients[1], atol=1e-4)
