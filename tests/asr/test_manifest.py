from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from asr.data.kaldi import Utterance, read_data_dir
from asr.data.manifest import load_cuts, save_cuts, to_cuts
from lm.errors import DataError


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    sf.write(path, np.random.default_rng(0).standard_normal(22050 * 2) * 0.1, 22050)
    return path


def test_a_cut_says_all_that_the_utterance_did(wav: Path, tmp_path: Path) -> None:
    extra = {"tagged": "CALL <contact>ANN</contact>", "field": "x"}
    items = [
        Utterance("whole", wav, "CALL ANN", "s1", extra=extra),
        Utterance("part", wav, "", "s2", 0.5, 1.25),
        Utterance("rest", wav, "REST", "s2", 0.5),
    ]
    cuts, problems = to_cuts(items)
    assert problems == []
    save_cuts(cuts, tmp_path / "data" / "cuts.jsonl.gz")
    whole, part, rest = load_cuts(tmp_path / "data" / "cuts.jsonl.gz")
    assert (whole.id, whole.start, whole.duration, whole.sampling_rate) == ("whole", 0.0, 2.0, 22050)
    assert whole.recording.sources[0].source == str(wav)
    (supervision,) = whole.supervisions
    assert (supervision.text, supervision.speaker, supervision.duration) == ("CALL ANN", "s1", 2.0)
    assert supervision.custom == extra
    assert (part.start, part.duration, part.supervisions[0].text) == (0.5, 0.75, "")
    assert (rest.start, rest.duration) == (0.5, 1.5)


def test_lhotse_reads_the_audio_of_a_cut(wav: Path) -> None:
    stereo = wav.with_name("b.wav")
    sf.write(stereo, np.stack([np.full(8000, 0.25), np.full(8000, -0.5)], 1), 16000)
    cuts, _ = to_cuts([Utterance("a", wav, "", "s", 0.5, 1.0), Utterance("b", stereo, "", "s")])
    one, two = cuts
    assert one.load_audio().shape == (1, 11025)
    np.testing.assert_allclose(two.load_audio()[:, 0], [0.25, -0.5])


def test_bad_recordings_are_reported_and_the_rest_is_done(wav: Path, tmp_path: Path) -> None:
    empty, junk, cut_off = tmp_path / "empty.wav", tmp_path / "junk.wav", tmp_path / "cut.flac"
    empty.touch()
    junk.write_bytes(b"not audio" * 100)
    sf.write(cut_off, np.random.default_rng(0).standard_normal(64000) * 0.1, 16000)
    cut_off.write_bytes(cut_off.read_bytes()[:30000])
    items = [
        Utterance("missing", tmp_path / "no.wav", "", "s"),
        Utterance("good", wav, "", "s"),
        Utterance("empty", empty, "", "s"),
        Utterance("junk", junk, "", "s"),
        Utterance("cut", cut_off, "", "s"),
        Utterance("after", wav, "", "s", 1.5, 2.5),
        Utterance("short", wav, "", "s", 1.5, 1.51),
        Utterance("rounded", wav, "", "s", 1.5, 2.01),
    ]
    cuts, problems = to_cuts(items)
    assert [cut.id for cut in cuts] == ["good", "rounded"]
    assert [cut.end for cut in cuts] == [2.0, 2.0]
    assert [problem.id for problem in problems] == ["missing", "empty", "junk", "cut", "after", "short"]
    for problem, words in zip(
        problems,
        ["does not exist", "0 bytes", "not audio", "cut short", "1.5 s to 2.5 s", "25 ms"],
        strict=True,
    ):
        assert words in str(problem.error)


def test_an_id_twice(wav: Path) -> None:
    with pytest.raises(DataError, match="'a' a second time"):
        to_cuts([Utterance("a", wav, "", "s"), Utterance("a", wav, "", "s", 1.0)])


def test_manifests_that_cannot_be_loaded(wav: Path, tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    with pytest.raises(DataError, match="does not exist"):
        load_cuts(path)
    for content in (b"", b"no gzip", gzip.compress(b""), gzip.compress(b"{]"), gzip.compress(b'{"id": 1}\n')):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged, empty or not a manifest"):
            load_cuts(path)
    cuts, _ = to_cuts([Utterance(str(i), wav, "", "s") for i in range(50)])
    with pytest.raises(DataError, match="a name like"):
        save_cuts(cuts, tmp_path / "cuts.json")
    save_cuts(cuts, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged"):
        load_cuts(path)


@pytest.mark.corpora
def test_real_corpus(corpora: Path, tmp_path: Path) -> None:
    items = read_data_dir(corpora / "an4" / "test", corpora / "an4")
    cuts, problems = to_cuts(items)
    assert problems == []
    save_cuts(cuts, tmp_path / "cuts.jsonl.gz")
    loaded = list(load_cuts(tmp_path / "cuts.jsonl.gz"))
    assert [cut.id for cut in loaded] == [item.id for item in items]
    assert sum(cut.duration for cut in loaded) / 3600 == pytest.approx(0.099, abs=0.001)
    assert loaded[0].supervisions[0].custom["field"] == "other"
