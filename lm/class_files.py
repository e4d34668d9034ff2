"""Entity lists on disk: txt, csv, jsonl and yaml, every mistake told with its file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from lm.entries import FIELDS, EntityEntry, check_fields, class_cost, entry_of
from lm.entries import class_name as class_name_of
from lm.errors import EntityListError

_KINDS = (".txt", ".csv", ".jsonl", ".yaml", ".yml")
Row: TypeAlias = tuple[str, EntityEntry | float]
"""A class with one of its entries, or with its cost."""


def read_lists(path: Path, class_name: str | None) -> list[Row]:
    """Entries by class of a file or of every file of a folder; a number is the cost of its class."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if not files:
            raise EntityListError(f"{path} is an empty folder", "entity lists in it", "add a list")
        return [row for file in files for row in read_lists(file, class_name)]
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise EntityListError(f"{path}: unknown type {kind!r}", f"one of {', '.join(_KINDS)}", "convert it")
    text = _text(path)
    name = None if class_name is None else class_name_of(class_name, str(path))
    reader = {".txt": _read_txt, ".csv": _read_csv, ".jsonl": _read_jsonl}.get(kind, _read_yaml)
    rows = list(reader(path, text, name))
    if not rows:
        raise EntityListError(f"{path}:1: an empty list", "at least one entry", "fill it or leave it out")
    return rows


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})"
        raise EntityListError(problem, "an entity list", "check the path") from None
    try:
        if b"\0" in raw:
            raise UnicodeDecodeError("utf-8", raw, raw.index(b"\0"), raw.index(b"\0") + 1, "NUL byte")
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problem = f"{path}:{line}: not UTF-8 text ({error.reason})"
        raise EntityListError(problem, "a UTF-8 file", "save the list as UTF-8") from None


def _choose_class(path: Path, line: int, own: str | None, given: str | None) -> str:
    """The class of a row: what it says itself, else what the caller says, else the file's name."""
    where = f"{path}:{line}"
    if own and given and own != given:
        raise EntityListError(f"{where}: class {own!r}", f"class {given!r} as asked for", "mend the file")
    return class_name_of(own or given or path.stem, where)


def _read_txt(path: Path, text: str, class_name: str | None) -> Iterator[Row]:
    name = _choose_class(path, 1, None, class_name)
    for line, entry in enumerate(text.split("\n"), 1):
        if "\t" in entry.strip():
            raise EntityListError(
                f"{path}:{line}: a tab in {entry!r}", "one entry a line", "use csv for columns"
            )
        if entry.strip() and not entry.lstrip().startswith("#"):
            yield name, entry_of(entry, f"{path}:{line}")


def _read_csv(path: Path, text: str, class_name: str | None) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        check_fields(header, ("class", *FIELDS), f"{path}:1: ")
        if not {"text", "pattern", "number"} & set(header) or len(set(header)) < len(header):
            raise EntityListError(f"{path}:1: header {header}", "a column 'text' and none twice", "mend it")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            line = reader.line_num
            if len(cells) != len(header):
                problem = f"{path}:{line}: {len(cells)} cells"
                raise EntityListError(problem, f"{len(header)} as in the header", "quote cells with commas")
            values: dict[str, Any] = {k: c.strip() for k, c in zip(header, cells, strict=True) if c.strip()}
            name = _choose_class(path, line, values.pop("class", None), class_name)
            if "spoken" in values:
                values["spoken"] = values["spoken"].split("|")
            yield name, entry_of(values, f"{path}:{line}")
    except csv.Error as error:
        raise EntityListError(f"{path}:{reader.line_num}: {error}", "well-formed csv", "mend it") from None


def _read_jsonl(path: Path, text: str, class_name: str | None) -> Iterator[Row]:
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            values = json.loads(row)
        except json.JSONDecodeError as error:
            raise EntityListError(f"{path}:{line}: {error.msg}", "one JSON value a line", "mend it") from None
        if isinstance(values, dict) and "entities" in values:
            problem = f"{path}:{line}: a list that is only for {values.get('id')!r}"
            raise EntityListError(problem, "one list for all", "give it to asr transcribe, tune or score")
        own = values.pop("class", None) if isinstance(values, dict) else None
        name = _choose_class(path, line, own, class_name)
        yield name, entry_of(values, f"{path}:{line}")


def _read_yaml(path: Path, text: str, class_name: str | None) -> Iterator[Row]:
    import yaml

    try:
        tree = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or "not YAML"
        raise EntityListError(f"{path}:{line}: {problem}", "a YAML mapping", "mend the file") from None
    if tree is None:
        return
    # Read as a tree, not as values: nodes know their lines, and a song called 1984 or Yes stays text.
    if not isinstance(tree, yaml.MappingNode):
        raise EntityListError(f"{path}:1: no mapping", "'class:' followed by a list", "name the class")
    for key, node in tree.value:
        line = key.start_mark.line + 1
        name = _choose_class(path, line, _plain(key), class_name)
        where = f"{path}:{line}"
        if isinstance(node, yaml.MappingNode):
            yield from _read_settings(path, where, name, node)
        elif isinstance(node, yaml.SequenceNode) and node.value:
            yield from _read_items(path, name, node)
        else:
            raise EntityListError(f"{where}: {name!r} is no or an empty list", "entries", "fill the list")


def _read_settings(path: Path, where: str, name: str, node: Any) -> Iterator[Row]:
    """A class with settings: ``{cost: 2.0, entries: [...]}`` or ``{cost: 2.0, file: names.txt}``."""
    values = {_plain(key): value for key, value in node.value}
    target = path.parent / str(_plain(values["file"]) if "file" in values else "")
    entries = values.get("entries")
    if entries is None:
        good = "file" in values and target.suffix.lower() in _KINDS[:3]
    else:
        good = "file" not in values and entries.id == "sequence" and bool(entries.value)
    if not good or set(values) - {"cost", "file", "entries"}:
        problem = f"{where}: {_plain(node)}"
        raise EntityListError(
            problem, "a list, {file: names.txt}, or {cost: .., entries: [..]}", "correct it"
        )
    if "cost" in values:
        yield name, class_cost(_plain(values["cost"]), where)
    yield from read_lists(target, name) if entries is None else _read_items(path, name, entries)


def _read_items(path: Path, name: str, node: Any) -> Iterator[Row]:
    return ((name, entry_of(_plain(item), f"{path}:{item.start_mark.line + 1}")) for item in node.value)


def _plain(node: Any) -> Any:
    """A YAML node as strings, lists and mappings."""
    if isinstance(node.value, str):
        return node.value
    if node.id == "mapping":
        return {str(_plain(key)): _plain(value) for key, value in node.value if value.value != ""}
    return [_plain(item) for item in node.value]
