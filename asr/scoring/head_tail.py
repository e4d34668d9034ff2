"""The frequent and the rare half of a text: where a language model is better says what for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from asr.data.token_text import TokenText
from lm.tokenizer import Tokenizer
from lm.vocabulary import UNKNOWN, WordVocabulary

Word = tuple[int, ...]


def head_and_tail(
    train: TokenText, text: TokenText, units: Tokenizer | WordVocabulary
) -> dict[str, npt.NDArray[np.bool_]]:
    """Two halves of a text ``(S,)``, by how often the rarest word of each sentence is in the training text.

    Sentences as rare as the median are in the tail; so the head may be smaller, and has no sentence where all are
    alike. Words are told apart by their tokens; ``<unk>`` counts as never seen.
    """
    seen = Counter[Word]()
    for index in range(len(train)):
        seen.update(_words(train, index, units))
    if units.pieces[0] == UNKNOWN:
        del seen[0,]
    rarest = np.array([min(seen[word] for word in _words(text, n, units)) for n in range(len(text))])
    middle = np.median(rarest)
    return {"head": rarest > middle, "tail": rarest <= middle}


def _words(text: TokenText, index: int, units: Tokenizer | WordVocabulary) -> Iterator[Word]:
    tokens = text.sentence(index)
    if isinstance(units, WordVocabulary):
        yield from ((token,) for token in tokens.tolist())
        return
    starts = np.flatnonzero(units.starts_word[tokens])
    for word in np.split(tokens, starts[starts > 0]):
        yield tuple(word.tolist())
