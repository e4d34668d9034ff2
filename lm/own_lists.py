"""Lists of names that belong to single recordings: the contacts of who is calling, the drugs of a ward."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lm.classes import EntityCatalog
from lm.errors import EntityListError, VocativeError
from lm.text_files import is_jsonl, read_lines

OwnLists: TypeAlias = Mapping[str, EntityCatalog]
"""Entity lists by the id of the recording."""
_EXPECTED = '{"id": .., "entities": {class: [..]} or the path of a list}'


def read_entities(path: Path) -> EntityCatalog | dict[str, EntityCatalog]:
    """One list for all recordings, or lists by recording, whichever the file holds.

    Raises:
        EntityListError: what is wrong, with the line.
    """
    return read_own_lists(path) if has_own_lists(path) else EntityCatalog.load(path)


def has_own_lists(path: Path) -> bool:
    """Whether the first line is one of ``read_own_lists``; what cannot be read is not."""
    if not path.is_file() or not is_jsonl(path):
        return False
    try:
        row = json.loads(next((line for line in read_lines(path) if line.strip()), ""))
    except (VocativeError, ValueError):
        return False
    return isinstance(row, dict) and "entities" in row


def read_own_lists(path: Path) -> dict[str, EntityCatalog]:
    """Lists by recording of a ``.jsonl`` file (also .gz, .xz), a line ``{"id": "call-1", "entities": ..}`` each.

    ``entities`` are as in ``EntityCatalog.from_mapping``, or the path of a list, relative to the file; with ``{}``
    a recording has none. Further keys of a line are passed over.

    Raises:
        EntityListError: what is wrong, with the line.
    """
    found: dict[str, EntityCatalog] = {}
    read: dict[Path, EntityCatalog] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        name, entities = _row(line, where)
        if name in found:
            raise EntityListError(
                f"{where}: a second line of {name!r}", "a line for each id", "merge the two"
            )
        try:
            if isinstance(entities, str):
                file = path.parent / entities
                if file not in read:
                    read[file] = EntityCatalog.load(file)
                found[name] = read[file]
            else:
                found[name] = EntityCatalog.from_mapping(entities)
        except EntityListError as error:
            raise EntityListError(f"{where}: {error.given}", error.expected, error.fix) from None
    if not found:
        raise EntityListError(f"{path} is empty", f"lines of {_EXPECTED}", "check the file")
    return found


def _row(line: str, where: str) -> tuple[str, dict[str, Any] | str]:
    try:
        row = json.loads(line)
        name, entities = row["id"], row["entities"]
    except (ValueError, KeyError, TypeError):
        name = entities = None
    if not isinstance(name, (str, int)) or isinstance(name, bool) or not isinstance(entities, (dict, str)):
        raise EntityListError(f"{where}: {line.strip()[:60]!r}", _EXPECTED, "correct the line")
    return str(name), entities


def fingerprint(lists: OwnLists) -> str:
    """SHA-256 of the content, the same for any order of the recordings and of their lists."""
    rows = sorted((name, catalog.fingerprint()) for name, catalog in lists.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
