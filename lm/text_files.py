"""Text files, plain, .gz or .xz, as streams."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from lm.errors import DataError


def open_text(path: Path, mode: str = "r") -> IO[str]:
    """Open a text file in UTF-8 to read (``r``) or write (``w``); .gz and .xz are unpacked or packed on the way."""
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, mode + "t", encoding="utf-8"))
    if path.suffix == ".xz":
        return cast("IO[str]", lzma.open(path, mode + "t", encoding="utf-8"))
    return cast("IO[str]", path.open(mode, encoding="utf-8"))


def is_jsonl(path: Path) -> bool:
    """Whether a file is in JSON lines, by its name."""
    return path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.xz"))


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text without their ends, one at a time.

    Raises:
        DataError: it is not there, is no text, or was cut short.
    """
    try:
        with open_text(path) as file:
            for line in file:
                yield line.rstrip("\n")
    except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "a text file, .gz or .xz too", "check the path") from None
