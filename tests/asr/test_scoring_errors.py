from __future__ import annotations

import functools
import math

import jiwer
import kaldialign
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.scoring.errors import Counts, align, align_weighted, char_errors, count, score_pairs, word_errors

words = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8)


def fewest_errors_most_matches(ref: list[str], hyp: list[str]) -> tuple[int, int]:
    @functools.cache
    def best(i: int, j: int) -> tuple[int, int]:
        if i == 0 and j == 0:
            return 0, 0
        found = []
        if i and j:
            errors, matches = best(i - 1, j - 1)
            same = ref[i - 1] == hyp[j - 1]
            found.append((errors + (not same), matches - same))
        for previous in ([(i - 1, j)] if i else []) + ([(i, j - 1)] if j else []):
            errors, matches = best(*previous)
            found.append((errors + 1, matches))
        return min(found)

    errors, matches = best(len(ref), len(hyp))
    return errors, -matches


def plain_alignment(ref: list[str], hyp: list[str], sub: int, ins: int, del_: int) -> list[tuple]:
    """The textbook programme, cell by cell, with ties to diagonal, then insertion, then deletion."""
    cost = {(0, 0): (0, [])}
    for i in range(len(ref) + 1):
        for j in range(len(hyp) + 1):
            moves = []
            if i and j:
                before, path = cost[i - 1, j - 1]
                moves.append((before + (0 if ref[i - 1] == hyp[j - 1] else sub), 0, [*path, (i - 1, j - 1)]))
            if j:
                before, path = cost[i, j - 1]
                moves.append((before + ins, 1, [*path, (None, j - 1)]))
            if i:
                before, path = cost[i - 1, j]
                moves.append((before + del_, 2, [*path, (i - 1, None)]))
            if moves:
                total, _, path = min(moves, key=lambda move: move[:2])
                cost[i, j] = total, path
    return cost[len(ref), len(hyp)][1]


@given(words, words)
def test_alignment_is_a_path_with_fewest_errors_and_most_matches(ref: list[str], hyp: list[str]) -> None:
    path = align(ref, hyp)
    assert [i for i, _ in path if i is not None] == list(range(len(ref)))
    assert [j for _, j in path if j is not None] == list(range(len(hyp)))
    assert (None, None) not in path
    found = count(path, ref, hyp)
    matches = sum(1 for i, j in path if i is not None and j is not None and ref[i] == hyp[j])
    assert (found.errors, matches) == fewest_errors_most_matches(ref, hyp)
    assert found.errors == kaldialign.edit_distance(ref, hyp)["total"]


@given(words, words, st.sampled_from([(4, 3, 3), (1, 1, 1), (2, 1, 3)]))
def test_weighted_alignment_is_the_textbook_one_ties_included(
    ref: list[str], hyp: list[str], costs: tuple[int, int, int]
) -> None:
    sub, ins, del_ = costs
    assert align_weighted(ref, hyp, sub=sub, ins=ins, del_=del_) == plain_alignment(ref, hyp, *costs)


def test_a_match_wins_over_two_substitutions() -> None:
    assert align(["call", "ann"], ["ann", "please"]) == [(0, None), (1, 0), (None, 1)]


@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=5))
def test_summed_word_and_character_errors_equal_jiwer(pairs: list[tuple[list[str], list[str]]]) -> None:
    texts = [(" ".join(ref), " ".join(hyp)) for ref, hyp in pairs]
    refs, hyps = [r for r, _ in texts], [h for _, h in texts]
    assert math.isclose(sum(score_pairs(texts), Counts()).rate, jiwer.wer(refs, hyps))
    assert math.isclose(sum((char_errors(r, h) for r, h in texts), Counts()).rate, jiwer.cer(refs, hyps))


def test_counts_by_hand() -> None:
    assert word_errors("the cat sat down", "the hat sat down there") == Counts(sub=1, ins=1, del_=0, ref=4)
    assert word_errors("one  two", "") == Counts(del_=2, ref=2)
    assert char_errors("ab  cd", "ab cx") == Counts(sub=1, ref=5)
    assert Counts(1, 2, 3, 12).rate == pytest.approx(0.5)
    assert math.isnan(word_errors("", "hello").rate)
    assert word_errors("", "hello").ins == 1
