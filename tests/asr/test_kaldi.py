from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.data.kaldi import Utterance, read_data_dir, read_table, read_wav_scp, write_data_dir
from lm.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "wav.scp").write_text("b audio/b.flac\na /else where/a.wav\n")
    (tmp_path / "text").write_text("a HELLO  WORLD\nb\n")
    (tmp_path / "utt2spk").write_text("a anna\nb bert\n")
    return tmp_path


def test_reads_the_tables(data: Path) -> None:
    (data / "utt2field").write_text("b street name\n")
    (data / "tagged").write_text("a HELLO <contact>WORLD</contact>\n")
    assert read_data_dir(data, Path("/corpus")) == [
        Utterance("b", Path("/corpus/audio/b.flac"), "", "bert", extra={"field": "street name"}),
        Utterance(
            "a",
            Path("/else where/a.wav"),
            "HELLO  WORLD",
            "anna",
            extra={"tagged": "HELLO <contact>WORLD</contact>"},
        ),
    ]


def test_paths_begin_where_the_program_runs_unless_told(data: Path) -> None:
    assert read_data_dir(data)[0].audio == Path("audio/b.flac")


def test_reads_segments(data: Path) -> None:
    (data / "segments").write_text("u1 a 0.50 1.25\nu2 a 1.25 -1\nu3 b 0 2\n")
    (data / "text").write_text("u1 ONE\nu2 TWO\nu3 THREE\n")
    (data / "utt2spk").write_text("u1 s\nu2 s\nu3 s\n")
    found = [(u.id, u.audio.name, u.start_s, u.end_s) for u in read_data_dir(data)]
    assert found == [("u1", "a.wav", 0.5, 1.25), ("u2", "a.wav", 1.25, None), ("u3", "b.flac", 0.0, 2.0)]


def test_windows_lines_tabs_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\tX\xc2\x85Y\r\n\r\nb  Z \r\n")
    assert read_table(tmp_path / "text") == {"a": "X\x85Y", "b": "Z"}


@pytest.mark.parametrize("command", ["sox a.wav -t wav - |", "| rm -rf /", "touch {marker}; cat a.wav |"])
def test_commands_are_refused_and_never_run(data: Path, command: str) -> None:
    marker = data / "ran"
    (data / "wav.scp").write_text(f"a {command.format(marker=marker)}\nb b.wav\n")
    with pytest.raises(DataError, match="commands are not run"):
        read_data_dir(data)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["wav.scp", "text", "utt2spk"])
def test_missing_table(data: Path, name: str) -> None:
    (data / name).unlink()
    with pytest.raises(DataError, match=f"{name} does not exist"):
        read_data_dir(data)


