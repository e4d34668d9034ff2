"""Entity lists: what the user wants heard, read from files and turned into tokens, with a report.

The order of a list, of its files and of an entry's spoken forms never changes a result: whatever is computed
starts from ``EntityCatalog.canonical``.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lm.errors import EntityListError
from lm.tagged_text import CLASS_NAME
from lm.tokenizer import Tokenizer

_FIELDS = ("class", "text", "spoken", "weight", "id")
_KINDS = (".txt", ".csv", ".jsonl", ".yaml", ".yml")
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Rows = Iterator[tuple[str, "EntityEntry"]]
_Key = tuple[str, tuple[str, ...], bool, str]


@dataclass(frozen=True)
class EntityEntry:
    """One entity.

    ``text`` is its written form; ``spoken`` how it may be said (``text`` if not given); ``weight`` its share
    of the class's probability relative to the other entries; ``id`` is handed back with results.
    """

    text: str
    spoken: tuple[str, ...] = ()
    weight: float = 1.0
    id: str | None = None

    def __post_init__(self) -> None:
        if not (0.0 < self.weight < math.inf):
            problem = f"weight {self.weight!r} of entry {self.text!r}"
            raise EntityListError(problem, "a positive finite number", "correct the weight")
        text = " ".join(self.text.split())
        forms = dict.fromkeys(" ".join(form.split()) for form in self.spoken) if self.spoken else {}
        spoken = tuple(form for form in forms if form) or (text,)
        if not text:
            raise EntityListError("an entry without text", "a written form", "remove the entry or name it")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "spoken", spoken)

    @property
    def key(self) -> _Key:
        """What entries that are the same share, and what sorts them: text, spoken forms, id."""
        spoken = self.spoken if len(self.spoken) == 1 else tuple(sorted(self.spoken))
        return self.text, spoken, self.id is not None, self.id or ""


@dataclass(frozen=True)
class EntityClass:
    """The entries of one class, none twice."""

    name: str
    entries: tuple[EntityEntry, ...]


@dataclass(frozen=True, eq=False)
class EntityCatalog:
    """Entity lists by class; false if there are none. No class in it is empty."""

    classes: Mapping[str, EntityClass]

    def __bool__(self) -> bool:
        return bool(self.classes)

    def __len__(self) -> int:
        return sum(len(kind.entries) for kind in self.classes.values())

    @classmethod
    def empty(cls) -> EntityCatalog:
        """The catalog without entries: recognition with it equals recognition without lists."""
        return cls({})

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Sequence[Any]]) -> EntityCatalog:
        """Catalog from ``{"contact": ["Jo", {"text": .., "spoken": [..], "weight": .., "id": ..}]}``."""
        rows: list[tuple[str, EntityEntry]] = []
        for name, entries in mapping.items():
            where = f"class {_class_name(name, 'entity lists')!r}"
            if isinstance(entries, (str, Mapping)) or not entries:
                found = "an empty list" if not entries else f"a {type(entries).__name__}"
                raise EntityListError(f"{where} is {found}", "a list of entries", "fill it or leave it out")
            rows += [(name, _entry(entry, f"{where}, entry {n}")) for n, entry in enumerate(entries, 1)]
        return cls._of(rows)

    @classmethod
    def load(cls, path: str | Path, class_name: str | None = None) -> EntityCatalog:
        """Catalog from a list file (txt, csv, jsonl, yaml) or from every file of a folder.

        Entries whose file names no class go to ``class_name``, by default the file's stem. txt: one entry a
        line, ``#`` starts a comment line. csv: a header with some of class, text, spoken (``|`` splits it),
        weight, id. jsonl: a string, or an object with those keys, a line. yaml: class to list of strings or
        objects, or ``class: {file: other.txt}`` relative to the yaml file.
        """
        return cls._of(_read(Path(path), class_name))

    def merge(self, *others: EntityCatalog) -> EntityCatalog:
        """All entries of all catalogs; weights of entries that agree in text, spoken forms and id add up."""
        return self._of(chain(self._rows(), *(other._rows() for other in others)))

    def canonical(self) -> EntityCatalog:
        """The same catalog in sorted order: classes by name, entries by text, spoken forms and id."""
        classes = {}
        for name, kind in sorted(self.classes.items()):
            entries = sorted(kind.entries, key=lambda entry: entry.key)
            ordered = (e if len(e.spoken) == 1 else replace(e, spoken=e.key[1]) for e in entries)
            classes[name] = EntityClass(name, tuple(ordered))
        return EntityCatalog(classes)

    def fingerprint(self) -> str:
        """SHA-256 of the content, the same for any order of the lists."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        rows = [(name, e.text, e.spoken, float(e.weight).hex(), e.id) for name, e in self.canonical()._rows()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _rows(self) -> Iterator[tuple[str, EntityEntry]]:
        return ((name, entry) for name, kind in self.classes.items() for entry in kind.entries)

    @classmethod
    def _of(cls, rows: Iterable[tuple[str, EntityEntry]]) -> EntityCatalog:
        classes: dict[str, dict[_Key, EntityEntry]] = {}
        again: dict[tuple[str, _Key], list[float]] = {}
        for name, entry in rows:
            found, key = classes.setdefault(name, {}), entry.key
            if key in found:
                again.setdefault((name, key), [found[key].weight]).append(entry.weight)
            else:
                found[key] = entry
        for (name, key), weights in again.items():
            # fsum is exact, so the order of the duplicates does not show.
            classes[name][key] = replace(classes[name][key], weight=math.fsum(weights))
        return cls({name: EntityClass(name, tuple(found.values())) for name, found in classes.items()})


