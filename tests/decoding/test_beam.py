"""Recombination and the beam that counts a surface once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.beam import earlier, extend_path, extend_surface, recombine, within_beam

rows = st.lists(st.tuples(st.floats(-20, 0), st.integers(0, 5)), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_equal_hypotheses_become_the_sum_of_their_probabilities(found: list[tuple[float, int]]) -> None:
    found = sorted(found, reverse=True)
    score, key = torch.tensor([[s for s, _ in found]]), torch.tensor([[k for _, k in found]])
    merged = recombine(score, key, earlier(len(found), score.device))[0].tolist()
    for place, (_, name) in enumerate(found):
        same = [s for s, k in found if k == name]
        if [k for _, k in found].index(name) == place:
            assert merged[place] == pytest.approx(math.log(sum(math.exp(s) for s in same)), abs=1e-4)
        else:
            assert merged[place] == -math.inf


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=20), st.integers(1, 5))
def test_the_best_surfaces_are_kept_with_all_their_class_paths(surfaces: list[int], size: int) -> None:
    kept = within_beam(torch.tensor([surfaces]), size)[0].tolist()
    best = list(dict.fromkeys(surfaces))[:size]
    assert kept == [s in best for s in surfaces]


def test_hashes_tell_sequences_apart() -> None:
    seen = set()
    for length in range(4):
        for code in range(5**length):
            surface = path = torch.zeros((), dtype=torch.long)
            for place in range(length):
                token = torch.tensor(code // 5**place % 5)
                surface, path = extend_surface(surface, token), extend_path(path, token)
            seen.add((int(surface), int(path)))
    assert len(seen) == len({s for s, _ in seen}) == len({p for _, p in seen}) == 1 + 5 + 25 + 125
