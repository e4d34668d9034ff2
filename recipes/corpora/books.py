"""Text of books for language models: one sentence a line, in the spelling of LibriSpeech, book by book.

A book that holds a sentence of the evaluation speech is left out whole.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from asr.leaks import overlap
from lm.errors import DataError
from lm.tagged_text import TaggedText
from recipes.console import say

TEXT, TABLE = "train.txt.xz", "books.tsv"


def book_lines(folder: Path, evaluation: Sequence[TaggedText]) -> Iterator[str]:
    """Lines of the books of ``folder`` that hold no sentence of ``evaluation``, one book in memory at a time.

    Raises:
        DataError: the text or its table is missing or damaged.
    """
    kept = left_out = lines = 0
    for title, book in _books(folder):
        found = overlap(evaluation, book)
        if found.known:
            left_out += 1
            say(f"    left out {title}: it holds {found.example!r}")
            continue
        kept += 1
        lines += len(book)
        yield from book
    say(f"    {lines} sentences of {kept} books; {left_out} books left out")


def _books(folder: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if row["split"] == "train"]
        sizes = sorted((int(row["first_line"]), int(row["sentences"]), row["title"]) for row in rows)
        with lzma.open(folder / TEXT, "rt", encoding="utf-8") as text:
            for first, count, title in sizes:
                book = [line.rstrip("\n") for line in islice(text, count)]
                if len(book) != count:
                    raise DataError(
                        f"{folder / TEXT} ends before {title}, line {first}", TABLE, "restore the text"
                    )
                yield title, book
    except (OSError, lzma.LZMAError, UnicodeDecodeError, KeyError, ValueError) as error:
        raise DataError(
            f"the books in {folder}: {error!r}",
            f"{TEXT} and {TABLE}",
            "put the books beside the corpus folder, or set data.books=false",
        ) from None
