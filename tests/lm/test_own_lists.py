"""Lists by recording: what is read, what is refused, and with which line."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from lm.classes import EntityCatalog
from lm.errors import EntityListError
from lm.own_lists import fingerprint, has_own_lists, read_entities, read_own_lists

NOVAK = {"contact": ["maja novak"]}


def test_lists_lie_in_the_line_or_in_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "names.yaml").write_text("contact: [maja novak]\n")
    path = tmp_path / "own.jsonl.xz"
    with lzma.open(path, "wt") as file:
        file.write('\n{"id": 7, "entities": {"contact": ["maja novak"]}, "context": {"hour": 7}}\n')
        file.write('{"id": "b", "entities": "sub/names.yaml"}\n{"id": "c", "entities": {}}\n')
    found = read_entities(path)
    assert isinstance(found, dict)
    assert list(found) == ["7", "b", "c"]
    assert (
        found["7"].fingerprint()
        == found["b"].fingerprint()
        == EntityCatalog.from_mapping(NOVAK).fingerprint()
    )
    assert not found["c"]
    assert fingerprint(found) == fingerprint(dict(reversed(found.items())))
    assert fingerprint(found) != fingerprint({**found, "c": found["b"]})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"class": "contact", "text": "maja novak", "id": "c17"}\n'),
        ("contact.jsonl", '"maja novak"\n'),
        ("a.yaml", "contact: [maja novak]\n"),
    ],
)
def test_one_list_for_all_is_still_one(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert not has_own_lists(tmp_path / name)
    assert isinstance(read_entities(tmp_path / name), EntityCatalog)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "a", "entities": {"contact": ["x"]}}', "own.jsonl:2: a second line of 'a'"),
        ('{"id": "b", "entities": {"contact": []}}', "own.jsonl:2: class 'contact' is an empty list"),
        ('{"id": "b", "entities": ["x"]}', "own.jsonl:2: '{"),
        ('{"id": true, "entities": {}}', "own.jsonl:2: '{"),
        ('{"entities": {}}', "own.jsonl:2: '{"),
        ("{", "own.jsonl:2: '{'"),
        ('{"id": "b", "entities": "none.yaml"}', "none.yaml cannot be read"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "a", "entities": {"contact": ["maja novak"]}}\n' + line + "\n")
    with pytest.raises(EntityListError) as refused:
        read_entities(path)
    assert says in str(refused.value)
    assert "own.jsonl:2: " in str(refused.value)


def test_where_one_list_is_wanted_they_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "a", "entities": {"contact": ["maja novak"]}}\n')
    with pytest.raises(EntityListError, match="only for 'a'.*asr transcribe, tune or score"):
        EntityCatalog.load(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("\n")
    with pytest.raises(EntityListError, match="is empty"):
        read_own_lists(tmp_path / "own.jsonl")
