"""The best CTC alignment against all paths."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.alignment import align_labels
from decoding.ctc_alignment import first_frames
from lm.errors import DataError

BLANK = 2


def said(path: Sequence[int]) -> tuple[list[int], list[int]]:
    """What a path says, and the frame in which each label begins."""
    labels, first = [], []
    for t, label in enumerate(path):
        if label != BLANK and (t == 0 or path[t - 1] != label):
            labels.append(label)
            first.append(t)
    return labels, first


def best(logp: Tensor, labels: list[int]) -> list[int] | None:
    """The first frames on the best of all paths; None where no path says ``labels``."""
    paths = [p for p in itertools.product(range(BLANK + 1), repeat=len(logp)) if said(p)[0] == labels]
    if not paths:
        return None
    return said(max(paths, key=lambda path: float(logp[range(len(logp)), list(path)].sum())))[1]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.lists(st.integers(0, 1), max_size=4))
def test_the_best_of_all_paths_is_found(seed: int, frames: int, labels: list[int]) -> None:
    logp = (3 * torch.randn(frames, BLANK + 1, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    expected = best(logp.double(), labels)
    if expected is None:
        with pytest.raises(DataError, match=f"{len(labels)} labels in {frames} frames"):
            align_labels(logp, labels)
    else:
        assert align_labels(logp, labels) == expected


def test_a_batch_is_its_sequences() -> None:
    draws = torch.Generator().manual_seed(0)
    logp = (3 * torch.randn(3, 30, 5, generator=draws)).log_softmax(-1)
    lengths = torch.tensor([30, 3, 0])
    sequences = [[[0, 1, 1, 2], [], [3] * 9], [[0, 1], [2, 2, 2]], [[], [1]]]
    found = first_frames(logp, lengths, sequences)
    assert found[1][1] is None
    assert found[2] == [(), None]
    for row, (each, places) in enumerate(zip(sequences, found, strict=True)):
        for labels, place in zip(each, places, strict=True):
            if place is not None and labels:
                assert list(place) == align_labels(logp[row, : lengths[row]], labels)
    assert first_frames(logp, lengths, [[], [], []]) == [[], [], []]