def test_text_may_be_missing_if_not_needed(data: Path) -> None:
    (data / "text").unlink()
    assert [u.text for u in read_data_dir(data, need_text=False)] == ["", ""]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text", "a A\nb B\nc C\nd D\n", ["2 ids without audio", "'c'", "wav.scp"]),
        ("text", "a A\n", ["1 ids not in", "'b'"]),
        ("text", "a A\nb B\na A\n", ["text:3", "'a' a second time"]),
        ("utt2spk", "a anna\n\nb\n", ["utt2spk:3", "'id value'"]),
        ("utt2spk", "a anna\nb bert\nc carl\n", ["'c'", "without audio"]),
        ("wav.scp", "a a.wav\nb\n", ["wav.scp:2"]),
        ("wav.scp", "", ["is empty"]),
        ("utt2age", "a 7\nz 9\n", ["utt2age", "'z'"]),
        ("utt2age", "a\n", ["utt2age:1"]),
        ("segments", "a a 0.5\nb b 0 1\n", ["segments:1", "start end"]),
        ("segments", "a a 0 1\nb b 2 1\n", ["segments:2"]),
        ("segments", "a a 0 1\nb b -1 1\n", ["segments:2"]),
        ("segments", "a a 0 nan\nb b 0 1\n", ["segments:1"]),
        ("segments", "a a 0 1 2\nb b 0 1\n", ["segments:1"]),
        ("segments", "a a zero 1\nb b 0 1\n", ["segments:1"]),
        ("segments", "a x 0 1\nb b 0 1\n", ["'x'", "wav.scp"]),
        ("segments", "a a 0 1\n", ["segments", "'b'"]),
    ],
)
def test_bad_tables_name_the_file_and_line(data: Path, name: str, content: str, words: list[str]) -> None:
    (data / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read_data_dir(data)
    for word in words:
        assert word in str(caught.value)


def test_not_text(data: Path) -> None:
    (data / "text").write_bytes(b"a \xff\xfe\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_data_dir(data)


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
texts = st.lists(words, max_size=4).map(" ".join)
times = st.floats(0, 100, allow_nan=False)
parts = st.one_of(
    st.just((0.0, None)),
    times.map(lambda start: (start, None)),
    st.tuples(times, st.floats(0.025, 50)).map(lambda pair: (pair[0], pair[0] + pair[1])),
)
utterances = st.builds(
    lambda id, stem, text, speaker, part, extra: Utterance(
        id, Path("/c/audio") / f"{stem}.wav", text, speaker, *part, extra
    ),
    words,
    st.sampled_from(["a", "b", "sub/a"]),
    texts,
    words,
    parts,
    st.dictionaries(st.sampled_from(["tagged", "field", "age"]), words, max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(utterances, min_size=1, max_size=5, unique_by=lambda u: u.id))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, items: list[Utterance]
) -> None:
    folder = tmp_path_factory.mktemp("data")
    write_data_dir(items, folder, Path("/c"))
    assert all("/c/" not in str(path) for path in read_wav_scp(folder / "wav.scp").values())
    read = read_data_dir(folder, Path("/c"))
    assert sorted(read, key=lambda u: u.id) == sorted(items, key=lambda u: u.id)
    ids = [line.split(b" ")[0] for line in (folder / "text").read_bytes().splitlines()]
    assert ids == sorted(ids)


def test_writing_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    write_data_dir([Utterance("a", Path("a.wav"), "A", "s", 1.0, 2.0, {"age": "7"})], tmp_path)
    plain = Utterance("a", Path("a.wav"), "A", "s")
    write_data_dir([plain], tmp_path)
    assert read_data_dir(tmp_path) == [plain]


@pytest.mark.parametrize(
    "item",
    [
        Utterance("a b", Path("a.wav"), "A", "s"),
        Utterance("", Path("a.wav"), "A", "s"),
        Utterance("a", Path("a.wav"), "A\nb B", "s"),
        Utterance("a", Path("a.wav"), "A", ""),
        Utterance("a", Path("a.wav"), "A", "s", extra={"age": ""}),
        Utterance("a", Path("a.wav"), "A", "s", extra={"spk": "t"}),
        Utterance("a", Path("a.wav"), "A", "s", extra={"../x": "t"}),
    ],
)
def test_what_no_table_can_hold_is_not_written(tmp_path: Path, item: Utterance) -> None:
    with pytest.raises(DataError):
        write_data_dir([item], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_id_twice_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="second time"):
        write_data_dir([Utterance("a", Path("a.wav"), "A", "s")] * 2, tmp_path)


@pytest.mark.corpora
@pytest.mark.parametrize(
    ("split", "count"),
    [("an4/train", 948), ("an4/test", 130), ("mini_librispeech/dev", 96), ("kathleen/dev", 814)],
)
def test_real_corpora(corpora: Path, split: str, count: int) -> None:
    root = corpora / split.split("/")[0]
    found = read_data_dir(corpora / split, root)
    assert len(found) == count
    assert all(u.text and u.audio.is_file() for u in found)
    if split == "an4/test":
        first = found[0]
        assert (first.id, first.text, first.speaker) == ("an391-mjwl-b", "ENTER TWO NINE EIGHT ONE", "mjwl")
        assert {u.extra["field"] for u in found} >= {"surname", "city", "zip", "phone", "birth_date"}


@pytest.mark.corpora
def test_real_corpus_without_text(corpora: Path) -> None:
    root = corpora / "speech_to_intent"
    found = read_data_dir(root / "dev", root, need_text=False)
    assert len(found) == 310
    assert {u.extra["intent"] for u in found} == {"orderDrink"}
