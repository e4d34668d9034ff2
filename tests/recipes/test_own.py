"""Your own recordings as a corpus: Kaldi-style folders and lhotse manifests of noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr.data.kaldi import Utterance, read_data_dir, read_table
from asr.data.manifest import load_cuts, save_cuts, to_cuts
from asr.recordings import AudioPart
from lm.classes import EntityCatalog
from lm.config import build_config, merge
from lm.errors import ConfigError, DataError
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig
from recipes.corpora import own
from recipes.corpora.own import OwnConfig, hold_out
from recipes.corpora.registry import find_corpus
from recipes.evaluate import audio_of
from recipes.train import Layout

SAID = {
    "train": {
        "a-1": "CALL <contact>ANN LEE</contact> NOW",
        "a-2": "ONE TWO",
        "b-1": "CALL <contact>BO</contact>",
    },
    "dev": {"c-1": "CALL <contact>ANN LEE</contact>", "c-2": "TWO"},
    "test": {"d-1": "ONE <contact>BO</contact> ONE TWO"},
}
CLASSES = OwnConfig(classes=("contact",), lists="corpus")


def plain(tagged: str) -> str:
    return tagged.replace("<contact>", "").replace("</contact>", "")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "audio").mkdir(parents=True)
    for split, said in SAID.items():
        (folder / split).mkdir()
        for id in said:
            soundfile.write(
                folder / "audio" / f"{id}.wav", np.random.default_rng(0).normal(0, 0.1, 24000), 16000
            )
        tables = {
            "wav.scp": {id: f"audio/{id}.wav" for id in said},
            "text": {id: plain(text) for id, text in said.items()},
            "utt2spk": {id: id[0] for id in said},
            "tagged": said,
        }
        for name, table in tables.items():
            write(folder / split / name, table)
    (folder / "entities.yaml").write_text("contact: [ANN LEE, BO, CY]\n")
    return folder


def write(path: Path, table: dict[str, str]) -> None:
    path.write_text("".join(f"{id} {value}\n" for id, value in table.items()))


def test_folders_with_tags_and_one_list(corpus: Path, tmp_path: Path) -> None:
    own.prepare(corpus, tmp_path / "data", CLASSES)
    for split, said in SAID.items():
        assert read_table(tmp_path / "data" / split / "tagged") == said
        found = read_data_dir(tmp_path / "data" / split)
        assert [u.audio for u in found] == [corpus / "audio" / f"{id}.wav" for id in sorted(said)]
    assert (tmp_path / "data" / "lm_text.txt").read_text().splitlines() == list(SAID["train"].values())
    for name in ("entities.yaml", "dev_entities.yaml"):
        assert len(EntityCatalog.load(tmp_path / "data" / name).classes["contact"].entries) == 3


def test_manifests_give_what_folders_give(corpus: Path, tmp_path: Path) -> None:
    own.prepare(corpus, tmp_path / "one", CLASSES)
    for split in SAID:
        cuts, _ = to_cuts(read_data_dir(corpus / split, root=corpus))
        save_cuts(cuts, corpus / f"{split}.jsonl.gz")
        shutil.rmtree(corpus / split)
    own.prepare(corpus, tmp_path / "other", CLASSES)
    for split in SAID:
        for name in ("wav.scp", "text", "utt2spk", "tagged"):
            tables = [read_table(tmp_path / data / split / name) for data in ("one", "other")]
            assert tables[0] == tables[1]


def test_parts_of_recordings(corpus: Path, tmp_path: Path) -> None:
    write(corpus / "train" / "segments", {id: f"{id} 0.25 1.0" for id in SAID["train"]})
    own.prepare(corpus, tmp_path / "one", CLASSES)
    cuts, _ = to_cuts(read_data_dir(tmp_path / "one" / "train"))
    shutil.rmtree(corpus / "train")
    save_cuts(cuts, corpus / "train.jsonl.gz")
    own.prepare(corpus, tmp_path / "other", CLASSES)
    for data in ("one", "other"):
        assert {(u.start_s, u.end_s) for u in read_data_dir(tmp_path / data / "train")} == {(0.25, 1.0)}


def test_parts_of_recordings_are_what_is_decoded(corpus: Path, tmp_path: Path) -> None:
    write(corpus / "test" / "wav.scp", {"call": "audio/d-1.wav"})
    write(corpus / "test" / "segments", {"d-1": "call 0.25 1.0"})
    own.prepare(corpus, tmp_path / "data", CLASSES)
    folder = Layout(tmp_path)
    for split in ("dev", "test"):
        cuts, _ = to_cuts(read_data_dir(tmp_path / "data" / split))
        save_cuts(cuts, folder.cuts(split))
    wav = corpus / "audio" / "d-1.wav"
    assert audio_of(folder, "test") == {"d-1": AudioPart(wav, 0.25, 1.0)}
    whole = {id: AudioPart(corpus / "audio" / f"{id}.wav") for id in SAID["dev"]}
    assert audio_of(folder, "dev") == whole


def test_a_list_for_each_recording_and_more_text(corpus: Path, tmp_path: Path) -> None:
    for split, name in (("test", "utterance_entities.jsonl"), ("dev", "dev_utterance_entities.jsonl")):
        rows = [json.dumps({"id": id, "entities": {"contact": ["BO", "ANN LEE"]}}) for id in SAID[split]]
        (corpus / name).write_text("\n".join(rows))
    (corpus / "more.txt").write_text("RING <contact>CY</contact>\n\nTHREE FOUR\n")
    config = OwnConfig(classes=("contact",), lists="utterance", lm_text=Path("more.txt"))
    own.prepare(corpus, tmp_path / "data", config)
    assert (tmp_path / "data" / "utterance_entities.jsonl").is_file()
    lines = (tmp_path / "data" / "lm_text.txt").read_text().splitlines()
    assert lines == [*SAID["train"].values(), "RING <contact>CY</contact>", "THREE FOUR"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: shutil.rmtree(c / "dev"), "has no dev; .*data.held_out=0.1"),
        (lambda c: (c / "test" / "text").unlink(), "has no text"),
        (lambda c: (c / "audio" / "c-1.wav").unlink(), "c-1.wav and 0 other recordings are missing"),
        (lambda c: (c / "entities.yaml").unlink(), "has no entities.yaml"),
        (lambda c: (c / "entities.yaml").write_text("city: [ULM]"), "has class 'city'.*data.classes"),
        (
            lambda c: write(c / "test" / "tagged", {"d-1": "TWO"}),
            "d-1: tagged text 'TWO', text 'ONE BO ONE TWO'",
        ),
        (lambda c: write(c / "test" / "tagged", {"d-1": "ONE <who>BO</who> ONE TWO"}), "d-1 has class 'who'"),
        (lambda c: write(c / "test" / "tagged", {"d-1": "ONE <contact>BO ONE TWO"}), "d-1: "),
        (lambda c: (c / "more.txt").write_text("ONE BO ONE TWO\n"), "1 of 1 test sentences stand in"),
        (lambda c: (c / "more.txt").write_text("GO\nIN <city>ULM</city>\n"), "more.txt:2 has class 'city'"),
    ],
)
def test_what_is_wrong_is_named(corpus: Path, tmp_path: Path, change: Any, says: str) -> None:
    change(corpus)
    text = Path("more.txt") if (corpus / "more.txt").exists() else None
    with pytest.raises(DataError, match=says):
        own.prepare(corpus, tmp_path / "data", CLASSES.model_copy(update={"lm_text": text}))


def test_an_utterance_belongs_to_one_split(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="a-1 is in train and in test"):
        own.prepare(corpus, tmp_path / "data", OwnConfig(classes=("contact",), test="train"))
    write(corpus / "test" / "utt2spk", {"d-1": "a"})
    write(corpus / "train" / "text", {"a-1": "CALL ANN LEE NOW", "a-2": "ONE BO ONE TWO", "b-1": "CALL BO"})
    write(corpus / "train" / "tagged", {"a-1": "CALL ANN LEE NOW"})
    own.prepare(corpus, tmp_path / "data", CLASSES)
    printed = capsys.readouterr().out
    assert "1 speakers of test speak in train too, such as a" in printed
    assert "1 of 1 longer test sentences are said in train too" in printed


def test_cuts_that_are_no_part_of_a_file_are_refused(corpus: Path, tmp_path: Path) -> None:
    cuts, _ = to_cuts(read_data_dir(corpus / "train", root=corpus))
    shutil.rmtree(corpus / "train")
    for wrong in (cuts.pad(duration=5.0), cuts.drop_supervisions(), cuts.perturb_speed(1.1)):
        save_cuts(wrong.to_eager(), corpus / "train.jsonl.gz")
        with pytest.raises(DataError, match=r"train.jsonl.gz: cut .*trim_to_supervisions"):
            own.prepare(corpus, tmp_path / "data", CLASSES)
    assert len(load_cuts(corpus / "train.jsonl.gz")) == 3


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from("xyz"), min_size=2),
    st.floats(0.01, 0.5),
)
def test_what_is_held_out(speakers: dict[str, str], share: float) -> None:
    utterances = [Utterance(id, Path("a.wav"), "", speaker) for id, speaker in speakers.items()]
    kept, held = hold_out(utterances, share)
    assert sorted(u.id for u in (*kept, *held)) == sorted(speakers)
    assert kept
    assert held
    if len(set(speakers.values())) > 1:
        assert not {u.speaker for u in kept} & {u.speaker for u in held}
    shuffled = hold_out(utterances[::-1], share)
    assert {u.id for u in shuffled[1]} == {u.id for u in held}


def test_one_utterance_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="1 utterances to train on"):
        hold_out([Utterance("a", Path("a.wav"), "", "s")], 0.1)


VALUES: dict[str, Any] = {
    "corpus": "own",
    "data": {"classes": ["contact"], "lists": "corpus"},
    "tokenizer": {"vocab_size": 24},
    "model": {
        "encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
        "predictor": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
        "blank_width": 8,
    },
    "training": {
        "epochs": 1,
        "batch_s": 30.0,
        "average": 1,
        "speeds": [1.0],
        "threads": 1,
        "precision": "fp32",
    },
    "systems": [
        {"name": "FNT", "decoding": {"biasing": "none"}},
        {"name": "C-FNT", "decoding": {"biasing": "classes"}},
    ],
}


def test_the_whole_road(corpus: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    asr_recipe(build_config(RecipeConfig, VALUES, "here"), work, corpus).run()
    from lm.tokenizer import Tokenizer

    assert Tokenizer.load(work / "tokenizer.model").classes == ("contact",)
    figures = json.loads((work / "RESULTS.json").read_text())
    assert list(figures) == ["FNT", "C-FNT"]
    assert figures["C-FNT"]["false_alarms"] is not None
    without = merge(VALUES, {"data": {"lists": "none"}})
    with pytest.raises(ConfigError, match="no entity lists.*set data.lists"):
        asr_recipe(build_config(RecipeConfig, without, "here"), work, corpus)


def test_only_its_settings_say_what_it_has() -> None:
    assert find_corpus("own").of({"classes": ["a", "b"], "lists": "utterance"}).classes == ("a", "b")
    assert find_corpus("an4").of({}) is find_corpus("an4")
    with pytest.raises(ConfigError, match="did you mean 'lists'"):
        find_corpus("own").of({"list": "corpus"})
