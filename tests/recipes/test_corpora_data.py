"""What each corpus makes of its source, on small sources that are made here."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from asr.data.kaldi import Utterance, read_data_dir, read_table
from lm.classes import EntityCatalog
from lm.errors import ConfigError, DataError
from lm.tagged_text import parse
from recipes.corpora import kathleen, librispeech, mini_librispeech, speechocean762
from recipes.corpora.__main__ import main
from recipes.corpora.kaldi_source import by_speaker, write_splits
from recipes.corpora.kathleen import KathleenConfig, tag_names
from recipes.corpora.librispeech import LibrispeechConfig
from recipes.corpora.lists import list_files, read_lists
from recipes.corpora.mini_librispeech import MiniLibrispeechConfig
from recipes.corpora.registry import CORPORA, find_corpus
from recipes.corpora.speechocean762 import SpeechoceanConfig

Rows = list[tuple[str, str, str]]
"""Id, speaker and text."""


def write_audio(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 4000), 16000)


def write_source(folder: Path, splits: dict[str, Rows]) -> Path:
    """A corpus folder with Kaldi-style splits."""
    for split, rows in splits.items():
        tables: dict[str, Iterable[str]] = {
            "wav.scp": [f"{id} audio/{id}.wav" for id, _, _ in rows],
            "text": [f"{id} {text}" for id, _, text in rows],
            "utt2spk": [f"{id} {speaker}" for id, speaker, _ in rows],
            "spk2gender": sorted({f"{speaker} f" for _, speaker, _ in rows}),
        }
        (folder / split).mkdir(parents=True)
        for name, lines in tables.items():
            (folder / split / name).write_text("".join(f"{line}\n" for line in lines))
        for id, _, _ in rows:
            write_audio(folder / "audio" / f"{id}.wav")
    return folder


PLAIN = {
    "train": [("a1", "a", "ONE TWO"), ("b1", "b", "THREE FOUR")],
    "dev": [("c1", "c", "ONE"), ("d1", "d", "TWO"), ("e1", "e", "THREE"), ("e2", "e", "FOUR")],
}


def speakers(data: Path) -> dict[str, set[str]]:
    return {s: {u.speaker for u in read_data_dir(data / s)} for s in ("train", "dev", "test")}


def test_dev_speakers_are_cut_in_turn_and_never_trained_on(tmp_path: Path) -> None:
    source = write_source(tmp_path / "corpus", PLAIN)
    speechocean762.prepare(source, tmp_path / "data", SpeechoceanConfig())
    assert speakers(tmp_path / "data") == {"train": {"a", "b"}, "dev": {"c", "e"}, "test": {"d"}}
    assert read_table(tmp_path / "data" / "test" / "tagged") == {"d1": "TWO"}
    assert (tmp_path / "data" / "lm_text.txt").read_text() == "ONE TWO\nTHREE FOUR\n"


@given(st.lists(st.sampled_from("abcdefg"), min_size=1), st.randoms(use_true_random=False))
def test_a_cut_by_speaker_keeps_everything_and_shares_no_speaker(said_by: list[str], chance: Any) -> None:
    utterances = [Utterance(str(i), Path("x"), "", speaker) for i, speaker in enumerate(said_by)]
    if len(set(said_by)) < 2:
        with pytest.raises(DataError, match="speakers to cut"):
            by_speaker(utterances)
        return
    cut = by_speaker(utterances)
    assert sorted(u.id for part in cut.values() for u in part) == sorted(u.id for u in utterances)
    owners = [{u.speaker for u in cut[name]} for name in ("dev", "test")]
    assert not owners[0] & owners[1]
    assert len(owners[0]) - len(owners[1]) in (0, 1)
    shuffled = chance.sample(utterances, len(utterances))
    assert {u.speaker for u in by_speaker(shuffled)["dev"]} == owners[0]


def test_a_speaker_in_two_splits_is_refused(tmp_path: Path) -> None:
    utterance = Utterance("a", tmp_path / "a", "ONE", "jo", extra={"tagged": "ONE"})
    with pytest.raises(DataError, match="jo speaks in train and in dev"):
        write_splits({"train": [utterance], "dev": [utterance]}, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("lost", "says"),
    [("dev/utt2spk", "has no utt2spk"), ("audio/e1.wav", "e1.wav and 0 other recordings are missing")],
)
def test_what_is_missing_in_a_source_is_named(tmp_path: Path, lost: str, says: str) -> None:
    source = write_source(tmp_path / "corpus", PLAIN)
    (source / lost).unlink()
    with pytest.raises(DataError, match=says):
        speechocean762.prepare(source, tmp_path / "data", SpeechoceanConfig())


RARE = {
    "train": [("a1", "a", "THE CAPYBARA SAW THE OCELOT")],
    "dev": [("c1", "c", "THE LLAMA SAW THE DOG TODAY"), ("d1", "d", "THE DOG SAW THE DOG")],
}


def write_lists(folder: Path, rows: dict[str, list[str]]) -> None:
    lines = [f"{id}\tsome text\t[]\t{json.dumps(words)}\n" for id, words in rows.items()]
    (folder / "mini_librispeech").mkdir(parents=True, exist_ok=True)
    (folder / "mini_librispeech" / "dev.biasing_100.tsv").write_text("".join(lines))
    with gzip.open(folder / "mini_librispeech" / "dev.biasing_500.tsv.gz", "wt") as file:
        file.writelines(line.replace('["', '["more", "') for line in lines)
    (folder / "words").mkdir(exist_ok=True)
    (folder / "words" / "common_words_5k.txt").write_text("the\nsaw\ndog\ntoday\n")


def rare_source(folder: Path) -> Path:
    """Mini LibriSpeech with its lists beside it."""
    write_lists(folder / "biasing_lists", {"c1": ["aardvark", "llama"], "d1": ["gnu"]})
    return write_source(folder / "corpus", RARE)


def entries_by_utterance(data: Path, split: str) -> dict[str, list[str]]:
    lists = read_lists("utterance", data, split)
    assert isinstance(lists, dict)
    return {id: [entry.text for entry in lists[id].classes["rare"].entries] for id in lists}


def test_rare_words_are_entities_and_each_recording_has_its_own_list(tmp_path: Path) -> None:
    data = tmp_path / "data"
    source = rare_source(tmp_path)
    mini_librispeech.prepare(source, data, MiniLibrispeechConfig())
    assert (data / "lm_text.txt").read_text() == "THE <rare>CAPYBARA</rare> SAW THE <rare>OCELOT</rare>\n"
    assert read_table(data / "dev" / "tagged") == {"c1": "THE <rare>LLAMA</rare> SAW THE DOG TODAY"}
    assert entries_by_utterance(data, "dev") == {"c1": ["AARDVARK", "LLAMA"]}
    assert entries_by_utterance(data, "test") == {"d1": ["GNU"]}
    mini_librispeech.prepare(source, data, MiniLibrispeechConfig(distractors=500))
    assert entries_by_utterance(data, "test") == {"d1": ["MORE", "GNU"]}


def test_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = rare_source(tmp_path)
    write_lists(tmp_path / "biasing_lists", {"c1": ["aardvark"], "d1": ["gnu"]})
    with pytest.raises(DataError, match="list of c1 lacks 'LLAMA'"):
        mini_librispeech.prepare(source, tmp_path / "data", MiniLibrispeechConfig())
    (tmp_path / "biasing_lists" / "mini_librispeech" / "dev.biasing_100.tsv").write_text("c1\ttext\n")
    with pytest.raises(DataError, match="id, text, rare words and list"):
        mini_librispeech.prepare(source, tmp_path / "data", MiniLibrispeechConfig())
    (tmp_path / "biasing_lists" / "words" / "common_words_5k.txt").unlink()
    with pytest.raises(DataError, match="put biasing_lists beside"):
        mini_librispeech.prepare(source, tmp_path / "data", MiniLibrispeechConfig())


def write_books(folder: Path, lines: list[str], rows: list[tuple[str, int, int, str]]) -> None:
    folder.mkdir(exist_ok=True)
    with lzma.open(folder / "train.txt.xz", "wt") as file:
        file.writelines(f"{line}\n" for line in lines)
    table = ["title\tsentences\tfirst_line\tsplit", *("\t".join(map(str, row)) for row in rows)]
    (folder / "books.tsv").write_text("\n".join(table) + "\n")


def test_a_book_that_holds_an_evaluation_sentence_is_left_out_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, source = tmp_path / "data", rare_source(tmp_path)
    lines = ["THE FIRST", "THE DOG SAW THE DOG", "A BOOK", "THE DOG SAW", "THE YAK"]
    rows = [("Second", 3, 3, "train"), ("First", 2, 1, "train"), ("Other", 4, 1, "dev")]
    write_books(tmp_path / "books_text", lines, rows)
    mini_librispeech.prepare(source, data, MiniLibrispeechConfig(books=True))
    kept = "<rare>A</rare> <rare>BOOK</rare>\nTHE DOG SAW\nTHE <rare>YAK</rare>\n"
    assert (data / "lm_text.txt").read_text().endswith(f"OCELOT</rare>\n{kept}")
    assert "left out First: it holds 'THE DOG SAW THE DOG'" in capsys.readouterr().out
    write_books(tmp_path / "books_text", lines[:4], rows)
    with pytest.raises(DataError, match="ends before Second"):
        mini_librispeech.prepare(source, data, MiniLibrispeechConfig(books=True))
    (tmp_path / "books_text" / "books.tsv").unlink()
    with pytest.raises(DataError, match="data.books=false"):
        mini_librispeech.prepare(source, data, MiniLibrispeechConfig(books=True))


def test_inputs_are_what_is_read(tmp_path: Path) -> None:
    source = rare_source(tmp_path)
    inputs = CORPORA["mini_librispeech"].inputs
    assert all(path.exists() for path in inputs(source, MiniLibrispeechConfig(distractors=500)))
    more = set(inputs(source, MiniLibrispeechConfig(books=True))) - set(
        inputs(source, MiniLibrispeechConfig())
    )
    assert {path.name for path in more} == {"train.txt.xz", "books.tsv"}


def write_librispeech(folder: Path, part: str, speaker: int, text: str) -> None:
    chapter = folder / part / str(speaker) / "7"
    write_audio(chapter / f"{speaker}-7-0000.flac")
    (chapter / f"{speaker}-7.trans.txt").write_text(f"{speaker}-7-0000 {text}\n")


def test_librispeech_parts_that_are_there_are_read(tmp_path: Path) -> None:
    for part, speaker, text in (("train-clean-5", 1, "ONE TWO"), ("dev-clean-2", 2, "THREE"),
                                ("dev-clean-2", 3, "FOUR")):  # fmt: skip
        write_librispeech(tmp_path / "LibriSpeech", part, speaker, text)
    for source in (tmp_path, tmp_path / "LibriSpeech"):
        librispeech.prepare(source, tmp_path / "data", LibrispeechConfig())
        assert speakers(tmp_path / "data") == {"train": {"1"}, "dev": {"2"}, "test": {"3"}}
    (found,) = read_data_dir(tmp_path / "data" / "test")
    assert (found.text, found.extra["tagged"]) == ("FOUR", "FOUR")
    assert found.audio.is_file()
    write_librispeech(tmp_path / "LibriSpeech", "test-clean", 4, "FIVE")
    librispeech.prepare(tmp_path, tmp_path / "data", LibrispeechConfig(test=("test-clean",)))
    assert speakers(tmp_path / "data") == {"train": {"1"}, "dev": {"2", "3"}, "test": {"4"}}


def test_a_download_that_fails_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def no_network(url: str, **_: Any) -> None:
        asked.append(url)
        raise OSError("name or service\nnot known")

    monkeypatch.setattr("lhotse.recipes.librispeech.resumable_download", no_network)
    write_librispeech(tmp_path / "LibriSpeech", "train-clean-5", 1, "ONE TWO")
    with pytest.raises(DataError, match="dev-clean-2 cannot be downloaded .*openslr.org") as told:
        librispeech.prepare(tmp_path, tmp_path / "data", LibrispeechConfig())
    assert "\n" not in str(told.value)
    assert [url.rsplit("/", 1)[1] for url in asked] == ["dev-clean-2.tar.gz"], "what is there is not fetched"
    with pytest.raises(DataError, match="has no dev-clean-2"):
        librispeech.prepare(tmp_path, tmp_path / "data", LibrispeechConfig(download=False))
    assert len(asked) == 1


def kathleen_source(folder: Path) -> Path:
    source = write_source(
        folder / "corpus", {"dev": [("k1", "k", "NOT HERE TOM SAID JO ANN"), ("k2", "k", "NO")]}
    )
    names = [{"norm": "TOM"}, {"norm": "JO ANN"}]
    (source / "dev" / "entities.jsonl").write_text(json.dumps({"id": "k1", "entities": names}) + "\n")
    return source


def test_kathleen_is_a_test_set_with_names(tmp_path: Path) -> None:
    source, data = kathleen_source(tmp_path), tmp_path / "data"
    kathleen.prepare(source, data, KathleenConfig(class_name="name"))
    tagged = read_table(data / "test" / "tagged")
    assert tagged == {"k1": "NOT HERE <name>TOM</name> SAID <name>JO ANN</name>", "k2": "NO"}
    catalog = EntityCatalog.load(data / "entities.yaml")
    assert [e.text for e in catalog.classes["name"].entries] == ["JO ANN", "TOM"]
    (source / "dev" / "entities.jsonl").write_text('{"id": "k1"}\n')
    with pytest.raises(DataError, match="list of names"):
        kathleen.prepare(source, data, KathleenConfig())


WORD = st.sampled_from(["A", "B", "C"])


@given(st.lists(st.tuples(st.booleans(), st.lists(WORD, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_names_are_found_in_order(parts: list[tuple[bool, list[str]]]) -> None:
    text = " ".join(word for _, words in parts for word in words)
    names = [" ".join(words) for is_name, words in parts if is_name]
    tagged = tag_names(text, names, "name")
    assert tagged.surface == text
    assert [found for _, found, _, _ in tagged.entities] == names
    with pytest.raises(DataError, match="in it"):
        tag_names(text, [*names, "D"], "name")


def test_the_registry(tmp_path: Path) -> None:
    assert all(name == corpus.name for name, corpus in CORPORA.items())
    assert {name for name, corpus in CORPORA.items() if "train" not in corpus.splits} == {"kathleen"}
    for corpus in CORPORA.values():
        corpus.settings({})
        assert not corpus.classes or corpus.lists != "none"
        assert len(list_files(corpus.lists, tmp_path, "dev")) == (corpus.lists != "none")
    with pytest.raises(ConfigError, match="corpus = 'an5'.*did you mean 'an4'"):
        find_corpus("an5")


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["recipes.corpora", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_data_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(kathleen_source(tmp_path)), tmp_path / "data"
    assert (
        call(monkeypatch, "kathleen", "--corpus", source, "--out", str(out), "--set", "class_name=who") == 0
    )
    assert list(EntityCatalog.load(out / "entities.yaml").classes) == ["who"]
    assert parse(read_table(out / "test" / "tagged")["k1"]).entities[0][0] == "who"
    capsys.readouterr()
    assert call(monkeypatch, "kathleen", "--out", str(out)) == 2
    assert "--corpus DIR" in capsys.readouterr().err
    assert call(monkeypatch, "kathleen", "--corpus", str(tmp_path), "--out", str(out)) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.corpora
def test_the_real_corpora(corpora: Path, tmp_path: Path) -> None:
    sizes = {}
    for name in ("mini_librispeech", "speechocean762", "kathleen"):
        find_corpus(name).prepare(corpora / name, tmp_path / name, find_corpus(name).settings({}))
        splits = find_corpus(name).splits
        sizes[name] = [len(read_table(tmp_path / name / split / "tagged")) for split in splits]
    assert sizes == {
        "mini_librispeech": [1266, 50, 46],
        "speechocean762": [2500, 640, 620],
        "kathleen": [814],
    }
    data = tmp_path / "mini_librispeech"
    assert speakers(data)["dev"] == {"1737", "669"}
    assert speakers(data)["test"] == {"32", "7312"}
    tagged = [parse(t) for split in ("dev", "test") for t in read_table(data / split / "tagged").values()]
    assert sum(len(t.entities) for t in tagged) == 321, "rare words as published"
