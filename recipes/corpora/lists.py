"""Where the entity lists of prepared data lie, whatever their kind, and how they are read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lm.errors import DataError
from recipes.corpora.corpus import Lists

if TYPE_CHECKING:
    from lm.classes import EntityCatalog

ByUtterance = Mapping[str, Mapping[str, Sequence[str]]]
"""Utterance id -> class -> entries."""


def list_files(kind: Lists, data: Path, split: str) -> tuple[Path, ...]:
    """The file with the lists of a split; none where the corpus has no lists."""
    prefix = "" if split == "test" else f"{split}_"
    if kind == "none":
        return ()
    return (data / f"{prefix}{'entities.yaml' if kind == 'corpus' else 'utterance_entities.jsonl'}",)


def read_lists(kind: Lists, data: Path, split: str) -> EntityCatalog | dict[str, EntityCatalog] | None:
    """The lists of a split: one for all, one by utterance id, or None where the corpus has none.

    Raises:
        DataError: a line of a file with lists by utterance is not one of ``write_utterance_lists``.
        EntityListError: what is wrong with a list.
    """
    from lm.classes import EntityCatalog

    files = list_files(kind, data, split)
    if not files:
        return None
    if kind == "corpus":
        return EntityCatalog.load(files[0])
    catalogs = {}
    for number, line in enumerate(files[0].read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name, lists = row["id"], row["entities"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{files[0]}:{number}: {line[:60]!r}",
                '{"id": .., "entities": {class: [..]}}',
                "make the data again with --stage data --force",
            ) from None
        catalogs[name] = EntityCatalog.from_mapping(lists)
    return catalogs


def write_utterance_lists(lists: ByUtterance, data: Path, split: str) -> None:
    """Write lists by utterance, a JSON line each, sorted by id."""
    (target,) = list_files("utterance", data, split)
    rows = [json.dumps({"id": name, "entities": lists[name]}, ensure_ascii=False) for name in sorted(lists)]
    target.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
