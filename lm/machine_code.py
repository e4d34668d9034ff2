"""Functions that numba compiles, kept on disk for as long as the sources they were made from stay the same.

numba looks at the file of a function alone: one that calls another file's function, or uses its constants,
would go on with what those were when it was compiled, after an upgrade as well. Here a cache folder belongs to the
content of all these files.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

_numba: Any = numba.config  # whose settings no type knows

FAST = {"reassoc", "contract", "nsz"}
"""Liberties with sums of floats that keep infinities and NaN what they are."""

_IMPORT = re.compile(r"^from ((?:lm|decoding|asr)\.[\w.]+) import", re.MULTILINE)


def compiled(function: Function) -> Function:
    """The function in machine code, compiled where it is first called with arguments of their types."""
    return _compile(function, {})


def compiled_fast(function: Function) -> Function:
    """The same, with the liberties of ``FAST``."""
    return _compile(function, {"fastmath": FAST})


def _compile(function: Function, options: dict[str, Any]) -> Function:
    before = _numba.CACHE_DIR
    try:
        _numba.CACHE_DIR = str(_folder(Path(function.__code__.co_filename)))
        made: Function = numba.njit(cache=True, **options)(function)
        return made
    finally:
        _numba.CACHE_DIR = before


@cache
def _folder(path: Path) -> Path:
    """Where the functions of a file are kept: beside it, in numba's folder if one is set, or in the user's."""
    digest = hashlib.sha256()
    for source in sorted(sources(path)):
        digest.update(source.read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    if _numba.CACHE_DIR:
        return Path(_numba.CACHE_DIR) / name
    if os.access(path.parent, os.W_OK):
        return path.parent / "__pycache__" / name
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vocative" / name


def sources(path: Path) -> set[Path]:
    """A file and those that it imports from, through all of them that hold compiled functions."""
    root, found, waiting = Path(__file__).parents[1], {path}, [path]
    while waiting:
        for module in _IMPORT.findall(waiting.pop().read_text(encoding="utf-8")):
            other = root / f"{module.replace('.', '/')}.py"
            if other not in found:
                found.add(other)
                if "lm.machine_code import" in other.read_text(encoding="utf-8"):
                    waiting.append(other)
    return found
