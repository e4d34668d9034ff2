"""SentencePiece with Vocative's numbering: surface tokens 0..V-1, then one tag for each entity class.

SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226) keeps its own ids inside; its unknown and control
pieces have no id here, so text that needs them is reported and never guessed. The case is not stored:
training folds all text to upper or lower case, so after loading the letters of the pieces tell it.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lm.errors import BundleError, ConfigError, DataError, VocativeError
from lm.tagged_text import CLASS_NAME, TaggedText, strip

Case = Literal["upper", "lower"]
ModelType = Literal["unigram", "bpe", "char"]
Spans = list[tuple[int, int, int]]

WORD_START = "\u2581"
_TAG = re.compile(rf"<({CLASS_NAME.pattern})>")
_APOSTROPHES = "'`\u00b4\u02b9\u02bb\u02bc\u02bd\u02c8\u2018\u2019\u201b\u2032\uff07"
_SPOKEN_SYMBOLS = "&@%+#"
_SEPARATORS = "/\\,;:|"
# NFKD takes the accent off a letter, but these are letters of their own to Unicode.
_LETTERS = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ħ": "h"}
_CAPITALS = {letter.upper(): plain.upper() for letter, plain in _LETTERS.items()}
_PLAIN_LETTERS = str.maketrans({**_LETTERS, **_CAPITALS, "ß": "ss", "ẞ": "SS", "ı": "i"})
# To NFKD an acute accent used as apostrophe is a blank with an accent.
_STRAIGHT = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
_ACCENTS = re.compile("[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]")
_QUOTES = re.compile("''+")


class Tokenizer:
    """Text to token ids and back.

    Args:
        model_bytes: a serialised SentencePiece model.
        source: where it came from, for error messages.
    """

    def __init__(self, model_bytes: bytes, source: str = "the tokenizer model") -> None:
        self.model_bytes = model_bytes
        self._processor = _open(model_bytes, source)
        pieces, tags, ids = _number(self._processor, source)
        self.pieces: tuple[str, ...] = pieces
        self.classes: tuple[str, ...] = tags
        self._ids = ids
        self.starts_word: npt.NDArray[np.bool_] = np.array(
            [p.startswith(WORD_START) for p in pieces], dtype=bool
        )
        self.case: Case = _case_of(pieces, source)

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        vocab_size: int,
        classes: Sequence[str] = (),
        model_type: ModelType = "unigram",
        case: Case = "upper",
    ) -> Tokenizer:
        """Train on plain or tagged text (a tagged entity counts as its words).

        ``vocab_size`` is V, the surface tokens wanted; small texts may yield fewer. Every character of the
        normalised text gets a token.
        """
        import sentencepiece

        for name in classes:
            if not CLASS_NAME.fullmatch(name) or list(classes).count(name) > 1:
                raise ConfigError(
                    f"class {name!r} of {list(classes)}", "distinct names like 'contact'", "rename it"
                )
        corpus = _Corpus(lines, case)
        model = io.BytesIO()
        failure: RuntimeError | None = None
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus),
                model_writer=model,
                vocab_size=vocab_size + len(classes) + 1,
                model_type=model_type,
                user_defined_symbols=[f"<{name}>" for name in classes],
                character_coverage=1.0,
                byte_fallback=False,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                # Lines longer than this are skipped without a word.
                max_sentence_length=1 << 30,
                unk_piece="<UNK>",
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                minloglevel=3,
            )
        except RuntimeError as error:
            failure = error
        corpus.check(vocab_size)
        if failure is not None:
            raise DataError(f"SentencePiece failed ({failure})", "text it can train on", "give more text")
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a model file."""
        try:
            return cls(Path(path).read_bytes(), source=str(path))
        except OSError as error:
            raise BundleError(
                f"{path} cannot be read ({error.strerror})", "a tokenizer model", "check the path"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write the model file that ``load`` reads."""
        Path(path).write_bytes(self.model_bytes)

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self.model_bytes,)

    @cached_property
    def digest(self) -> str:
        """Identifies the tokenizer: SHA-256 of its model."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def vocab_size(self) -> int:
        """V, the surface tokens; class tags and blank are not counted."""
        return len(self.pieces)

    @property
    def num_classes(self) -> int:
        """C, the class tags; their ids are V..V+C-1."""
        return len(self.classes)

    @cached_property
    def characters(self) -> frozenset[str]:
        """The characters that the surface tokens can spell."""
        return frozenset("".join(self.pieces)) - {WORD_START}

    def class_id(self, name: str) -> int:
        """Index of a class in ``classes``; its tag is token ``vocab_size + class_id(name)``."""
        if name not in self.classes:
            known = ", ".join(self.classes) or "none (this tokenizer was trained without classes)"
            raise DataError(f"class {name!r}", f"one of the tokenizer's classes: {known}", "rename the class")
        return self.classes.index(name)

    def normalise(self, text: str) -> str:
        """Spoken form of ``text`` in the model's case.

        NFKC; apostrophes straightened; accents stripped (``ø`` becomes ``o``); hyphens, dashes, slashes,
        underscores, brackets, commas and colons become blanks; other punctuation is dropped. What is spoken
        but is no letter is kept: digits, currency signs and ``& @ % + #``; they encode only if the training
        text held them.
        """
        return normalise(text, self.case)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` after ``normalise``; a character without a token is a DataError."""
        ids, bad = self.try_encode(text)
        if ids is None:
            raise self._unencodable(text, bad)
        return ids

    def try_encode(self, text: str) -> tuple[list[int] | None, str]:
        """``(ids, "")``, or ``(None, characters)`` with the distinct characters that have no token."""
        normal = self.normalise(text)
        ids: list[int] = self._ids[self._processor.encode(normal)].tolist()
        if min(ids, default=0) >= 0:
            return ids, ""
        return None, self._bad_characters(normal)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of many texts at once; the first that cannot be encoded is a DataError."""
        flat, lengths = self.encode_flat(texts)
        ends = np.cumsum(lengths)
        if (flat < 0).any():
            text = texts[int(np.searchsorted(ends, int(np.argmax(flat < 0)), side="right"))]
            raise self._unencodable(text, self._bad_characters(self.normalise(text)))
        ids = flat.tolist()
        return [ids[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All token ids one text after another, and the number of tokens of each text.

        Nothing raises: characters without a token show as -1.
        """
        normal = [normalise(text, self.case) for text in texts]
        encoded = self._processor.encode(normal, num_threads=1) if normal else []
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        flat = np.fromiter(chain.from_iterable(encoded), dtype=np.int64, count=int(lengths.sum()))
        return self._ids[flat], lengths

    def encode_tagged(self, tagged: TaggedText) -> tuple[list[int], Spans]:
        """Surface ids, and ``(class_index, start_token, end_token)`` of each entity (end exclusive).

        Segments are encoded one by one, so the tokens of a span are its own and the first starts a word.
        """
        ids: list[int] = []
        spans: Spans = []
        for segment in tagged.segments:
            part = self.encode(segment.text)
            if segment.class_name is not None:
                index = self.class_id(segment.class_name)
                if not part:
                    raise DataError(
                        f"entity {segment.text!r} of class {segment.class_name!r} is only punctuation",
                        "a span with spoken words",
                        "remove the tag or mend the text",
                    )
                spans.append((index, len(ids), len(ids) + len(part)))
            ids += part
        return ids, spans

    def render_pattern(self, ids: Sequence[int], spans: Spans) -> list[int]:
        """``ids`` with the tokens of each span replaced by the class tag V + class_index."""
        pattern: list[int] = []
        position = 0
        for index, start, end in sorted(spans, key=lambda span: span[1]):
            pattern += ids[position:start]
            pattern.append(self.vocab_size + index)
            position = end
        pattern += ids[position:]
        return pattern

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; class tags show as ``<contact>``."""
        return " ".join(word for word, _, _ in self.words(ids))

    def words(self, ids: Iterable[int]) -> list[tuple[str, int, int]]:
        """``(word, first_token, last_token_exclusive)`` of each word; a class tag is a word of its own.

        Word marks before a word belong to it; marks that no letter follows belong to no word.
        """
        found: list[tuple[str, int, int]] = []
        text, first, after_tag = "", 0, False
        position = 0
        for position, token in enumerate(ids):
            is_tag = token >= self.vocab_size
            if text and (is_tag or after_tag or self.starts_word[token]):
                found.append((text, first, position))
                text, first = "", position
            text += (
                f"<{self.classes[token - self.vocab_size]}>"
                if is_tag
                else self.pieces[token].lstrip(WORD_START)
            )
            after_tag = is_tag
        if text:
            found.append((text, first, position + 1))
        return found

    def _bad_characters(self, normal: str) -> str:
        pieces = zip(
            self._processor.encode(normal), self._processor.encode(normal, out_type=str), strict=True
        )
        return "".join(dict.fromkeys("".join(piece for id_, piece in pieces if self._ids[id_] < 0)))

    def _unencodable(self, text: str, bad: str) -> DataError:
        return DataError(
            f"{text!r} has characters that no token spells: {bad!r}",
            f"text of the characters {''.join(sorted(self.characters))!r}",
            "write it as it is spoken (digits as words), or train the tokenizer on text that has them",
        )


class _Corpus:
    """Normalised training lines, with the characters met on the way.

    SentencePiece turns an exception of its iterator into a crash, so it is kept for ``check`` to raise.
    """

    def __init__(self, lines: Iterable[str], case: Case) -> None:
        self._lines = lines
        self._case: Case = case
        self._characters: set[str] = set()
        self._error: VocativeError | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            for line in self._lines:
                text = normalise(strip(line) if "<" in line or ">" in line else line, self._case)
                if text:
                    self._characters.update(text)
                    yield text
        except VocativeError as error:
            self._error = error

    def check(self, vocab_size: int) -> None:
        """Raise what was wrong with the lines, or with the vocabulary size for their characters."""
        if self._error is not None:
            raise self._error
        if not self._characters:
            raise DataError("no words to train the tokenizer on", "lines of text", "check the training text")
        least = len(self._characters | {" "})
        if vocab_size < least:
            raise ConfigError(
                f"tokenizer vocab_size {vocab_size}",
                f"at least {least}, one token for each character of the text and the word mark",
                "raise vocab_size, or clean the text of rare characters",
            )


class _Characters(dict[int, str]):
    """Translation table of ``str.translate``, filled as characters turn up."""

    def __missing__(self, code: int) -> str:
        self[code] = spoken = _spoken(chr(code))
        return spoken


def _spoken(character: str) -> str:
    category = unicodedata.category(character)
    if character in _APOSTROPHES:
        return "'"
    if category[0] in "LNM" or category == "Sc" or character in _SPOKEN_SYMBOLS:
        return character
    if (
        category[0] == "Z"
        or category in ("Pd", "Pc", "Ps", "Pe")
        or character in _SEPARATORS
        or character.isspace()
    ):
        return " "
    return " " if character in "\u2044\u2212" else ""


_CHARACTERS = _Characters()


def normalise(text: str, case: Case) -> str:
    """Spoken form of ``text`` in upper or lower case; ``Tokenizer.normalise`` says what it does."""
    if not text.isascii():
        bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.translate(_STRAIGHT)))
        text = unicodedata.normalize("NFKC", bare).translate(_PLAIN_LETTERS)
    if ".." in text:
        text = text.replace("..", " ")
    text = text.translate(_CHARACTERS)
    text = text.upper() if case == "upper" else text.lower()
    if "'" in text:
        text = _QUOTES.sub("", text)
        return " ".join(word for word in text.split() if word != "'")
    return " ".join(text.split())


def _open(model_bytes: bytes, source: str) -> Any:
    import sentencepiece

    problem = "is empty"
    if model_bytes:
        try:
            return sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError:
            problem = "is damaged or no SentencePiece model"
    raise BundleError(f"{source} {problem}", "a SentencePiece model", "copy the model folder again")


def _number(processor: Any, source: str) -> tuple[tuple[str, ...], tuple[str, ...], npt.NDArray[np.int64]]:
    """Surface pieces, classes, and the id here of each SentencePiece id (-1 where it has none)."""
    pieces: list[str] = []
    tags: list[str] = []
    ids = np.full(processor.vocab_size(), -1, dtype=np.int64)
    for index in range(processor.vocab_size()):
        piece = processor.id_to_piece(index)
        if processor.is_unknown(index) or processor.is_control(index) or processor.is_unused(index):
            continue
        tag = _TAG.fullmatch(piece)
        if tag:
            tags.append(tag[1])
        elif processor.is_byte(index) or WORD_START in piece[1:]:
            raise BundleError(
                f"{source} has the piece {piece!r}",
                "pieces of characters within one word (no byte fallback, no pieces across words)",
                "train the tokenizer with Tokenizer.train",
            )
        else:
            ids[index] = len(pieces)
            pieces.append(piece)
    if not pieces:
        raise BundleError(f"{source} has no pieces", "a SentencePiece model", "copy the model folder again")
    return tuple(pieces), tuple(tags), ids


def _case_of(pieces: Sequence[str], source: str) -> Case:
    letters = sorted(set("".join(pieces)))
    upper = [c for c in letters if c.isupper() and c.lower() != c]
    lower = [c for c in letters if c.islower() and c.upper() != c]
    if upper and lower:
        raise BundleError(
            f"{source} mixes cases ({upper[0]!r} and {lower[0]!r})",
            "pieces of one case",
            "train it on folded text",
        )
    return "upper" if upper else "lower"
