"""How far behind the speaker a stream is."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from decoding.result import Word

MOST_WORDS = 10_000
"""Words whose times are kept; the oldest are forgotten."""


@dataclass(frozen=True)
class WordDelay:
    """When a word was known, in seconds from its end.

    The clock is that of a live stream: a push is called at the moment of its last sample, or when the one before is
    done, and its answer is there as much later as it took to compute. A word may be shown before its end is heard.

    Attributes:
        text: the word.
        shown_s: since when it has been shown, tentative or stable.
        stable_s: when it became stable, or was in a final transcript.
    """

    text: str
    shown_s: float
    stable_s: float


@dataclass(frozen=True)
class StreamStats:
    """What a stream took.

    Attributes:
        audio_s: seconds pushed.
        busy_s: seconds of computation.
        latency_s: seconds of audio that a sound waits for at most before it is encoded.
        words: delays of the words known for good, of the last ``MOST_WORDS``.
    """

    audio_s: float
    busy_s: float
    latency_s: float
    words: tuple[WordDelay, ...]

    @property
    def real_time_factor(self) -> float:
        """Computation per second of audio; a live stream needs less than 1."""
        return self.busy_s / self.audio_s if self.audio_s else 0.0


@dataclass
class Timekeeper:
    """Notes when words are shown and when they stay."""

    words: deque[WordDelay] = field(default_factory=lambda: deque(maxlen=MOST_WORDS))
    _shown: list[tuple[str, float]] = field(default_factory=list)
    _stable: int = 0

    def note(self, words: Sequence[Word], stable: int, now_s: float) -> None:
        """The words shown of an utterance at ``now_s``; the first ``stable`` of them stay."""
        shown = self._shown
        same = 0
        while same < min(len(shown), len(words)) and shown[same][0] == words[same].text:
            same += 1
        del shown[same:]
        shown += [(word.text, now_s) for word in words[same:]]
        for (text, shown_s), word in zip(
            shown[self._stable : stable], words[self._stable : stable], strict=True
        ):
            self.words.append(WordDelay(text, round(shown_s - word.end_s, 3), round(now_s - word.end_s, 3)))
        self._stable = max(self._stable, stable)

    def end(self, words: Sequence[Word], now_s: float) -> None:
        """The utterance ended with ``words``."""
        self.note(words, len(words), now_s)
        self._shown, self._stable = [], 0
