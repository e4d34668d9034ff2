"""CTC prefix scores against every path of tiny recordings, and what must hold of them at any size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from decoding.ctc_prefix import LEAST, CTCPrefix

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))


def emissions(frames: int, labels: int, seed: int, batch: int = 1, sharp: float = 2.0) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(batch, frames, labels + 1, generator=draws)).log_softmax(-1)


def said(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """The labels of a path: repeats are one, blanks are dropped."""
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def every_sequence(logp: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of each label sequence, by all paths of ``logp`` ``(T, V + 1)``."""
    frames, symbols = logp.shape
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(symbols), repeat=frames):
        labels = said(path, symbols - 1)
        p = math.exp(sum(float(logp[t, symbol]) for t, symbol in enumerate(path)))
        found[labels] = found.get(labels, 0.0) + p
    return found


def walk(scorer: CTCPrefix, labels: tuple[int, ...], utterance: int = 0, utterances: int = 1) -> Tensor:
    """The state after ``labels``."""
    state = scorer.start(utterances)[utterance : utterance + 1]
    for label in labels:
        state = scorer.advance(state, torch.tensor([label]))
    return state


@settings(max_examples=40, deadline=None)
@given(SIZES)
def test_scores_are_those_of_all_paths(sizes: tuple[int, int, int]) -> None:
    frames, labels, seed = sizes
    logp = emissions(frames, labels, seed)
    truth = every_sequence(logp[0])
    scorer = CTCPrefix(logp, torch.tensor([frames]), 1.0)
    tokens = torch.arange(labels)[None]
    for length in range(min(frames, 3) + 1):
        for prefix in itertools.product(range(labels), repeat=length):
            begins = sum(p for sequence, p in truth.items() if sequence[:length] == prefix)
            if not begins:
                continue
            state = walk(scorer, prefix)
            expected = [
                sum(p for sequence, p in truth.items() if sequence[: length + 1] == (*prefix, label)) / begins
                for label in range(labels)
            ]
            found = scorer.score(state, tokens)[0].exp()
            torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-4)
            end = float(scorer.finish(state).exp())
            assert end == pytest.approx(truth.get(prefix, 0.0) / begins, abs=1e-5)
            assert float(found.sum()) + end == pytest.approx(1.0, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 5), max_size=12))
def test_a_whole_sequence_adds_up_to_the_ctc_loss(seed: int, labels: list[int]) -> None:
    logp = emissions(40, 6, seed)
    scorer = CTCPrefix(logp, torch.tensor([40]), 1.0)
    state, total = scorer.start(1), 0.0
    for label in labels:
        token = torch.tensor([label])
        total += float(scorer.score(state, token[None]))
        state = scorer.advance(state, token)
    total += float(scorer.finish(state))
    targets = torch.tensor([labels], dtype=torch.long).view(1, -1)
    loss = torch.nn.functional.ctc_loss(
        logp.transpose(0, 1), targets, torch.tensor([40]), torch.tensor([len(labels)]), 6, reduction="sum"
    )
    assert total == pytest.approx(-float(loss), abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_batch_is_its_utterances(seed: int, order: int) -> None:
    draws = torch.Generator().manual_seed(order)
    logp, lengths = emissions(30, 5, seed, batch=3, sharp=4.0), torch.tensor([30, 0, 17])
    together = CTCPrefix(logp, lengths, 1.0)
    utterance = torch.randint(3, (8,), generator=draws)
    labels = torch.randint(5, (8, 4), generator=draws)
    state = together.start(3)[utterance]
    tokens = torch.randint(5, (8, 7), generator=draws)
    for place in range(4):
        scores, ends = together.score(state, tokens), together.finish(state)
        for row, number in enumerate(utterance.tolist()):
            length = int(lengths[number])
            alone = CTCPrefix(logp[number : number + 1, :length], lengths[number : number + 1], 1.0)
            single = walk(alone, tuple(labels[row, :place].tolist()))
            torch.testing.assert_close(scores[row], alone.score(single, tokens[row : row + 1])[0])
            torch.testing.assert_close(ends[row], alone.finish(single)[0])
        state = together.advance(state, labels[:, place])


def test_what_cannot_be_said_costs_much_but_can_end() -> None:
    scorer = CTCPrefix(emissions(2, 3, 0), torch.tensor([2]), 1.0)
    state = walk(scorer, (0, 1, 2, 2))
    assert scorer.score(state, torch.tensor([[0, 1, 2]])).tolist() == [[LEAST] * 3]
    assert float(scorer.finish(state)) == LEAST
    repeated = walk(scorer, (1,))
    assert float(scorer.score(repeated, torch.tensor([[1]]))) == LEAST, "a blank must be between"


def test_long_recordings_keep_their_precision() -> None:
    logp = emissions(3000, 4, 1, sharp=6.0)
    scorer = CTCPrefix(logp, torch.tensor([3000]), 1.0)
    tokens, state = torch.arange(4)[None], scorer.start(1)
    for _ in range(60):
        scores = scorer.score(state, tokens)[0]
        assert float(scores.exp().sum() + scorer.finish(state).exp()) == pytest.approx(1.0, abs=1e-4)
        state = scorer.advance(state, scores.argmax()[None])
