"""What a language model's tokens are: subwords of a tokenizer, or whole words of a vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lm.errors import BundleError, DataError
from lm.tagged_text import CLASS_NAME, TaggedText, strip
from lm.tokenizer import Case, Spans, Tokenizer, normalise

UNKNOWN = "<unk>"
"""Token 0 of a vocabulary of words: any word that is not in it."""
TOKENIZER, WORDS = "tokenizer.model", "words.json"
"""Files of units."""


class Units(Protocol):
    """What tokenizers of subwords and vocabularies of words have in common.

    Attributes:
        pieces: surface tokens by id.
        classes: class tags; tag c is token V + c.
        case: of normalised text.
    """

    pieces: tuple[str, ...]
    classes: tuple[str, ...]
    case: Case

    @property
    def vocab_size(self) -> int:
        """V, the surface tokens."""
        ...

    @property
    def num_classes(self) -> int:
        """C, the class tags."""
        ...

    @property
    def digest(self) -> str:
        """Identifies the units."""
        ...

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """All tokens one text after another, -1 where there is none, and the number of tokens of each text."""
        ...

    def encode_tagged(self, tagged: TaggedText) -> tuple[list[int], Spans]:
        """Surface tokens, and (class, first token, end token) of each entity."""
        ...


class WordVocabulary:
    """Whole words as tokens: ``<unk>``, then the words of a list.

    Args:
        words: the words in the case of the text, without ``<unk>``.
        classes: class tags.
        case: to which text is brought.

    Raises:
        DataError: no words, a word twice, one with blanks or of another case.
    """

    def __init__(self, words: Sequence[str], classes: Sequence[str] = (), case: Case = "upper") -> None:
        self.pieces: tuple[str, ...] = (UNKNOWN, *words)
        self.classes: tuple[str, ...] = tuple(classes)
        self.case: Case = case
        self._number = {word: i for i, word in enumerate(self.pieces)}
        wrong = next((word for word in words if normalise(word, case) != word or not word), None)
        if not words or len(self._number) < len(self.pieces) or wrong is not None:
            given = (
                f"the word {wrong!r}" if wrong is not None else f"{len(words)} words, or one of them twice"
            )
            raise DataError(f"a vocabulary with {given}", f"different words in {case} case", "learn it anew")

    @classmethod
    def learn(
        cls, lines: Iterable[str], size: int, classes: Sequence[str] = (), case: Case = "upper"
    ) -> WordVocabulary:
        """The most frequent words of a text, ``size`` tokens with ``<unk>``; of equally frequent ones the first
        by spelling."""
        counts = Counter[str]()
        for line in lines:
            counts.update(normalise(strip(line) if "<" in line else line, case).split())
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ordered[: size - 1], classes, case)

    @classmethod
    def load(cls, path: Path) -> WordVocabulary:
        """Read what ``save`` wrote.

        Raises:
            BundleError: it is not there or damaged.
        """
        try:
            return cls.from_json(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path}: {error}", "a vocabulary of words", "check the path") from None

    @classmethod
    def from_json(cls, text: str, source: str) -> WordVocabulary:
        """Read what ``to_json`` gave; ``source`` is named in errors.

        Raises:
            BundleError: it is damaged.
        """
        try:
            found = json.loads(text)
            words, classes, case = found["words"], found["classes"], found["case"]
            names = all(CLASS_NAME.fullmatch(name) for name in classes)
            if case in ("upper", "lower") and names and all(isinstance(word, str) for word in words):
                return cls(words, classes, case)
        except (ValueError, KeyError, TypeError, DataError):
            pass
        raise BundleError(f"{source} is no vocabulary of words", "words, classes and case", "learn it anew")

    def to_json(self) -> str:
        """As text."""
        kept = {"words": self.pieces[1:], "classes": self.classes, "case": self.case}
        return json.dumps(kept, ensure_ascii=False)

    def save(self, path: Path) -> None:
        """Write the file that ``load`` reads."""
        path.write_text(self.to_json(), encoding="utf-8")

    @cached_property
    def digest(self) -> str:
        """Identifies the vocabulary."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """V, the words with ``<unk>``."""
        return len(self.pieces)

    @property
    def num_classes(self) -> int:
        """C, the class tags."""
        return len(self.classes)

    def number(self, word: str) -> int:
        """Token of a word in the vocabulary's case; 0 for one that it does not have."""
        return self._number.get(word, 0)

    def encode_flat(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See ``Units.encode_flat``; every word has a token."""
        rows = [[self._number.get(w, 0) for w in normalise(text, self.case).split()] for text in texts]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum())), lengths

    def encode_tagged(self, tagged: TaggedText) -> tuple[list[int], Spans]:
        """See ``Units.encode_tagged``.

        Raises:
            DataError: a class that the vocabulary does not have, or an entity without words.
        """
        ids: list[int] = []
        spans: Spans = []
        for segment in tagged.segments:
            part = self.encode_flat([segment.text])[0].tolist()
            if segment.class_name is not None:
                if segment.class_name not in self.classes or not part:
                    known = ", ".join(self.classes) or "none"
                    given = f"entity {segment.text!r} of class {segment.class_name!r}"
                    raise DataError(given, f"words, and a class of the vocabulary: {known}", "mend the text")
                spans.append((self.classes.index(segment.class_name), len(ids), len(ids) + len(part)))
            ids += part
        return ids, spans


def load_units(path: Path) -> Tokenizer | WordVocabulary:
    """Units from a file: a tokenizer's ``.model``, or ``.json`` of a vocabulary; or from the folder they are in.

    Raises:
        BundleError: there are none.
    """
    path = find_units(path)
    return WordVocabulary.load(path) if path.suffix == ".json" else Tokenizer.load(path)


def find_units(path: Path) -> Path:
    """The file of units in a work or model folder; ``path`` itself if it is no folder.

    Raises:
        BundleError: there is none.
    """
    if not path.is_dir():
        return path
    found = [path / name for name in (TOKENIZER, WORDS) if (path / name).is_file()]
    if not found:
        raise BundleError(f"{path} without units", f"{TOKENIZER} or {WORDS} in it", "check the path")
    return found[0]
