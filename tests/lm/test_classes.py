"""Entity lists: every format reads alike, every mistake is told with its line, and order never shows."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.classes import EncodedClass, EntityCatalog, EntityEntry, encode_catalog
from lm.errors import EntityListError
from lm.tokenizer import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TOKENIZER = Tokenizer.train([f"{ALPHABET} john smith o'neil mary"] * 3, 50, ["song", "contact"], "bpe")

FORM = st.text("aAbé7 ", min_size=1, max_size=4).filter(str.strip)
ENTRY = st.builds(
    EntityEntry,
    FORM,
    st.lists(FORM, max_size=3).map(tuple),
    st.floats(0.1, 9.0),
    st.none() | st.sampled_from(["1", "2"]),
)
LISTS = st.dictionaries(st.sampled_from(["song", "contact"]), st.lists(ENTRY, min_size=1, max_size=6))


def entries(catalog: EntityCatalog, name: str) -> list[EntityEntry]:
    return list(catalog.classes[name].entries)


def sequences(encoded: EncodedClass) -> list[list[int]]:
    return [part.tolist() for part in np.split(encoded.tokens, encoded.offsets[1:-1])]


def test_entries_default_to_their_own_text() -> None:
    entry = EntityEntry("  John   Smith ")
    assert entry == EntityEntry("John Smith", ("John Smith",), 1.0, None)
    assert EntityEntry("A", ("b  c", "b c", " ", "d")).spoken == ("b c", "d")
    assert EntityEntry("A", (" ",)).spoken == ("A",)


def test_mapping() -> None:
    catalog = EntityCatalog.from_mapping(
        {
            "contact": ["John", {"text": "Mary", "spoken": ["mary", "marie"], "weight": 2, "id": 7}],
            "song": [EntityEntry("1984"), {"text": "X", "spoken": "ex"}],
        }
    )
    assert entries(catalog, "contact") == [
        EntityEntry("John"),
        EntityEntry("Mary", ("mary", "marie"), 2.0, "7"),
    ]
    assert entries(catalog, "song") == [EntityEntry("1984"), EntityEntry("X", ("ex",))]
    assert len(catalog) == 4


def test_empty_catalogs_are_false_and_alike() -> None:
    assert not EntityCatalog.empty()
    assert EntityCatalog.from_mapping({"song": ["a"]})
    assert EntityCatalog.from_mapping({}).fingerprint() == EntityCatalog.empty().fingerprint()
    assert EntityCatalog.empty().merge().fingerprint() == EntityCatalog.empty().fingerprint()
    encoded = encode_catalog(EntityCatalog.empty(), TOKENIZER)
    assert encoded.classes == ()
    assert encoded.report.summary() == "0 entries in 0 classes: none"
    assert list(encoded.report.rows()) == []


def test_only_entries_that_agree_are_merged() -> None:
    catalog = EntityCatalog.from_mapping(
        {
            "contact": [
                {"text": "Jo", "spoken": ["a", "b"], "weight": 2},
                {"text": "Jo", "spoken": ["b", "a"], "weight": 3},
                {"text": "Jo", "spoken": ["a", "b"], "id": "x"},
                {"text": "Jo", "spoken": ["a"]},
                {"text": "jo", "spoken": ["a", "b"]},
            ]
        }
    )
    assert [entry.weight for entry in entries(catalog, "contact")] == [5.0, 1.0, 1.0, 1.0]
    other = EntityCatalog.from_mapping(
        {"contact": [{"text": "Jo", "spoken": ["a"], "weight": 4}], "song": ["S"]}
    )
    merged = catalog.merge(other)
    assert [entry.weight for entry in entries(merged, "contact")] == [5.0, 1.0, 5.0, 1.0]
    assert entries(merged, "song") == [EntityEntry("S")]
    assert [entry.weight for entry in entries(catalog.merge(catalog), "contact")] == [10.0, 2.0, 2.0, 2.0]
    assert len(catalog) == 4


@settings(max_examples=60, deadline=None)
@given(LISTS, st.randoms(use_true_random=False))
def test_order_never_shows(lists: dict[str, list[EntityEntry]], draw: random.Random) -> None:
    shuffled = {}
    for name in draw.sample(list(lists), len(lists)):
        mixed = [
            EntityEntry(e.text, tuple(draw.sample(e.spoken, len(e.spoken))), e.weight, e.id)
            for e in lists[name]
        ]
        shuffled[name] = draw.sample(mixed, len(mixed))
    one, two = EntityCatalog.from_mapping(lists), EntityCatalog.from_mapping(shuffled)
    assert one.fingerprint() == two.fingerprint()
    assert dict(one.canonical().classes) == dict(two.canonical().classes)
    assert list(one.canonical().classes) == sorted(lists)
    assert one.canonical().fingerprint() == one.fingerprint()


def test_every_difference_changes_the_fingerprint() -> None:
    variants = [
        {"a": ["x"]},
        {"b": ["x"]},
        {"a": ["y"]},
        {"a": ["x", "y"]},
        {"a": ["x"], "b": ["y"]},
        {"a": [{"text": "x", "spoken": ["z"]}]},
        {"a": [{"text": "x", "weight": 2}]},
        {"a": [{"text": "x", "id": "1"}]},
        {"a": [{"text": "x", "id": ""}]},
    ]
    assert len({EntityCatalog.from_mapping(variant).fingerprint() for variant in variants}) == len(variants)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "contact.csv").write_text(
        '\ufefftext,weight,spoken,id\r\n"Smith, J",2,jay smith|john smith,7\r\nMary,,,\r\n\r\n',
        encoding="utf-8",
    )
    smith = {
        "class": "contact",
        "text": "Smith, J",
        "weight": 2,
        "spoken": ["jay smith", "john smith"],
        "id": 7,
    }
    mary = {"class": "contact", "text": "Mary"}
    (tmp_path / "all.jsonl").write_text(f"{json.dumps(smith)}\n\n{json.dumps(mary)}\n")
    (tmp_path / "all.yaml").write_text(
        'contact:\n- text: "Smith, J"\n  weight: 2\n  spoken: [jay smith, john smith]\n  id: 7\n- Mary\n'
    )
    (tmp_path / "with_class.csv").write_text(
        'class,text,weight,spoken,id\ncontact,Mary,,,\ncontact,"Smith, J",2,jay smith|john smith,7\n'
    )
    expected = EntityCatalog.from_mapping(
        {
            "contact": [
                {"text": "Smith, J", "weight": 2, "spoken": ["jay smith", "john smith"], "id": "7"},
                "Mary",
            ]
        }
    )
    for name in ("contact.csv", "all.jsonl", "all.yaml", "with_class.csv"):
        assert EntityCatalog.load(tmp_path / name).fingerprint() == expected.fingerprint(), name
        assert EntityCatalog.load(tmp_path / name, "contact").fingerprint() == expected.fingerprint(), name


def test_plain_lists(tmp_path: Path) -> None:
    path = tmp_path / "song.txt"
    path.write_bytes(b"# my songs\r\nYesterday\r\n\r\n  # none\r\n Song #2 \r\nYesterday\r\n")
    assert entries(EntityCatalog.load(path), "song") == [
        EntityEntry("Yesterday", weight=2.0),
        EntityEntry("Song #2"),
    ]
    assert list(EntityCatalog.load(path, "contact").classes) == ["contact"]
    (tmp_path / "contact.jsonl").write_text('"John"\n{"text": "Mary"}\n')
    assert entries(EntityCatalog.load(tmp_path / "contact.jsonl"), "contact") == [
        EntityEntry("John"),
        EntityEntry("Mary"),
    ]


def test_yaml_keeps_text_as_written_and_follows_files(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "people.txt").write_text("John\nMary\n")
    path = tmp_path / "all.yml"
    path.write_text("song: [1984, Yes, 3.0, null, 2001-01-01]\ncontact: {file: lists/people.txt}\n")
    catalog = EntityCatalog.load(path)
    assert [e.text for e in entries(catalog, "song")] == ["1984", "Yes", "3.0", "null", "2001-01-01"]
    assert [e.text for e in entries(catalog, "contact")] == ["John", "Mary"]


def test_folder_holds_every_file(tmp_path: Path) -> None:
    (tmp_path / "song.txt").write_text("A\n")
    (tmp_path / "contact.csv").write_text("text\nJohn\n")
    (tmp_path / "more.yaml").write_text("song: [B]\n")
    (tmp_path / ".hidden").write_text("x")
    catalog = EntityCatalog.load(tmp_path)
    assert {name: [e.text for e in kind.entries] for name, kind in catalog.classes.items()} == {
        "contact": ["John"],
        "song": ["B", "A"],
    }


@pytest.mark.parametrize(
    ("name", "content", "line", "problem"),
    [
        ("song.txt", b"", 1, "empty list"),
        ("song.txt", b"# only this\n", 1, "empty list"),
        ("song.txt", b"a\nb\t2\n", 2, "tab"),
        ("song.txt", b"a\nb\0\n", 2, "NUL"),
        ("song.txt", "a\nb\nü\n".encode("latin-1"), 3, "UTF-8"),
        ("song.txt", "a\n".encode("utf-16"), 1, "UTF-8"),
        ("My Songs.txt", b"a\n", 1, "class name 'My Songs'"),
        ("song.csv", b"", 1, "'text'"),
        ("song.csv", b"text\n", 1, "empty list"),
        ("song.csv", b"text,wieght\na,1\n", 1, "did you mean 'weight'"),
        ("song.csv", b"weight\n1\n", 1, "'text'"),
        ("song.csv", b"text,text\na,b\n", 1, "twice"),
        ("song.csv", b"text,weight\na,1\nb\n", 3, "1 cells"),
        ("song.csv", b"text,weight\na,1\nb,2,3\n", 3, "3 cells"),
        ("song.csv", b'text\na\n"b"x\n', 3, "expected"),
        ("song.csv", b"text,weight\na,0\n", 2, "weight"),
        ("song.csv", b"text,weight\na,nan\n", 2, "weight"),
        ("song.csv", b"text,weight\na,inf\n", 2, "weight"),
        ("song.csv", b"text,weight\na,-1\n", 2, "weight"),
        ("song.csv", b"text,weight\na,much\n", 2, "weight 'much'"),
        ("song.csv", b"text,id\na,1\n,2\n", 3, "'text'"),
        ("song.csv", b"class,text\nBad Name,a\n", 2, "class name 'Bad Name'"),
        ("song.jsonl", b'"a"\n{"text": \n', 2, "JSON"),
        ("song.jsonl", b'"a"\n7\n', 2, "mapping"),
        ("song.jsonl", b'{"txt": "a"}\n', 1, "did you mean 'text'"),
        ("song.jsonl", b'{"text": "a", "spoken": [1]}\n', 1, "'spoken'"),
        ("song.jsonl", b'{"text": "a", "spoken": {"b": 1}}\n', 1, "'spoken'"),
        ("song.jsonl", b'{"text": "a", "spoken": 5}\n', 1, "'spoken'"),
        ("song.jsonl", b'{"text": "a", "weight": true}\n', 1, "weight"),
        ("song.jsonl", b'{"text": " "}\n', 1, "without text"),
        ("song.jsonl", b'{"text": "a", "class": 5}\n', 1, "class name 5"),
        ("all.yaml", b"", 1, "empty list"),
        ("all.yaml", b"song:\n- a\n- {text: b, wait: 1}\n", 3, "unknown column 'wait'"),
        ("all.yaml", b"song:\n- a\n-  - b\n", 3, "mapping"),
        ("all.yaml", b"song:\n- a\ncity: []\n", 3, "empty list"),
        ("all.yaml", b"song:\n- a\ncity: rome\n", 3, "list"),
        ("all.yaml", b"song:\n- a\n  b: [\n", 3, "YAML"),
        ("all.yaml", b"- a\n", 1, "no mapping"),
        ("all.yaml", b"song: {file: x.yaml}\n", 1, "file"),
        ("all.yaml", b"Song: [a]\n", 1, "class name 'Song'"),
    ],
)
def test_mistakes_are_told_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, line: int, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EntityListError) as caught:
        EntityCatalog.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert problem in message
    assert "\n" not in message


def test_mistakes_of_whole_files(tmp_path: Path) -> None:
    (tmp_path / "song.docx").write_text("a")
    (tmp_path / "all.yaml").write_text("song: {file: none.txt}\n")
    (tmp_path / "void").mkdir()
    (tmp_path / "song.csv").write_text("class,text\nsong,a\n")
    for path, class_name, problem in [
        ("none.txt", None, "No such file"),
        ("song.docx", None, "'.docx'"),
        ("all.yaml", None, "none.txt cannot be read"),
        ("void", None, "empty folder"),
        ("song.csv", "Contacts", "class name 'Contacts'"),
        ("song.csv", "contact", "song.csv:2: class 'song'"),
    ]:
        with pytest.raises(EntityListError, match=problem.replace(".", r"\.")):
            EntityCatalog.load(tmp_path / path, class_name)


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ({"song": []}, "empty list"),
        ({"song": "abc"}, "a str"),
        ({"song": {"text": "a"}}, "a dict"),
        ({"My Song": ["a"]}, "class name"),
        ({"song": ["a", 5]}, "class 'song', entry 2"),
        ({"song": ["a", " "]}, "class 'song', entry 2"),
        ({"song": [{"text": "a", "weight": math.inf}]}, "class 'song', entry 1: weight inf"),
    ],
)
def test_mistakes_of_mappings(mapping: dict[str, list[object]], problem: str) -> None:
    with pytest.raises(EntityListError, match=problem):
        EntityCatalog.from_mapping(mapping)


def test_encoding_and_its_report() -> None:
    catalog = EntityCatalog.from_mapping(
        {
            "song": [
                {"text": "7 Nation Army", "spoken": ["seven nation army", "7 nation army"], "weight": 3},
                {"text": "99", "weight": 5},
                {"text": "HELP", "spoken": ["HELP", "Help!", "get help"], "weight": 4},
                "!!!",
            ],
            "contact": ["JOHN"],
        }
    )
    encoded = encode_catalog(catalog, TOKENIZER)
    song, contact = encoded.classes
    assert (song.index, song.name, contact.index, contact.name) == (0, "song", 1, "contact")
    heard = {
        (TOKENIZER.decode(ids), encoded.catalog.classes["song"].entries[entry].text, weight)
        for ids, entry, weight in zip(sequences(song), song.entry, song.weight, strict=True)
    }
    assert heard == {
        ("SEVEN NATION ARMY", "7 Nation Army", 3.0),
        ("HELP", "HELP", 2.0),
        ("GET HELP", "HELP", 2.0),
    }
    rows = {row.text: row for row in encoded.report.rows()}
    assert {text: row.status for text, row in rows.items()} == {
        "7 Nation Army": "partly",
        "99": "failed",
        "HELP": "ok",
        "!!!": "failed",
        "JOHN": "ok",
    }
    assert rows["7 Nation Army"].unencodable == "7"
    assert rows["7 Nation Army"].case_folded
    assert rows["!!!"].unencodable == ""
    assert rows["!!!"].pieces == ()
    assert not rows["JOHN"].case_folded
    assert rows["JOHN"].pieces == (tuple(TOKENIZER.pieces[i] for i in TOKENIZER.encode("john")),)
    assert encoded.report.summary().startswith("5 entries in 2 classes: 2 ok, 1 partly, 2 failed (first: ")
    told = json.loads(encoded.report.to_json())
    assert told["counts"] == encoded.report.counts() == {"ok": 2, "partly": 1, "failed": 2}
    assert [row["text"] for row in told["entries"]] == [row.text for row in encoded.report.rows()]


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_encoded_weight_is_that_of_the_encodable_entries(lists: dict[str, list[EntityEntry]]) -> None:
    catalog = EntityCatalog.from_mapping(lists)
    usable = {
        name: [e for e in kind.entries if any(TOKENIZER.try_encode(form)[0] for form in e.spoken)]
        for name, kind in catalog.classes.items()
    }
    if not all(usable.values()):
        with pytest.raises(EntityListError, match=r"no entry of class .* encodes: .*'7'"):
            encode_catalog(catalog, TOKENIZER)
        return
    encoded = encode_catalog(catalog, TOKENIZER)
    statuses = [row.status for row in encoded.report.rows()]
    assert encoded.report.counts() == {s: statuses.count(s) for s in ("ok", "partly", "failed")}
    assert [e.name for e in encoded.classes] == [n for n in TOKENIZER.classes if n in lists]
    for found in encoded.classes:
        kind = encoded.catalog.classes[found.name]
        assert found.weight.sum() == pytest.approx(sum(e.weight for e in usable[found.name]))
        for ids, entry in zip(sequences(found), found.entry, strict=True):
            assert ids in [TOKENIZER.try_encode(form)[0] for form in kind.entries[entry].spoken]
        assert len(set(zip(found.entry.tolist(), map(tuple, sequences(found)), strict=True))) == len(
            found.entry
        )


def test_lists_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(EntityListError, match=r"class 'city'.*song, contact"):
        encode_catalog(EntityCatalog.from_mapping({"city": ["rome"], "song": ["a"]}), TOKENIZER)
    with pytest.raises(EntityListError, match=r"no entry of class 'song' encodes: '1' .*'1'; '2' .*'2'; '3'"):
        encode_catalog(
            EntityCatalog.from_mapping({"song": ["4", "2", "3", "1"], "contact": ["a"]}), TOKENIZER
        )
    with pytest.raises(EntityListError, match="nothing to say"):
        encode_catalog(EntityCatalog.from_mapping({"song": ["?!"]}), TOKENIZER)


def test_a_hundred_thousand_entries_encode_in_about_a_second() -> None:
    draw = random.Random(0)
    names = {" ".join("".join(draw.choices(ALPHABET, k=5)) for _ in range(2)) for _ in range(100_000)}
    catalog = EntityCatalog.from_mapping({"contact": sorted(names)})
    began = time.perf_counter()
    encoded = encode_catalog(catalog, TOKENIZER)
    assert encoded.report.summary().startswith(f"{len(names)} entries in 1 classes: {len(names)} ok")
    assert time.perf_counter() - began < 5.0


def test_weights_of_duplicates_add_up_alike_in_any_order() -> None:
    for weights in itertools.permutations([1e16, 1.0, 1.0, 0.1]):
        catalog = EntityCatalog.from_mapping(
            {"song": [{"text": "A", "weight": weight} for weight in weights]}
        )
        assert entries(catalog, "song") == [EntityEntry("A", weight=1e16 + 2)]
