"""Where the entity lists of prepared data lie, whatever their kind, and how they are read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
        EntityListError: what is wrong with a list.
    """
    from lm.classes import EntityCatalog
    from lm.own_lists import read_own_lists

    files = list_files(kind, data, split)
    if not files:
        return None
    return EntityCatalog.load(files[0]) if kind == "corpus" else read_own_lists(files[0])


def write_utterance_lists(lists: ByUtterance, data: Path, split: str) -> None:
    """Write lists by utterance, a JSON line each, sorted by id."""
    (target,) = list_files("utterance", data, split)
    rows = [json.dumps({"id": name, "entities": lists[name]}, ensure_ascii=False) for name in sorted(lists)]
    target.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
