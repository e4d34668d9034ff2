"""Mini LibriSpeech (LibriSpeech's train-clean-5): read audiobooks, with lists of rare words.

There is no test set: the dev speakers go to dev and test in turn by speaker id, and none of them is trained on.
Words outside the 5,000 most frequent ones of LibriSpeech are entities of class ``rare``; each recording of dev and
test has its own list, its rare words among N others, as in Le et al. 2021 (arXiv 2104.02194).

Beside the corpus folder lies ``biasing_lists``, and ``books_text`` for text of books.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from asr.data.kaldi import Utterance
from lm.config import Config
from lm.errors import DataError
from lm.tagged_text import Segment, TaggedText, parse, render
from recipes.corpora.books import TABLE, TEXT, book_lines
from recipes.corpora.corpus import Corpus
from recipes.corpora.kaldi_source import by_speaker, read_split, write_lm_text, write_splits
from recipes.corpora.lists import write_utterance_lists

RARE = "rare"


class MiniLibrispeechConfig(Config):
    """Which lists and which text."""

    distractors: Literal[100, 500, 1000, 2000] = 100
    """N, words in the list of a recording that are not said in it."""
    books: bool = False
    """Whether the text for language models has books besides the training transcripts."""


def prepare(source: Path, data: Path, config: MiniLibrispeechConfig) -> None:
    """Write train, dev and test, the lists of each recording, and the text for language models.

    Raises:
        DataError: the corpus, the lists or the books are not there or do not fit together.
    """
    common = _common_words(_common_file(source))

    def tag(utterance: Utterance) -> str:
        return render(tag_rare(utterance.text, common))

    train = read_split(source, "train", tag)
    splits = {"train": train, **by_speaker(read_split(source, "dev", tag))}
    lists = read_lists(_lists_file(source, config))
    write_splits(splits, data)
    for split in ("dev", "test"):
        own = {u.id: {RARE: _list_of(u, lists)} for u in splits[split]}
        write_utterance_lists(own, data, split)
    evaluation = [parse(u.extra["tagged"]) for split in ("dev", "test") for u in splits[split]]
    write_lm_text(_text(source, train, evaluation, common, config), data)


def tag_rare(text: str, common: frozenset[str]) -> TaggedText:
    """Mark every word that is not in ``common`` (upper case)."""
    return TaggedText(tuple(Segment(w, None if w in common else RARE) for w in text.split()))


def read_lists(path: Path) -> dict[str, list[str]]:
    """Lists by utterance id in upper case, from the published format: id, text, rare words, list (JSON).

    Raises:
        DataError: the file is missing or not in that format.
    """
    opened: Callable[..., Iterator[str]] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:  # type: ignore[attr-defined]
            rows = [line.rstrip("\n").split("\t") for line in file]
        return {row[0]: [word.upper() for word in json.loads(row[3])] for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{path}: {error!r}",
            "lines of id, text, rare words and list",
            "put biasing_lists beside the corpus folder",
        ) from None


def _text(
    source: Path,
    train: list[Utterance],
    evaluation: list[TaggedText],
    common: frozenset[str],
    config: MiniLibrispeechConfig,
) -> Iterator[str]:
    yield from (u.extra["tagged"] for u in train)
    if config.books:
        for line in book_lines(_books(source), evaluation):
            yield render(tag_rare(line, common))


def _list_of(utterance: Utterance, lists: dict[str, list[str]]) -> list[str]:
    entries = lists.get(utterance.id, [])
    said = {text for _, text, _, _ in parse(utterance.extra["tagged"]).entities}
    if not said <= set(entries):
        raise DataError(
            f"the list of {utterance.id} lacks {min(said - set(entries))!r}",
            "the rare words of the transcript in it",
            "take the lists that were made for this corpus",
        )
    return entries


def _common_words(path: Path) -> frozenset[str]:
    try:
        return frozenset(path.read_text(encoding="utf-8").upper().split())
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}", "the frequent words", "put biasing_lists beside the corpus folder"
        ) from None


def _common_file(source: Path) -> Path:
    return source.resolve().parent / "biasing_lists" / "words" / "common_words_5k.txt"


def _lists_file(source: Path, config: MiniLibrispeechConfig) -> Path:
    folder = source.resolve().parent / "biasing_lists" / "mini_librispeech"
    return folder / f"dev.biasing_{config.distractors}.tsv{'' if config.distractors == 100 else '.gz'}"


def _books(source: Path) -> Path:
    return source.resolve().parent / "books_text"


def _inputs(source: Path, config: MiniLibrispeechConfig) -> tuple[Path, ...]:
    books = (_books(source) / TEXT, _books(source) / TABLE) if config.books else ()
    return (source / "train", source / "dev", _common_file(source), _lists_file(source, config), *books)


CORPUS = Corpus(
    name="mini_librispeech",
    config=MiniLibrispeechConfig,
    prepare=prepare,
    description="prepare mini_librispeech from {source}",
    inputs=_inputs,
    classes=(RARE,),
    lists="utterance",
)
