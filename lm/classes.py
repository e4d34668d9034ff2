"""Entity lists: what the user wants heard, read from files and turned into tokens, with a report.

The order of a list, of its files and of an entry's spoken forms never changes a result: whatever is computed
starts from ``EntityCatalog.canonical``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from lm.class_encoding import (
    Bools,
    ClassGraph,
    EncodedClass,
    Forms,
    encode_forms,
    forms_of,
    repeated,
    select,
    shares,
)
from lm.class_files import Row, read_lists
from lm.entries import EntityClass, EntityEntry, Key, check_fields, class_cost, class_name, entry_of
from lm.errors import EntityListError
from lm.nested import ClassCompiler, check_references
from lm.readings import Reader, Reading
from lm.tokenizer import Tokenizer

__all__ = [
    "ClassGraph",
    "EncodedCatalog",
    "EncodedClass",
    "EncodingReport",
    "EncodingRow",
    "EntityCatalog",
    "EntityClass",
    "EntityEntry",
    "Reading",
    "encode_catalog",
]


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
    def from_mapping(cls, mapping: Mapping[str, Any]) -> EntityCatalog:
        """Catalog from ``{"contact": ["Jo", {"text": .., "spoken": [..], "weight": .., "id": ..}]}``.

        An entry may also be ``{"pattern": ..}`` or ``{"number": ..}``, and a class with a cost is
        ``{"cost": 2.0, "entries": [..]}``.
        """
        rows: list[Row] = []
        for name, entries in mapping.items():
            where = f"class {class_name(name, 'entity lists')!r}"
            if isinstance(entries, Mapping) and "entries" in entries:
                check_fields(entries, ("cost", "entries"), f"{where}: ")
                rows.append((name, class_cost(entries.get("cost", 0.0), where)))
                entries = entries["entries"]
            if isinstance(entries, (str, Mapping)) or not entries:
                found = "an empty list" if not entries else f"a {type(entries).__name__}"
                raise EntityListError(f"{where} is {found}", "a list of entries", "fill it or leave it out")
            rows += [(name, entry_of(entry, f"{where}, entry {n}")) for n, entry in enumerate(entries, 1)]
        return cls._of(rows)

    @classmethod
    def load(cls, path: str | Path, class_name: str | None = None) -> EntityCatalog:
        """Catalog from a list file (txt, csv, jsonl, yaml) or from every file of a folder.

        Entries whose file names no class go to ``class_name``, by default the file's stem. txt: one entry a
        line, ``#`` starts a comment line. csv: a header with some of class, text, spoken (``|`` splits it),
        weight, id, pattern, number. jsonl: a string, or an object with those keys, a line. yaml: class to list
        of strings or objects, or ``class: {file: other.txt}`` relative to the yaml file, or with a cost
        ``class: {cost: 2.0, entries: [..]}``.
        """
        return cls._of(read_lists(Path(path), class_name))

    def merge(self, *others: EntityCatalog) -> EntityCatalog:
        """All entries of all catalogs; weights of entries that agree in text, spoken forms and id add up."""
        return self._of(chain(self._rows(), *(other._rows() for other in others)))

    def canonical(self) -> EntityCatalog:
        """The same catalog in sorted order: classes by name, entries by text, spoken forms and id."""
        return self._canonical

    @cached_property
    def _canonical(self) -> EntityCatalog:
        classes = {}
        for name, kind in sorted(self.classes.items()):
            by = "text" if _distinct(kind.entries) else "key"
            entries = sorted(kind.entries, key=attrgetter(by))
            ordered = (e if len(e.spoken) == 1 else replace(e, spoken=e.key[1]) for e in entries)
            classes[name] = replace(kind, entries=tuple(ordered))
        return EntityCatalog(classes)

    def fingerprint(self) -> str:
        """SHA-256 of the content, the same for any order of the lists."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, kind in self.canonical().classes.items():
            # Columns, not rows: a list of a hundred thousand rows takes twice as long.
            weights = [float(entry.weight).hex() for entry in kind.entries]
            columns = [[getattr(e, part) for e in kind.entries] for part in ("text", "spoken", "id", "kind")]
            digest.update(json.dumps([name, float(kind.cost).hex(), weights, columns]).encode())
        return digest.hexdigest()

    def _rows(self) -> Iterator[Row]:
        for name, kind in self.classes.items():
            yield name, kind.cost
            yield from ((name, entry) for entry in kind.entries)

    @classmethod
    def _of(cls, rows: Iterable[Row]) -> EntityCatalog:
        classes: dict[str, list[EntityEntry]] = {}
        costs: dict[str, float] = {}
        for name, entry in rows:
            if isinstance(entry, EntityEntry):
                classes.setdefault(name, []).append(entry)
            else:
                costs[name] = _agree(name, costs.get(name, 0.0), entry)
        return cls(
            {
                name: EntityClass(name, _merged(entries), costs.get(name, 0.0))
                for name, entries in classes.items()
            }
        )


def _distinct(entries: Sequence[EntityEntry]) -> bool:
    """Whether the texts alone tell the entries apart, as they mostly do; keys take long to make."""
    return len({entry.text for entry in entries}) == len(entries)


def _merged(entries: Sequence[EntityEntry]) -> tuple[EntityEntry, ...]:
    """Every entry once, with the weights of those that agree added."""
    if _distinct(entries):
        return tuple(entries)
    found: dict[Key, list[EntityEntry]] = {}
    for entry in entries:
        found.setdefault(entry.key, []).append(entry)
    # fsum is exact, so the order of the duplicates does not show.
    return tuple(
        replace(same[0], weight=math.fsum(entry.weight for entry in same)) if len(same) > 1 else same[0]
        for same in found.values()
    )


