"""The contextual language model: what a context may change, and what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import build_config
from lm.contextual import ContextualLM, ContextualLMConfig
from lm.errors import BundleError, ConfigError, DataError
from lm.model_files import load_language_model, save_language_model
from lm.vocabulary import WordVocabulary

V, C = 6, 2
FIELDS: list[dict[str, Any]] = [
    {"kind": "cyclic", "name": "hour", "period": 24},
    {"kind": "categorical", "name": "app", "values": ["maps", "music", "2"]},
    {"kind": "cyclic", "name": "weekday", "period": 7},
]
WAYS: list[dict[str, Any]] = [
    {"how": "none"},
    {"how": "prepend"},
    {"how": "mean"},
    *(
        {"how": "attention", "score": s, "query": q}
        for s in ("additive", "general")
        for q in ("hidden", "word")
    ),
    {"how": "attention", "null": False},
]
IDS = ["-".join(str(value) for value in way.values()) for way in WAYS]
CONTEXTS: list[Any] = [
    {"hour": 7, "app": "maps"},
    None,
    {"weekday": 3.5},
    {"app": 2, "hour": 0, "weekday": 7},
]


def make(way: dict[str, Any], seed: int = 0, fields: list[dict[str, Any]] = FIELDS) -> ContextualLM:
    torch.manual_seed(seed)
    config = {"fields": fields, "width": 12, "context_width": 5, **way}
    model = ContextualLM(build_config(ContextualLMConfig, config, "here"), V, C).eval()
    for parameter in model.parameters():
        parameter.data.mul_(2.0)
    return model


@pytest.mark.parametrize("way", WAYS, ids=IDS)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    rows=st.lists(st.lists(st.integers(0, V + C - 1), max_size=8), min_size=1, max_size=4),
)
def test_step_by_step_is_in_parallel_and_a_batch_is_its_sentences(
    way: dict[str, Any], seed: int, rows: list[list[int]]
) -> None:
    model = make(way, seed)
    context = model.encode(CONTEXTS[: len(rows)])
    store = model.contexts(context=context)
    states = store.start(len(rows))
    padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(r, dtype=torch.long) for r in rows], True)
    with torch.no_grad():
        together = model(padded, context)
        assert together.shape == (len(rows), padded.shape[1] + 1, V + C)
        for number, row in enumerate(rows):
            alone = model(torch.tensor([row], dtype=torch.long), context[number : number + 1])[0]
            torch.testing.assert_close(together[number, : len(row) + 1], alone, atol=1e-5, rtol=1e-5)
            expected = alone - alone[:, :V].logsumexp(-1, keepdim=True)
            state = states[number : number + 1]
            for place, token in enumerate([*row, None]):
                torch.testing.assert_close(store.score(state)[0], expected[place], atol=1e-4, rtol=1e-4)
                if token is not None:
                    state = store.advance(state, torch.tensor([token]))


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_nothing_leaks_from_the_future_or_from_other_sentences(way: dict[str, Any]) -> None:
    model = make(way)
    tokens = torch.tensor([[1, 4, 2, 6, 0, 3], [5, 5, 1, 2, 7, 0]])
    context = model.encode(CONTEXTS[:2])
    for place in range(6):
        other = tokens.clone()
        other[0, place:] = torch.tensor([5, 0, 1, 2, 5, 1])[place:]
        one, two = model(tokens, context), model(other, context)
        torch.testing.assert_close(one[0, : place + 1], two[0, : place + 1])
        assert not torch.allclose(one[0, place + 1], two[0, place + 1], atol=1e-5)
        torch.testing.assert_close(one[1], two[1])


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_what_is_not_known_is_one_well_defined_context(way: dict[str, Any]) -> None:
    model = make(way)
    tokens = torch.tensor([[1, 4, 2]])
    empty = model(tokens)
    assert bool(empty.isfinite().all())
    for said in (None, {}, {"hour": None}, {"app": "never met"}):
        torch.testing.assert_close(model(tokens, model.encode([said])), empty, atol=0, rtol=0)
    total = model.score_text(torch.arange(V + C)[:, None]).exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0))
    known = model.encode([CONTEXTS[0]]).expand(V + C, -1)
    spoken = model.score_text(torch.arange(V + C)[:, None], known)
    torch.testing.assert_close(spoken.exp().sum(), torch.tensor(1.0))
    assert torch.allclose(model(tokens, known[:1]), empty, atol=1e-4) == (not model.takes_context)
    # Training replaces some fields by what is not known; all of them leave the empty context.
    blind = make({**way, "hidden_fields": 0.999999, "dropout": 0.0}).train()
    torch.testing.assert_close(blind(tokens, known[:1]), blind(tokens))


@pytest.mark.parametrize("way", [w for w in WAYS if w["how"] in ("mean", "attention")], ids=str)
def test_the_order_of_fields_does_not_matter(way: dict[str, Any]) -> None:
    one = make(way)
    order = [2, 0, 1]
    other = make(way, fields=[FIELDS[i] for i in order])
    weights = one.state_dict()
    turned = {name: weight for name, weight in weights.items() if not name.startswith("fields.maps")}
    turned["fields.unknown"] = weights["fields.unknown"][order]
    for new, old in enumerate(order):
        for name in one.fields.maps[old].state_dict():
            turned[f"fields.maps.{new}.{name}"] = weights[f"fields.maps.{old}.{name}"]
    other.load_state_dict(turned)
    tokens = torch.tensor([[1, 4, 2, 6]]).expand(len(CONTEXTS), -1)
    reversed_contexts = [dict(reversed(said.items())) if said else said for said in CONTEXTS]
    torch.testing.assert_close(
        one(tokens, one.encode(CONTEXTS)), other(tokens, other.encode(reversed_contexts))
    )


def test_hours_go_round() -> None:
    model = make({"how": "mean"})
    at = model.fields(model.encode([{"hour": h, "weekday": 0} for h in (0, 24, 1, 23, 12)]))[:, 0]
    torch.testing.assert_close(at[0], at[1], atol=1e-5, rtol=1e-5)
    near, far = (at[2] - at[3]).norm(), (at[2] - at[4]).norm()
    assert near < far


@pytest.mark.parametrize("score", ["additive", "general"])
def test_attention_weighs_fields_and_listens_to_the_query(score: str) -> None:
    """The released code of the paper has weights of 1, whatever is asked."""
    model = make({"how": "attention", "score": score})
    memory = model.attention.remember(model.fields(model.encode(CONTEXTS)))
    query = torch.randn(len(CONTEXTS), 3, 12)
    weights = model.attention.weights(query, memory)
    assert weights.shape == (len(CONTEXTS), 3, len(FIELDS) + 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(CONTEXTS), 3))
    assert not torch.allclose(weights[:, 0], weights[:, 1], atol=1e-3)
    assert bool((memory.values[:, 0] == 0).all())  # the null key is nothing
    keys = memory.keys[0]
    asked = model.attention.query(query[0, 0])
    by_hand = [
        model.attention.energy((asked + key).tanh()).squeeze(-1) if score == "additive" else asked @ key
        for key in keys
    ]
    torch.testing.assert_close(weights[0, 0], torch.stack(by_hand).softmax(-1))


@pytest.mark.parametrize("way", WAYS, ids=IDS)
def test_every_parameter_is_trained(way: dict[str, Any]) -> None:
    """In the released code attention is not among the parameters, and gates share a normalisation."""
    model = make({**way, "hidden_fields": 0.0}).train()
    assert model.gate_scale.shape == (4, 12)
    tokens = torch.arange(V + C).repeat(5, 1)
    known: dict[str, Any] = {"hour": 7, "weekday": 2}
    context = model.encode([*({**known, "app": app} for app in ("maps", "music", "2")), None, {"hour": 3}])
    torch.autograd.backward(model(tokens, context).log_softmax(-1).square().mean())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool((parameter.grad.abs() > 0).any()), name


def test_it_learns_what_the_context_tells() -> None:
    torch.manual_seed(1)
    model = make({"how": "attention", "dropout": 0.0, "hidden_fields": 0.0}).train()
    apps = ["maps", "music", "2"]
    context = model.encode([{"app": app} for app in apps])
    tokens = torch.tensor([[0, 1], [0, 2], [0, 3]])
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(60):
        optimizer.zero_grad()
        loss = -model.score_text(tokens, context).sum(-1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval().requires_grad_(False)
    right = model.score_text(tokens, context).sum(-1)
    shuffled = model.score_text(tokens, context.roll(1, 0)).sum(-1)
    assert float(right.min()) > -0.3
    assert float(shuffled.max()) < -1.0


def test_utterances_of_one_context_share_their_histories() -> None:
    model = make({"how": "attention"})
    store = model.contexts(context=model.encode([CONTEXTS[0], None, CONTEXTS[0]]))
    start = store.start(3)
    assert len(store) == 2
    assert start[0] == start[2] != start[1]
    after = store.advance(start, torch.tensor([1, 1, 1]))
    assert len(store) == 4
    assert after[0] == after[2] != after[1]
    with pytest.raises(ValueError, match="3 utterances"):
        store.start(2)
    assert model.contexts().start(5).tolist() == [0] * 5


def test_files(tmp_path: Path) -> None:
    units = WordVocabulary(["A", "B", "C"], ["contact"])
    torch.manual_seed(0)
    config = build_config(ContextualLMConfig, {"fields": FIELDS, "width": 8, "context_width": 4}, "here")
    model = ContextualLM(config, units.vocab_size, units.num_classes).eval()
    save_language_model(tmp_path / "lm.safetensors", "contextual", config, model, units)
    read = load_language_model(tmp_path / "lm.safetensors", units)
    assert isinstance(read, ContextualLM)
    assert read.config == config
    tokens, context = torch.tensor([[1, 2, 3]]).expand(4, -1), model.encode(CONTEXTS)
    torch.testing.assert_close(read(tokens, context), model(tokens, context), atol=0, rtol=0)
    other = model.config.model_copy(update={"width": 10})
    save_language_model(tmp_path / "wrong.safetensors", "contextual", other, model, units)
    with pytest.raises(BundleError, match="size mismatch"):
        load_language_model(tmp_path / "wrong.safetensors", units)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"hours": 3}, "did you mean 'hour'"),
        ({"place": "Ulm"}, "hour, app, weekday"),
        ({"hour": "seven"}, "from 0 to 24"),
        ({"hour": 25}, "from 0 to 24"),
        ({"hour": float("nan")}, "from 0 to 24"),
        ({"hour": True}, "from 0 to 24"),
        ({"app": ["maps"]}, "a name"),
    ],
)
def test_a_context_that_cannot_be_is_told(said: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        make({}).encode([{"hour": 3}, said])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"fields": [FIELDS[0], FIELDS[0]]}, "different names"),
        ({"fields": []}, "at least 1"),
        ({"fields": [{**FIELDS[1], "values": ["a", "a"]}]}, "values that differ"),
        ({"fields": [{**FIELDS[0], "values": ["a"]}]}, "unknown key"),
        ({"fields": FIELDS, "how": "sum"}, "attention"),
    ],
)
def test_a_shape_that_cannot_be_is_told(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_config(ContextualLMConfig, values, "here")
