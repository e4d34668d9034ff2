"""Word-level n-gram models from ARPA or KenLM files, asked word by word: for second passes, not for a first one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lm.arpa import LOG10, read_arpa
from lm.errors import ConfigError, DataError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"


class WordLM(Protocol):
    """A language model over words.

    ``order`` is the number of words a probability depends on, its own included.
    """

    order: int

    def logp(self, asked: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
        """Natural-log probabilities of words after histories, all that was said or its last ``order - 1`` words.

        ``END`` is the end of the sentence. Words that the model does not know are its unknown word.
        """
        ...

    def knows(self, word: str) -> bool:
        """Whether a word is in the vocabulary."""
        ...


def load_word_lm(path: Path) -> WordLM:
    """Read ``.arpa`` (also .gz, .xz), or a file of KenLM's with the ``kenlm`` package.

    Raises:
        ConfigError: a file of another kind, or the package is not there.
        DataError: a damaged file.
    """
    from lm.model_files import ARPA, KENLM

    if path.name.endswith(ARPA):
        return WordNGram(path)
    if path.name.endswith(KENLM):
        return KenWords(path)
    raise ConfigError(
        f"word-level language model {path.name}", "a name in .arpa, .arpa.gz, .bin or .klm", "rename it"
    )


class _Numbers(dict[str, int]):
    """Numbers words as they are met."""

    def get(self, word: str, default: Any = None) -> Any:
        return self.setdefault(word, len(self))


class WordNGram:
    """An ARPA file in dictionaries. Text is put into lower or upper case where the file has one case only.

    Raises:
        DataError: the file is no ARPA file, or knows neither ``</s>`` nor an unknown word.
    """

    def __init__(self, path: Path) -> None:
        numbers = _Numbers()
        levels, _ = read_arpa(path, numbers)
        self.order = len(levels)
        self._number = dict(numbers)
        self._known: dict[tuple[int, ...], tuple[float, float]] = {}
        for level in levels:
            rows = zip(level.words.tolist(), level.logp.tolist(), level.backoff.tolist(), strict=True)
            self._known |= {tuple(words): (logp, backoff) for words, logp, backoff in rows}
        unknown = next((w for w in (UNKNOWN, "<UNK>") if w in self._number), None)
        if END not in self._number:
            raise DataError(
                f"{path} without {END}", "an ARPA file of sentences", "train it with sentence ends"
            )
        self._unknown = -1 if unknown is None else self._number[unknown]
        self._fold = _fold([w for w in self._number if not w.startswith("<")])

    def logp(self, asked: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
        """See ``WordLM.logp``."""
        return [self._one(history, word) for history, word in asked]

    def knows(self, word: str) -> bool:
        """See ``WordLM.knows``."""
        return self._fold(word) in self._number

    def _one(self, history: tuple[str, ...], word: str) -> float:
        before = [START, *history][-(self.order - 1) :] if self.order > 1 else []
        context = tuple(self._id(w) for w in before)
        target, total = self._id(word), 0.0
        while (*context, target) not in self._known:
            if not context:
                # No unknown word in the file: as rare as a word is to KenLM that it has never seen.
                return total - 100.0 * LOG10
            total += self._known.get(context, (0.0, 0.0))[1]
            context = context[1:]
        return total + self._known[(*context, target)][0]

    def _id(self, word: str) -> int:
        known = word if word in (START, END) else self._fold(word)
        return self._number.get(known, self._unknown)


class KenWords:
    """A KenLM file through the ``kenlm`` package.

    Raises:
        ConfigError: the package is not installed, or the file is none of KenLM's.
    """

    def __init__(self, path: Path) -> None:
        try:
            import kenlm
        except ImportError:
            raise ConfigError(
                f"{path.name} without the kenlm package", "pip install kenlm", "or give the ARPA file instead"
            ) from None
        try:
            self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{path}: {reason}", "a KenLM file", "build it again") from None
        self._kenlm = kenlm
        self.order = int(self._model.order)

    def logp(self, asked: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
        """See ``WordLM.logp``."""
        return [self._one(history, word) for history, word in asked]

    def knows(self, word: str) -> bool:
        """See ``WordLM.knows``."""
        return word in self._model

    def _one(self, history: tuple[str, ...], word: str) -> float:
        state, after = self._kenlm.State(), self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        for before in history:
            self._model.BaseScore(state, before, after)
            state, after = after, state
        return float(self._model.BaseScore(state, word, after)) * LOG10


def _fold(words: Sequence[str]) -> Callable[[str], str]:
    """What brings text into the case of a model's words, if they have one."""
    if all(word == word.lower() for word in words):
        return str.lower
    return str.upper if all(word == word.upper() for word in words) else str