def _agree(name: str, one: float, other: float) -> float:
    """The cost of a class that is given more than once; 0 counts as not given."""
    if one and other and one != other:
        problem = f"class {name!r} with costs {one} and {other}"
        raise EntityListError(problem, "one cost a class", "correct one of the lists")
    return one or other


@dataclass(frozen=True)
class EncodingRow:
    """How one entry fared: ``status`` is ok, partly (some spoken forms) or failed.

    ``pieces`` are the tokens of each form that encodes, of a pattern one example; ``unencodable`` the characters
    that no token spells (none in a failed entry that is only punctuation); ``case_folded`` whether the case was
    changed.
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
    encodable: dict[str, Bools] = field(repr=False)

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
            entry = forms_of(kind).entry
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
        attempts = [self._attempt(entry, form) for form in entry.spoken]
        folded = [f.upper() if self.tokenizer.case == "upper" else f.lower() for f in entry.spoken]
        return EncodingRow(
            class_name=name,
            text=entry.text,
            status="ok" if all(encodable) else "partly" if any(encodable) else "failed",
            pieces=tuple(tuple(self.tokenizer.pieces[token] for token in ids) for ids, _ in attempts if ids),
            unencodable="".join(dict.fromkeys("".join(bad for _, bad in attempts))),
            case_folded=entry.kind == "words" and folded != list(entry.spoken),
        )

    def _attempt(self, entry: EntityEntry, form: str) -> tuple[list[int] | None, str]:
        """Tokens of a spoken form, of a pattern those of an example; and the characters in the way."""
        part = entry.part(form)
        if part is None:
            return self.tokenizer.try_encode(form)
        bad = self._compiler.unencodable(part)
        return (None if bad else self._compiler.example(part)), bad

    @cached_property
    def _compiler(self) -> ClassCompiler:
        classes = self.catalog.classes
        forms = {name: forms_of(kind) for name, kind in classes.items()}
        return ClassCompiler(classes, forms, self.tokenizer, self.encodable)


@dataclass(frozen=True, eq=False)
class EncodedCatalog:
    """A catalog in tokens; ``catalog`` is canonical, and entry indices refer to it."""

    catalog: EntityCatalog
    classes: tuple[EncodedClass, ...]
    report: EncodingReport

    def reading(
        self, class_name: str, text: str, entries: Sequence[tuple[int, int, float]] = ()
    ) -> Reading | None:
        """The entry behind an entity and how it is written.

        Args:
            class_name: its class.
            text: the words that were recognised.
            entries: the list entries that end at its node (``EntityGraph.entries``), of which the heaviest is
                taken. Without any it came from a pattern, a number or a nested class, and is read from its
                words: None if no entry of the class sounds like them.
        """
        if entries:
            _, number, _ = max(entries, key=lambda entry: entry[2])
            entry = self.catalog.classes[class_name].entries[number]
            return Reading(entry.text, entry)
        return self._reader.read(class_name, text)

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.catalog.classes, self.report.tokenizer)


def encode_catalog(catalog: EntityCatalog, tokenizer: Tokenizer, foreign: bool = False) -> EncodedCatalog:
    """Tokens of every spoken form; a class that is unknown or encodes to nothing is an error.

    A class that the model does not know may still be named by the entries of one that it does; with ``foreign``,
    for lists as phrases, any class may be there, with -1 for its index.
    """
    catalog = catalog.canonical()
    classes = catalog.classes
    forms = {name: forms_of(kind) for name, kind in classes.items()}
    named = check_references(classes, forms)
    unknown = sorted(set(classes) - set(tokenizer.classes) - named)
    if unknown and not foreign:
        known = ", ".join(tokenizer.classes) or "none"
        problem = f"class {unknown[0]!r} of the entity lists"
        raise EntityListError(
            problem, f"a class of the model: {known}", "rename or drop it, or use biasing=phrases"
        )
    report = EncodingReport(catalog, tokenizer, {})
    compiler = ClassCompiler(classes, forms, tokenizer, report.encodable)
    encoded = []
    for name, kind in classes.items():
        one = _encode_class(kind, forms[name], compiler, report)
        encoded += [one] if foreign or name in tokenizer.classes else []
    for name in classes:
        if not report.encodable[name].any():
            failed = [row for row in report.rows() if row.class_name == name][:3]
            raise EntityListError(
                f"no entry of class {name!r} encodes: {'; '.join(map(_why, failed))}",
                f"entries of the characters {''.join(sorted(tokenizer.characters))!r}",
                "give spoken forms in those characters",
            )
    # Only now: a graph may need the other classes.
    composite = {name for name in classes if (report.encodable[name] & forms[name].composite).any()}
    whole = [replace(e, graph=compiler.graph(e.name)) if e.name in composite else e for e in encoded]
    return EncodedCatalog(catalog, tuple(sorted(whole, key=lambda e: e.index)), report)


def _encode_class(
    kind: EntityClass, forms: Forms, compiler: ClassCompiler, report: EncodingReport
) -> EncodedClass:
    """The plain entries of a class in tokens; says in the report which forms encode."""
    tokenizer = report.tokenizer
    tokens, lengths, plain = encode_forms(forms.texts, tokenizer)
    compiler.check(kind.name, plain)
    kept = report.encodable[kind.name] & ~repeated(forms, tokenizer)
    weight = shares(kind, forms.entry, kept)
    sequences = select(tokens, lengths, kept & ~forms.composite, forms.entry, weight)
    index = tokenizer.class_id(kind.name) if kind.name in tokenizer.classes else -1
    return EncodedClass(kind.name, index, *sequences, cost=kind.cost)


def _why(row: EncodingRow) -> str:
    reason = f"no token spells {row.unencodable!r}" if row.unencodable else "nothing to say in it"
    return f"{row.text!r} of {row.class_name}: {reason}"
