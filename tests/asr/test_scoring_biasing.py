from __future__ import annotations

import re
from pathlib import Path

import pytest

from asr.scoring.biasing import BiasingReference, read_hypotheses, read_references, score_biasing
from asr.scoring.errors import Counts
from lm.errors import DataError

# (WER, U-WER, B-WER) as (sub, ins, del, words): the published results of Le et al. 2021, test-clean, N = 100.
PUBLISHED = {
    "b1.rnnt_baseline": ((1501, 195, 225, 52576), (725, 195, 190, 46815), (776, 0, 35, 5761)),
    "s1.b1+db-rnnt.biasing_100": ((1263, 173, 197, 52576), (720, 173, 174, 46815), (543, 0, 23, 5761)),
    "s2.b1+wfst.biasing_100": ((1231, 167, 212, 52576), (719, 167, 182, 46815), (512, 0, 30, 5761)),
    "s5.s3+db-nnlm.biasing_100": ((751, 131, 160, 52576), (452, 131, 130, 46815), (299, 0, 30, 5761)),
}


@pytest.fixture(scope="module")
def published(corpora: Path) -> dict[str, BiasingReference]:
    return read_references(corpora / "biasing_lists/ref/test-clean.biasing_100.tsv.gz")


@pytest.mark.corpora
@pytest.mark.parametrize("system", PUBLISHED)
def test_published_counts_are_reproduced_exactly(
    published: dict[str, BiasingReference], corpora: Path, system: str
) -> None:
    hypotheses = read_hypotheses(corpora / f"biasing_lists/hyp/test-clean.{system}.tsv.gz")
    found = score_biasing(published, hypotheses)
    total = found.total
    assert (total.all, total.unbiased, total.biased) == tuple(Counts(*c) for c in PUBLISHED[system])
    assert found.missing == ()
    results = (corpora / f"biasing_lists/results/test-clean.{system}.tsv.result").read_text()
    rates = [float(x) for x in re.findall(r"WER'?: .*?(\d+\.\d+)", results)]
    ours = [round(100 * c.rate, 4) for c in (total.all, total.unbiased, total.biased)]
    assert len(rates) >= 3, results
    assert ours == [round(x, 4) for x in rates[:3]]


def reference(text: str, rare: str = "", distractors: str = "") -> dict[str, BiasingReference]:
    listed = frozenset(rare.split()) | frozenset(distractors.split())
    return {"u": BiasingReference(tuple(text.split()), frozenset(rare.split()), listed)}


def test_each_error_goes_where_its_word_belongs() -> None:
    refs = reference("ask zoltan and wilma now", "zoltan wilma", "zebulon")
    total = score_biasing(refs, {"u": "ask zebulon and now now"}).total
    assert total.biased == Counts(sub=2, ref=2), "substituted rare words"
    assert total.unbiased == Counts(ref=3)
    assert (total.list_words, total.false_alarms) == (1, 1)
    inserted = score_biasing(refs, {"u": "ask zoltan wilma and wilma zebulon now"}).total
    assert inserted.biased == Counts(ins=1, ref=2), "an inserted rare word of this reference"
    assert inserted.unbiased == Counts(ins=1, ref=3), "an inserted distractor costs U-WER"
    assert inserted.list_precision == pytest.approx(2 / 4)


def test_false_alarms_without_rare_words_are_counted_apart() -> None:
    refs = reference("nothing rare here", distractors="zebulon") | {
        "v": BiasingReference(("wilma",), frozenset(["wilma"]), frozenset(["wilma", "zebulon"]))
    }
    total = score_biasing(refs, {"u": "nothing zebulon here", "v": "zebulon"}).total
    assert (total.false_alarms, total.plain_false_alarms, total.plain_words) == (2, 1, 3)


def test_missing_hypotheses_are_deletions_and_are_named() -> None:
    found = score_biasing(reference("one zoltan", "zoltan"), {})
    assert found.missing == ("u",)
    assert (found.total.biased, found.total.unbiased) == (Counts(del_=1, ref=1), Counts(del_=1, ref=1))
    assert "1 utterances without hypothesis: u" in found.to_text()


def test_bad_files_are_named_with_their_line(tmp_path: Path) -> None:
    short = tmp_path / "short.tsv"
    short.write_text('u\ta b\t["a"]\t["a", "c"]\nv\ta b\n')
    with pytest.raises(DataError, match=r"short.tsv:2 has 2 columns"):
        read_references(short)
    short.write_text('u\ta b\t["a"]\t["a", "c"\n')
    with pytest.raises(DataError, match=r"short.tsv:1: .*JSON lists in columns 3 and 4"):
        read_references(short)
    with pytest.raises(DataError, match="does not exist"):
        read_hypotheses(tmp_path / "absent")
    with pytest.raises(DataError, match="no references"):
        score_biasing({}, {})
