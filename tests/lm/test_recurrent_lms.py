"""LSTM and BASED: step by step as in parallel, nothing leaks from the future, a state of constant size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.based import BasedContexts, BasedLM, BasedLMConfig
from lm.errors import ConfigError
from lm.language_model import LanguageModel
from lm.lstm import LSTMLM, LSTMLMConfig

V, C = 6, 2


def make(kind: str, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    if kind == "lstm":
        return LSTMLM(LSTMLMConfig(layers=2, width=12), V, C).eval()
    config = BasedLMConfig(layers=3, width=12, heads=2, features=3, window=3, feed_forward=24)
    model = BasedLM(config, V, C).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2.0)
    return model


@pytest.mark.parametrize("kind", ["lstm", "based"])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 99),
    rows=st.lists(st.lists(st.integers(0, V + C - 1), max_size=9), min_size=1, max_size=4),
)
def test_step_by_step_is_in_parallel(kind: str, seed: int, rows: list[list[int]]) -> None:
    model = make(kind, seed)
    store = model.contexts()
    for row in rows:  # contexts are shared between the rows
        with torch.no_grad():
            logits = model(torch.tensor([row], dtype=torch.long))[0]
        expected = logits - logits[:, :V].logsumexp(-1, keepdim=True)
        state = store.start(1)
        torch.testing.assert_close(store.score(state), expected[:1], atol=1e-4, rtol=1e-4)
        for place, token in enumerate(row):
            state = store.advance(state, torch.tensor([token]))
            torch.testing.assert_close(
                store.score(state), expected[place + 1 : place + 2], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("kind", ["lstm", "based"])
def test_nothing_leaks_from_the_future(kind: str) -> None:
    model = make(kind)
    tokens = torch.tensor([[1, 4, 2, 6, 0, 3]])
    for place in range(6):
        other = tokens.clone()
        other[0, place:] = torch.tensor([5, 0, 1, 2, 5, 1])[place:]
        one, two = model(tokens)[0], model(other)[0]
        torch.testing.assert_close(one[: place + 1], two[: place + 1])
        assert not torch.equal(one[place + 1], two[place + 1])


def test_a_window_alone_forgets_and_linear_attention_does_not() -> None:
    torch.manual_seed(0)
    config = BasedLMConfig(layers=1, width=12, heads=2, features=3, window=3, feed_forward=24)
    linear = BasedLM(config, V, C).eval()
    deep = BasedLM(config.model_copy(update={"layers": 2}), V, C).eval()
    window = BasedLM(config, V, C).eval()
    window.blocks[0] = deep.blocks[1]
    one, two = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[5, 1, 2, 3, 4, 5]])
    assert torch.equal(window(one)[0, -1], window(two)[0, -1])
    assert not torch.allclose(linear(one)[0, -1], linear(two)[0, -1])


def test_the_state_does_not_grow() -> None:
    store = make("based").contexts()
    assert isinstance(store, BasedContexts)
    state = store.start(1)
    sizes = set()
    for place in range(40):
        state = store.advance(state, torch.tensor([place % V]))
        sizes.add(sum(rows.data[-1].numel() for rows in store._states))
    assert len(sizes) == 1


def test_heads_must_divide_the_width() -> None:
    from lm.config import build_config

    with pytest.raises(ConfigError, match="heads"):
        build_config(BasedLMConfig, {"width": 10, "heads": 4}, "here")
