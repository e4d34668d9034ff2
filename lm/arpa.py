"""ARPA files of n-gram models, plain, .gz or .xz; log probabilities are natural logs here and of base 10 there."""

from __future__ import annotations

import lzma
import math
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lm.errors import DataError
from lm.text_files import open_text

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LOG10 = math.log(10.0)
BLANKS = " \t\r\n"
"""What parts words; other blanks of Unicode may be in them."""


class NGrams(NamedTuple):
    """The n-grams of one order: ``words`` ``(N, n)``, log probabilities and log back-off weights ``(N,)``."""

    words: Ints
    logp: Floats
    backoff: Floats


def read_arpa(path: Path, number: Mapping[str, int]) -> tuple[list[NGrams], int]:
    """The n-grams of every order whose words are all known, and how many were left out.

    Args:
        path: the file.
        number: the words that are known.

    Raises:
        DataError: not an ARPA file, or a broken one; the line is named.
    """
    try:
        with open_text(path, "r") as file:
            return _Reader(path, file, number).read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}", "an ARPA file that can be read", "copy it again") from None


def write_arpa(
    path: Path,
    words: Sequence[str],
    levels: Sequence[tuple[Ints, Ints]],
    logps: Sequence[Floats],
    backoffs: Sequence[Floats],
) -> None:
    """Write a model.

    Args:
        path: where to; .gz and .xz are compressed.
        words: all words by number.
        levels: for every order the first n - 1 words, as a row of the order below, and the last word.
        logps: for every order.
        backoffs: for every order but the highest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing.{path.name}")
    with open_text(scratch, "w") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(x)}\n" for n, x in enumerate(logps, start=1)))
        before = [""]
        for n, ((prefix, last), logp) in enumerate(zip(levels, logps, strict=True), start=1):
            names = [f"{before[p]} {words[w]}".strip() for p, w in zip(prefix, last, strict=True)]
            weights = backoffs[n - 1] / LOG10 if n < len(logps) else None
            file.write(f"\n\\{n}-grams:\n")
            for i, name in enumerate(names):
                ending = f"\t{weights[i]:.7g}" if weights is not None else ""
                file.write(f"{logp[i] / LOG10:.7g}\t{name}{ending}\n")
            before = names
        file.write("\n\\end\\\n")
    os.replace(scratch, path)


class _Reader:
    """Reads one file, line by line."""

    def __init__(self, path: Path, file: IO[str], number: Mapping[str, int]) -> None:
        self._path, self._number, self._line = path, number, 0
        self._lines = self._numbered(file)
        self._dropped = 0

    def read(self) -> tuple[list[NGrams], int]:
        """All sections."""
        sizes = self._header()
        found = [self._section(n, size, n == len(sizes)) for n, size in enumerate(sizes, start=1)]
        if self._next() != "\\end\\":
            self._refuse("another section", "\\end\\")
        return found, self._dropped

    def _numbered(self, file: IO[str]) -> Iterator[str]:
        for self._line, line in enumerate(file, start=1):
            if text := line.strip(BLANKS):
                yield text

    def _next(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self._refuse("the end of the file", "more of the model; it was cut short")
        return line

    def _header(self) -> list[int]:
        if self._next() != "\\data\\":
            self._refuse("no \\data\\", "an ARPA file")
        sizes = list[int]()
        while (line := self._next()).startswith("ngram "):
            order, equals, size = line.removeprefix("ngram ").partition("=")
            if not equals or order.strip() != str(len(sizes) + 1) or not size.strip().isdecimal():
                self._refuse(repr(line), f"ngram {len(sizes) + 1}=COUNT")
            sizes.append(int(size))
        if not sizes or line != "\\1-grams:":
            self._refuse(repr(line), "counts and then \\1-grams:")
        return sizes

    def _section(self, n: int, size: int, last: bool) -> NGrams:
        if n > 1 and (line := self._next()) != f"\\{n}-grams:":
            self._refuse(repr(line), f"\\{n}-grams: behind {n - 1}-grams as many as announced")
        words, values = array("q"), array("d")  # lists of numbers would take many times the memory
        for _ in range(size):
            line = self._next()
            fields = [field for field in line.replace("\t", " ").split(" ") if field]
            if len(fields) not in ((n + 1,) if last else (n + 1, n + 2)):
                self._refuse(
                    repr(line), f"a log probability, {n} words{'' if last else ', a back-off weight'}"
                )
            row = [self._number.get(word, -1) for word in fields[1 : n + 1]]
            if min(row) < 0:
                self._dropped += 1
                continue
            try:
                value = (float(fields[0]), float(fields[n + 1]) if len(fields) == n + 2 else 0.0)
            except ValueError:
                self._refuse(repr(line), "numbers before and behind the words")
            if not (value[0] <= 0.0 and math.isfinite(value[1])):
                self._refuse(repr(line), "a log probability of at most 0, a finite back-off weight")
            words.extend(row)
            values.extend(value)
        logp, backoff = np.array(values).reshape(-1, 2).T * LOG10
        return NGrams(np.array(words).reshape(-1, n), logp, backoff)

    def _refuse(self, given: str, expected: str) -> NoReturn:
        raise DataError(f"{self._path}, line {self._line}: {given}", expected, "write the file anew")
