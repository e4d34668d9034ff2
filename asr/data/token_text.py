"""Text as tokens in files: encoded once from a stream, then read from disk where it is needed.

A folder holds ``tokens.bin`` (int32, one sentence after another), ``ends.bin`` (int64, where each ends),
``words.bin`` (int32, words of each), ``spans.bin`` (int32, rows of sentence, class, first token, end token, words)
and ``text.json``; for a text with contexts also ``contexts.jsonl``, that of each sentence. However long the text
is, memory holds what is asked for: the files are mapped.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from asr.data.examples import Example
from lm.errors import BundleError, DataError
from lm.tagged_text import parse
from lm.text_files import read_lines
from lm.tokenizer import normalise
from lm.utterance_context import UtteranceContext
from lm.vocabulary import UNKNOWN, Units

Ints = npt.NDArray[np.int64]
CONTEXTS = "contexts.jsonl"
CHUNK = 4096
"""Sentences encoded at once."""


@dataclass(frozen=True)
class TextSummary:
    """What is in an encoded text.

    Attributes:
        sentences: those kept.
        words: in them; an entity counts as its words.
        tokens: in them, entities as words; ends of sentences not counted.
        entities: in them.
        unknown: words that became ``<unk>``.
        left_out: sentences with characters that no token spells.
        units: digest of the units.
    """

    sentences: int
    words: int
    tokens: int
    entities: int
    unknown: int
    left_out: int
    units: str


def encode_text(
    lines: Iterable[str],
    units: Units,
    folder: Path,
    contexts: Iterable[UtteranceContext] | None = None,
) -> TextSummary:
    """Write a text, plain or tagged, one sentence a line, as tokens; empty lines are passed over.

    Args:
        lines: the sentences.
        units: what they are encoded in.
        folder: to write, in place of what is there.
        contexts: what each line was said in, if that is known.

    Raises:
        DataError: no sentence can be encoded, or tags are broken.
    """
    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    names = ("tokens", "ends", "words", "spans")
    files = [(scratch / f"{name}.bin").open("wb") for name in names]
    try:
        writer = _Writer(units, *files)
        stream, surroundings = iter(lines), iter(contexts or ())
        with (scratch / CONTEXTS).open("w") if contexts is not None else nullcontext() as told:
            while chunk := list(islice(stream, CHUNK)):
                kept, said = writer.add(chunk), list(islice(surroundings, CHUNK))
                if told is not None:
                    told.writelines(json.dumps(said[number]) + "\n" for number in kept)
    finally:
        for file in files:
            file.close()
    summary = writer.summary()
    if not summary.sentences:
        raise DataError(
            f"a text of {summary.left_out} sentences of which none can be encoded",
            "sentences in the characters of the units",
            "check the text, or take units learned from text like it",
        )
    (scratch / "text.json").write_text(json.dumps(asdict(summary)))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return summary


class _Writer:
    """Encodes sentences and appends them to the files."""

    def __init__(
        self, units: Units, tokens: BinaryIO, ends: BinaryIO, words: BinaryIO, spans: BinaryIO
    ) -> None:
        self._units = units
        self._files = tokens, ends, words, spans
        self._unknown = 0 if units.pieces[0] == UNKNOWN else -1
        self._sentences = self._words = self._tokens = self._entities = self._unknowns = self._left_out = 0

    def add(self, lines: Sequence[str]) -> list[int]:
        """Some more sentences; returns which of them were kept."""
        kept, begin = list[int](), 0
        for tagged, run in _runs(lines):
            if tagged:
                kept += [begin + number for number in self._add_tagged(run)]
            else:
                normal = [normalise(line, self._units.case) for line in run]
                numbers = np.array([number for number, text in enumerate(normal, begin) if text], np.int64)
                texts = [text for text in normal if text]
                flat, lengths = self._units.encode_flat(texts)
                words = np.fromiter((text.count(" ") + 1 for text in texts), np.int64, len(texts))
                kept += numbers[self._append(flat, lengths, words)].tolist()
            begin += len(run)
        return kept

    def _add_tagged(self, lines: Sequence[str]) -> Iterator[int]:
        for number, line in enumerate(lines):
            tagged = parse(line)
            try:
                ids, spans = self._units.encode_tagged(tagged)
            except DataError:
                known = all(name in self._units.classes for name, *_ in tagged.entities)
                if known and not self._spells(tagged.surface):
                    self._left_out += 1
                    continue
                raise
            counts = [len(normalise(text, self._units.case).split()) for _, text, *_ in tagged.entities]
            rows = [(self._sentences, *span, count) for span, count in zip(spans, counts, strict=True)]
            self._files[3].write(np.array(rows, np.int32).tobytes())
            self._entities += len(rows)
            words = len(normalise(tagged.surface, self._units.case).split())
            if self._append(np.array(ids, np.int64), np.array([len(ids)]), np.array([words]))[0]:
                yield number

    def _spells(self, text: str) -> bool:
        return bool((self._units.encode_flat([text])[0] >= 0).all())

    def _append(self, flat: Ints, lengths: Ints, words: Ints) -> npt.NDArray[np.bool_]:
        owner = np.repeat(np.arange(len(lengths)), lengths)
        bad = np.zeros(len(lengths), np.bool_)
        bad[owner[flat < 0]] = True
        bad |= lengths == 0
        self._left_out += int((bad & (lengths > 0)).sum())
        flat, lengths, words = flat[~bad[owner]], lengths[~bad], words[~bad]
        ends = self._tokens + np.cumsum(lengths)
        for file, values, kind in zip(self._files, (flat, ends, words), ("i4", "i8", "i4"), strict=False):
            file.write(values.astype(kind).tobytes())
        self._tokens += len(flat)
        self._sentences += len(lengths)
        self._words += int(words.sum())
        self._unknowns += int((flat == self._unknown).sum())
        return ~bad

    def summary(self) -> TextSummary:
        """What has been written."""
        return TextSummary(
            self._sentences,
            self._words,
            self._tokens,
            self._entities,
            self._unknowns,
            self._left_out,
            self._units.digest,
        )


def _runs(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    """Lines in order, tagged and plain ones apart."""
    run: list[str] = []
    kind = False
    for line in lines:
        tagged = "<" in line or ">" in line
        if run and tagged != kind:
            yield kind, run
            run = []
        kind = tagged
        run.append(line)
    if run:
        yield kind, run


class TokenText:
    """An encoded text.

    Args:
        folder: what ``encode_text`` wrote.

    Attributes:
        summary: what is in it.
        lengths: ``(S,)`` tokens of each sentence, entities as words.
        words: ``(S,)`` words of each sentence.

    Raises:
        BundleError: the folder is not there or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.summary = TextSummary(**json.loads((folder / "text.json").read_text()))
            self._tokens = np.memmap(folder / "tokens.bin", np.int32, "r")
            self._ends = np.memmap(folder / "ends.bin", np.int64, "r")
            self.words = np.memmap(folder / "words.bin", np.int32, "r")
            self._span_rows = np.fromfile(folder / "spans.bin", np.int32).reshape(-1, 5)
        except (OSError, ValueError, TypeError) as error:
            raise BundleError(f"{folder}: {error}", "an encoded text", "encode the text again") from None
        self.lengths: Ints = np.diff(self._ends, prepend=0)
        self._spans: dict[int, list[tuple[int, int, int]]] = {}
        for sentence, index, first, end, _ in self._span_rows.tolist():
            self._spans.setdefault(sentence, []).append((index, first, end))

    def __len__(self) -> int:
        """S, the sentences."""
        return len(self._ends)

    def contexts(self) -> list[UtteranceContext] | None:
        """What each sentence was said in; None for a text without contexts."""
        path = self._folder / CONTEXTS
        if not path.exists():
            return None
        try:
            found = [json.loads(line) for line in read_lines(path)]
        except ValueError as error:
            raise BundleError(f"{path}: {error}", "an encoded text", "encode the text again") from None
        return found

    @property
    def digest(self) -> str:
        """Identifies the text: a hash of its tokens, ends, entities and contexts."""
        digest = hashlib.sha256()
        names = ["tokens.bin", "ends.bin", "spans.bin"]
        for name in [*names, CONTEXTS] if (self._folder / CONTEXTS).exists() else names:
            with (self._folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def sentence(self, index: int) -> npt.NDArray[np.int32]:
        """Surface tokens of a sentence."""
        end = int(self._ends[index])
        found: npt.NDArray[np.int32] = self._tokens[end - int(self.lengths[index]) : end]
        return found

    def spans(self, index: int) -> list[tuple[int, int, int]]:
        """Entities of a sentence: class, first token, end token."""
        return self._spans.get(index, [])

    def counts(self, classes: bool) -> tuple[Ints, Ints]:
        """Tokens and words ``(S,)`` of each sentence; with ``classes`` an entity is one of either."""
        tokens, words = self.lengths.copy(), np.array(self.words, np.int64)
        if classes:
            sentence, _, first, end, count = self._span_rows.T.astype(np.int64)
            np.subtract.at(tokens, sentence, end - first - 1)
            np.subtract.at(words, sentence, count - 1)
        return tokens, words

    def pattern(self, index: int, num_tokens: int, replace: Sequence[bool] | None = None) -> list[int]:
        """Tokens of a sentence with the entities chosen by ``replace``, all if None, turned into their tag."""
        spans = self.spans(index)
        labels = tuple(self.sentence(index).tolist())
        chosen = [True] * len(spans) if replace is None else replace
        return Example("", labels, tuple(spans)).pattern(num_tokens, chosen)


def describe_text(summary: TextSummary, units: Units) -> str:
    """One line about an encoded text."""
    words = units.pieces[0] == UNKNOWN
    parts = [f"{summary.sentences} sentences, {summary.words} words"]
    if not words:
        parts.append(f"{summary.tokens} subwords")
    else:
        parts.append(f"{100 * summary.unknown / max(1, summary.words):.2f} % of the words are unknown")
    if summary.entities:
        parts.append(f"{summary.entities} entities")
    if summary.left_out:
        parts.append(f"{summary.left_out} sentences left out that the units cannot spell")
    return ", ".join(parts)