def _class_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not CLASS_NAME.fullmatch(name):
        raise EntityListError(f"{where}: class name {name!r}", "a name like 'contact'", "rename the class")
    return name


def _entry(given: Any, where: str) -> EntityEntry:
    """An entry from a string or a mapping; every error begins with ``where``."""
    if isinstance(given, EntityEntry):
        return given
    values = {"text": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        raise EntityListError(f"{where}: {given!r}", "a string or a mapping with 'text'", "correct the entry")
    _check_fields(values, _FIELDS[1:], where)
    spoken = values.get("spoken") or ()
    forms = (spoken,) if isinstance(spoken, str) else spoken
    text, id_ = values.get("text"), values.get("id")
    listed = isinstance(forms, (list, tuple)) and all(isinstance(form, str) for form in forms)
    if not isinstance(text, str) or not listed:
        raise EntityListError(f"{where}: {given!r}", "'text' and 'spoken' to be text", "correct the entry")
    weight = values.get("weight", 1.0)
    try:
        number = math.nan if isinstance(weight, bool) else float(weight)
    except (TypeError, ValueError):
        raise EntityListError(f"{where}: weight {weight!r}", "a positive number", "correct it") from None
    try:
        return EntityEntry(text, tuple(forms), number, None if id_ is None else str(id_))
    except EntityListError as error:
        raise EntityListError(f"{where}: {error.given}", error.expected, error.fix) from None


def _check_fields(given: Iterable[Any], known: Sequence[str], where: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            fix = f"did you mean {near[0]!r}?" if near else "remove it"
            raise EntityListError(f"{where}: unknown column {name!r}", f"some of {', '.join(known)}", fix)


def _read(path: Path, class_name: str | None) -> list[tuple[str, EntityEntry]]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if not files:
            raise EntityListError(f"{path} is an empty folder", "entity lists in it", "add a list")
        return [row for file in files for row in _read(file, class_name)]
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise EntityListError(f"{path}: unknown type {kind!r}", f"one of {', '.join(_KINDS)}", "convert it")
    text = _text(path)
    name = None if class_name is None else _class_name(class_name, str(path))
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
    return _class_name(own or given or path.stem, where)


def _read_txt(path: Path, text: str, class_name: str | None) -> _Rows:
    name = _choose_class(path, 1, None, class_name)
    for line, entry in enumerate(text.split("\n"), 1):
        if "\t" in entry.strip():
            raise EntityListError(
                f"{path}:{line}: a tab in {entry!r}", "one entry a line", "use csv for columns"
            )
        if entry.strip() and not entry.lstrip().startswith("#"):
            yield name, EntityEntry(entry)


def _read_csv(path: Path, text: str, class_name: str | None) -> _Rows:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        _check_fields(header, _FIELDS, f"{path}:1")
        if "text" not in header or len(set(header)) < len(header):
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
            yield name, _entry(values, f"{path}:{line}")
    except csv.Error as error:
        raise EntityListError(f"{path}:{reader.line_num}: {error}", "well-formed csv", "mend it") from None


def _read_jsonl(path: Path, text: str, class_name: str | None) -> _Rows:
    for line, row in enumerate(text.split("\n"), 1):
        if not row.strip():
            continue
        try:
            values = json.loads(row)
        except json.JSONDecodeError as error:
            raise EntityListError(f"{path}:{line}: {error.msg}", "one JSON value a line", "mend it") from None
        own = values.pop("class", None) if isinstance(values, dict) else None
        name = _choose_class(path, line, own, class_name)
        yield name, _entry(values, f"{path}:{line}")


def _read_yaml(path: Path, text: str, class_name: str | None) -> _Rows:
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
        if isinstance(node, yaml.MappingNode):
            values = _plain(node)
            target = path.parent / str(values.get("file"))
            if set(values) != {"file"} or target.suffix.lower() not in _KINDS[:3]:
                raise EntityListError(
                    f"{path}:{line}: {values}", "a list, or {file: names.txt}", "correct it"
                )
            yield from _read(target, name)
        elif isinstance(node, yaml.SequenceNode) and node.value:
            for item in node.value:
                yield name, _entry(_plain(item), f"{path}:{item.start_mark.line + 1}")
        else:
            raise EntityListError(
                f"{path}:{line}: {name!r} is no or an empty list", "entries", "fill the list"
            )


def _plain(node: Any) -> Any:
    """A YAML node as strings, lists and mappings."""
    if isinstance(node.value, str):
        return node.value
    if node.id == "mapping":
        return {str(_plain(key)): _plain(value) for key, value in node.value if value.value != ""}
    return [_plain(item) for item in node.value]


@dataclass(frozen=True, eq=False)
class EncodedClass:
    """Token sequences of one class, S in all, one for each encodable spoken form.

    ``index`` is the class's index in the tokenizer; sequence s is ``tokens[offsets[s]:offsets[s + 1]]``,
    ``offsets`` ``(S + 1,)``; ``entry`` ``(S,)`` is the entry's position in the canonical class; ``weight``
    ``(S,)`` its weight divided evenly among its encodable forms.
    """

    name: str
    index: int
    tokens: Ints
    offsets: Ints
    entry: Ints
    weight: Floats


@dataclass(frozen=True)
class EncodingRow:
    """How one entry fared: ``status`` is ok, partly (some spoken forms) or failed.

    ``pieces`` are the tokens of each form that encodes; ``unencodable`` the characters that no token spells
    (none in a failed entry that is only punctuation); ``case_folded`` whether the case was changed.
    """

    class_name: str
    text: str
    status: str
    pieces: tuple[tuple[str, ...], ...]
    unencodable: str
    case_folded: bool


@dataclass(frozen=True, eq=False)
class EncodingReport:
    """What became of every entry of a catalog.

    ``encodable`` says by class which spoken forms of the canonical entries encode, all forms in a row.
    """

    catalog: EntityCatalog
    tokenizer: Tokenizer = field(repr=False)
    encodable: Mapping[str, npt.NDArray[np.bool_]] = field(repr=False)

    def rows(self) -> Iterator[EncodingRow]:
        """One row an entry, in canonical order."""
        for name, kind in self.catalog.classes.items():
            encodable = iter(self.encodable[name].tolist())
            for entry in kind.entries:
                yield self._row(name, entry, [next(encodable) for _ in entry.spoken])

    def counts(self) -> dict[str, int]:
        """Number of entries of each status."""
        found = {"ok": 0, "partly": 0, "failed": 0}
        for name, kind in self.catalog.classes.items():
            entry = _forms(kind)[1]
            good = np.bincount(entry[self.encodable[name]], minlength=len(kind.entries))
            ok = int((good == np.bincount(entry)).sum())
            failed = int((good == 0).sum())
            found["ok"] += ok
            found["failed"] += failed
            found["partly"] += len(kind.entries) - ok - failed
        return found

    def summary(self) -> str:
        """One line: how many entries of how many classes encode, and the first that does not."""
        counts = self.counts()
        numbers = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        line = f"{len(self.catalog)} entries in {len(self.catalog.classes)} classes: {numbers or 'none'}"
        if counts["ok"] < len(self.catalog):
            first = next(row for row in self.rows() if row.status != "ok")
            line += f" (first: {_why(first)})"
        return line

    def to_json(self) -> str:
        """The rows and the counts as a JSON object."""
        content = {"counts": self.counts(), "entries": [asdict(row) for row in self.rows()]}
        return json.dumps(content, ensure_ascii=False)

    def _row(self, name: str, entry: EntityEntry, encodable: list[bool]) -> EncodingRow:
        attempts = [self.tokenizer.try_encode(form) for form in entry.spoken]
        folded = [f.upper() if self.tokenizer.case == "upper" else f.lower() for f in entry.spoken]
        return EncodingRow(
            class_name=name,
            text=entry.text,
            status="ok" if all(encodable) else "partly" if any(encodable) else "failed",
            pieces=tuple(tuple(self.tokenizer.pieces[token] for token in ids) for ids, _ in attempts if ids),
            unencodable="".join(dict.fromkeys("".join(bad for _, bad in attempts))),
            case_folded=folded != list(entry.spoken),
        )


@dataclass(frozen=True, eq=False)
class EncodedCatalog:
    """A catalog in tokens; ``catalog`` is canonical, and entry indices refer to it."""

    catalog: EntityCatalog
    classes: tuple[EncodedClass, ...]
    report: EncodingReport


def encode_catalog(catalog: EntityCatalog, tokenizer: Tokenizer) -> EncodedCatalog:
    """Tokens of every spoken form; a class that is unknown or encodes to nothing is an error."""
    catalog = catalog.canonical()
    unknown = sorted(set(catalog.classes) - set(tokenizer.classes))
    if unknown:
        known = ", ".join(tokenizer.classes) or "none"
        problem = f"class {unknown[0]!r} of the entity lists"
        raise EntityListError(problem, f"a class of the model: {known}", "rename or drop the class")
    encoded: list[EncodedClass] = []
    encodable: dict[str, npt.NDArray[np.bool_]] = {}
    for name, kind in catalog.classes.items():
        found, encodable[name] = _encode_class(kind, tokenizer)
        encoded.append(found)
    report = EncodingReport(catalog, tokenizer, encodable)
    for found in encoded:
        if not len(found.entry):
            failed = [row for row in report.rows() if row.class_name == found.name][:3]
            raise EntityListError(
                f"no entry of class {found.name!r} encodes: {'; '.join(map(_why, failed))}",
                f"entries of the characters {''.join(sorted(tokenizer.characters))!r}",
                "give spoken forms in those characters",
            )
    return EncodedCatalog(catalog, tuple(sorted(encoded, key=lambda e: e.index)), report)


def _encode_class(kind: EntityClass, tokenizer: Tokenizer) -> tuple[EncodedClass, npt.NDArray[np.bool_]]:
    forms, entry = _forms(kind)
    tokens, lengths = tokenizer.encode_flat(forms)
    form_of_token = np.repeat(np.arange(len(forms)), lengths)
    encodable = lengths > 0
    encodable[form_of_token[tokens < 0]] = False
    kept = encodable & ~_repeated(forms, entry, tokenizer)
    entry_weight = np.array([e.weight for e in kind.entries], dtype=np.float64)
    share = entry_weight / np.maximum(np.bincount(entry[kept], minlength=len(kind.entries)), 1)
    encoded = EncodedClass(
        name=kind.name,
        index=tokenizer.class_id(kind.name),
        tokens=tokens[kept[form_of_token]],
        offsets=np.concatenate(([0], np.cumsum(lengths[kept]))),
        entry=entry[kept],
        weight=share[entry[kept]],
    )
    return encoded, encodable


def _forms(kind: EntityClass) -> tuple[list[str], Ints]:
    """Every spoken form of a class, and the position of its entry."""
    counts = [len(entry.spoken) for entry in kind.entries]
    return [form for e in kind.entries for form in e.spoken], np.repeat(np.arange(len(counts)), counts)


def _repeated(forms: list[str], entry: Ints, tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Forms that sound like an earlier form of the same entry (``John`` and ``JOHN``)."""
    repeated = np.zeros(len(forms), dtype=bool)
    several = np.flatnonzero(np.bincount(entry)[entry] > 1)
    seen: set[tuple[int, str]] = set()
    for form in several.tolist():
        key = int(entry[form]), tokenizer.normalise(forms[form])
        repeated[form] = key in seen
        seen.add(key)
    return repeated


def _why(row: EncodingRow) -> str:
    reason = f"no token spells {row.unencodable!r}" if row.unencodable else "nothing to say in it"
    return f"{row.text!r} of {row.class_name}: {reason}"
