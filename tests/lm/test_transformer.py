"""The Transformer LM: causal, and its cached contexts equal whole sentences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lm.config import build_config
from lm.errors import ConfigError
from lm.rotary import sinusoids
from lm.transformer import TransformerLM, TransformerLMConfig

VOCAB, CLASSES = 11, 3


def make(positions: str = "rotary") -> TransformerLM:
    torch.manual_seed(0)
    config = TransformerLMConfig(layers=2, width=16, heads=2, feed_forward=32, positions=positions)
    return TransformerLM(config, VOCAB, CLASSES).eval()


def store_form(logits: Tensor) -> Tensor:
    return logits - logits[..., :VOCAB].logsumexp(-1, keepdim=True)


POSITIONS = pytest.mark.parametrize("positions", ["rotary", "sinusoidal", "none"])


@POSITIONS
@torch.no_grad()
def test_contexts_equal_whole_sentences(positions: str) -> None:
    model = make(positions)
    tokens = torch.randint(0, VOCAB + CLASSES, (5, 40), generator=torch.Generator().manual_seed(1))
    whole = store_form(model(tokens))
    store = model.contexts()
    state = store.start(5)
    for place in range(40):
        assert torch.allclose(store.score(state), whole[:, place], atol=1e-4)
        state = store.advance(state, tokens[:, place])


@POSITIONS
@torch.no_grad()
def test_later_tokens_do_not_change_earlier_scores(positions: str) -> None:
    model = make(positions)
    tokens = torch.randint(0, VOCAB, (1, 12), generator=torch.Generator().manual_seed(2))
    before = model(tokens)
    for place in range(12):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCAB
        after = model(changed)
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])
        assert not torch.allclose(after[:, place + 1], before[:, place + 1])


@pytest.mark.parametrize(("positions", "layers", "differs"), [("none", 1, False), ("sinusoidal", 1, True)])
@torch.no_grad()
def test_only_positions_tell_a_shallow_model_the_order(positions: str, layers: int, differs: bool) -> None:
    torch.manual_seed(0)
    config = TransformerLMConfig(layers=layers, width=16, heads=2, feed_forward=32, positions=positions)
    model = TransformerLM(config, VOCAB, CLASSES).eval()
    one, other = model(torch.tensor([[1, 2, 3, 4]]))[0, -1], model(torch.tensor([[2, 3, 1, 4]]))[0, -1]
    assert torch.allclose(one, other, atol=1e-5) != differs


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(torch.arange(5), 6)
    for place in range(5):
        for i in range(3):
            angle = place / 10000 ** (2 * i / 6)
            assert float(table[place, 2 * i]) == pytest.approx(math.sin(angle), abs=1e-5)
            assert float(table[place, 2 * i + 1]) == pytest.approx(math.cos(angle), abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, VOCAB + CLASSES - 1), min_size=1, max_size=6), min_size=1, max_size=8)
)
def test_each_context_is_stored_once(sentences: list[list[int]]) -> None:
    store = make().contexts()
    seen = {(): 0}
    for sentence in sentences:
        state = store.start(1)
        for end, token in enumerate(sentence, start=1):
            state = store.advance(state, torch.tensor([token]))
            assert seen.setdefault(tuple(sentence[:end]), int(state)) == int(state)
    assert len(store) == len(seen) == len(set(seen.values()))


@torch.no_grad()
def test_equal_contexts_asked_for_together_share_a_row_and_remember_their_origin() -> None:
    store = make().contexts()
    rows = store.advance(store.start(4), torch.tensor([3, 5, 3, VOCAB]))
    assert rows[0] == rows[2]
    assert len(set(rows.tolist())) == 3
    parents, tokens = store.origin(rows)
    assert parents.tolist() == [0, 0, 0, 0]
    assert tokens.tolist() == [3, 5, 3, VOCAB]


@torch.no_grad()
def test_score_text_is_a_distribution_over_tokens_and_tags() -> None:
    model = make()
    first = torch.arange(VOCAB + CLASSES)[:, None]
    assert torch.allclose(model.score_text(first).exp().sum(), torch.tensor(1.0), atol=1e-5)


@pytest.mark.parametrize(
    ("width", "heads", "positions"), [(84, 4, "rotary"), (9, 4, "none"), (9, 1, "sinusoidal")]
)
def test_widths_that_heads_do_not_divide_are_refused(width: int, heads: int, positions: str) -> None:
    values = {"width": width, "heads": heads, "positions": positions}
    with pytest.raises(ConfigError, match=f"a width that {heads} heads divide into"):
        build_config(TransformerLMConfig, values, "here")


def test_odd_parts_do_where_nothing_is_rotated() -> None:
    assert TransformerLMConfig(width=84, heads=4, positions="none").width == 84
