"""Hashes of files and folders by content, remembered so that an unchanged file is read once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A file changed within the clock's grain of being hashed may change again without a new mtime: git calls such
# an entry racily clean. It is hashed again next time instead of being believed.
RACY_NS = 2_000_000_000


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON mapping in ``path``, or None where there is none or it is damaged."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return loaded if isinstance(loaded, dict) else None


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path relative to ``folder``, path) of every file below it and every link to a folder, sorted."""
    found: list[tuple[str, Path]] = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in files + links:
            path = Path(parent, name)
            found.append((path.relative_to(folder).as_posix(), path))
    yield from sorted(found)


def signature(path: Path) -> str:
    """Size and mtime of a file, or a hash over those of all files in a folder; 'missing' where there is none.

    Cheap (nothing is read): it notices that somebody touched an output.
    """
    if path.is_dir():
        listing = [(name, _stat(item)) for name, item in walk(path)]
        return f"folder:{len(listing)}:{_sha256(canonical(listing).encode())}"
    return _stat(path)


def _stat(path: Path) -> str:
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size}:{found.st_mtime_ns}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ContentHasher:
    """Content hashes of files and folders, cached by (size, mtime_ns) in one JSON file.

    Args:
        cache: where the cache is kept; ``save`` writes it.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, Any] = read_json(cache) or {}
        self._changed = False

    def hash(self, path: Path) -> str:
        """Hash of a file's bytes, or of a folder's sorted listing with the hash of each file."""
        if path.is_dir():
            return "folder:" + _sha256(canonical([(n, self._file(p)) for n, p in walk(path)]).encode())
        return self._file(path)

    def save(self) -> None:
        """Write the cache if it holds anything new, without entries of files that are gone."""
        if self._changed:
            self._known = {name: entry for name, entry in self._known.items() if os.path.exists(name)}
            write_json(self._cache, self._known)
            self._changed = False

    def _file(self, path: Path) -> str:
        if path.is_dir():
            return f"link:{os.readlink(path)}"
        stat = _stat(path)
        if stat == "missing":
            return stat
        name = os.path.abspath(path)
        entry = self._known.get(name)
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == stat:
            return str(entry[1])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time_ns() - path.stat().st_mtime_ns > RACY_NS:
            self._known[name] = [stat, digest]
            self._changed = True
        return digest
