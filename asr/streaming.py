"""Recognition while the recording goes on: samples in, in any amounts; words out, and which of them stay.

stream = StreamingRecognizer(Recognizer.load("exp/model"), entities={"contact": ["Maja Novak"]})
for samples in microphone:
    partial = stream.push(samples)
    print(partial.text, [utterance.text for utterance in partial.finals])
print(stream.finish().text)

The stream is cut into utterances where the speaker pauses, by rules like those of Kaldi's online decoders. The
encoder goes on over the cuts, the search starts anew. Uncut, a stream gives what ``Recognizer.transcribe`` gives
for the same samples in one segment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from asr.audio_stream import AudioStream
from asr.decoding_config import DecodingConfig
from asr.encoders.streaming import StreamingEncoder
from asr.features_stream import FeatureStream
from asr.knowledge import Lists, Surroundings
from asr.recognizer import Entities, Recognizer
from asr.rendering import Renderer, join_segments
from asr.streaming_stats import StreamStats, Timekeeper
from decoding.frame_sync import BeamSearch
from decoding.result import EntitySpan, Transcript, Word
from decoding.trace import EMPTY, Progress
from lm.config import Config
from lm.errors import AudioError, ConfigError
from lm.utterance_context import UtteranceContext


class EndpointConfig(Config):
    """When an utterance of a stream is over; looked at behind every chunk of the encoder."""

    silence_s: float = Field(5.0, gt=0)
    """Seconds from the start in which nothing was said; the search then starts anew."""
    pause_s: float = Field(0.8, gt=0)
    """Seconds without a token behind what was said."""
    longest_s: float = Field(20.0, gt=0)
    """Seconds of an utterance at most, even in the middle of a word."""


ENDPOINTS = EndpointConfig()


@dataclass(frozen=True)
class Partial:
    """What is known of the utterance under way; times are seconds from the start of the stream.

    Attributes:
        stable: words that stay, with their times, and will be in the final transcript. (Their confidence may move
            while it is open whether they are an entity.)
        tentative: the words behind them, which may still change.
        entities: entities among the stable words that stay, by their positions there.
        finals: transcripts of the utterances that ended with this push; those without a word are left out.
    """

    stable: tuple[Word, ...] = ()
    tentative: tuple[Word, ...] = ()
    entities: tuple[EntitySpan, ...] = ()
    finals: tuple[Transcript, ...] = ()

    @property
    def stable_text(self) -> str:
        """Text of the stable words."""
        return " ".join(word.text for word in self.stable)

    @property
    def text(self) -> str:
        """Text of all words."""
        return " ".join(word.text for word in (*self.stable, *self.tentative))


class StreamingRecognizer:
    """Recognises one stream; make a new one for each.

    What it keeps does not grow with the stream, but for the utterance under way: its words, and the contexts that
    its search met in the language models. So streams without an end should be cut into utterances.

    Args:
        recognizer: its model's encoder must work in chunks.
        entities: names by class, as for ``Recognizer.transcribe``.
        context: what is known of the stream apart from its sound, as there.
        options: settings of the search in place of the model's; ``segment_s`` is of no use here.
        endpoint: when an utterance is over; None for a stream that is one utterance.
        name: id of the transcripts, with a number where there may be several.

    Raises:
        ConfigError: the model's encoder sees the whole utterance, or settings that do not fit.
        EntityListError: a list that cannot be used.
        DataError: a context that the language models cannot take.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        *,
        entities: Entities = None,
        context: UtteranceContext | None = None,
        options: DecodingConfig | None = None,
        endpoint: EndpointConfig | None = ENDPOINTS,
        name: str = "stream",
    ) -> None:
        options = options or recognizer.decoding
        if endpoint is None and options.rescoring.active and options.rescoring.over == "lattice":
            raise ConfigError(
                "rescoring.over=lattice in a stream without cuts, whose lattice grows as long as it goes on",
                "endpoints, which end the lattice with the utterance, or rescoring.over=nbest",
                "use rescoring.over=nbest, or cut the stream into utterances",
            )
        model: Any = recognizer.family.model
        self._recognizer, self._options, self._endpoint = recognizer, options, endpoint
        self._name = name
        self._normaliser, self._encoder = model.normaliser, StreamingEncoder(model.encoder)
        self._lists = recognizer._knowledge.lists(recognizer.catalog(entities), options)
        self._surroundings = (context,)
        recognizer._knowledge.check(self._surroundings, options)
        self._audio = AudioStream(recognizer.features.sample_rate)
        self._features = FeatureStream(recognizer.features)
        self._stream = self._encoder.start()
        self._times = Timekeeper()
        self._busy_s = self._now_s = 0.0
        self._finished = False
        self._utterances = 0
        self._utterance = self._new_utterance(0)

    @property
    def latency_s(self) -> float:
        """Seconds of audio that a sound waits for at most before it is encoded: a chunk and half a window."""
        config = self._recognizer.features
        last = config.width - config.width // 2 + config.shift // 2  # see asr.features_stream
        return ((self._encoder.chunk_frames - 1) * config.shift + last) / config.sample_rate

    @property
    def stats(self) -> StreamStats:
        """What the stream took so far."""
        return StreamStats(self._audio.seconds, self._busy_s, self.latency_s, tuple(self._times.words))

    @torch.no_grad()
    def push(self, samples: Any, sample_rate: int | None = None) -> Partial:
        """Go on with further samples.

        Args:
            samples: ``(S,)`` array or tensor, S > 0: floats of full scale 1, or integers.
            sample_rate: of the whole stream, None for the model's; others are resampled.

        Raises:
            AudioError: samples that cannot be used, or the stream is finished; it stays as it was.
        """
        began = time.perf_counter()
        if self._finished:
            raise AudioError("samples after the end of a stream", "none", "make a new StreamingRecognizer")
        piece = self._audio.push(samples, sample_rate)
        features = self._features.push(torch.from_numpy(piece))
        finals = []
        for frames in self._encode(features):
            self._utterance.feed(frames)
            if self._endpoint and self._utterance.is_over(self._endpoint):
                finals.append(self._close(self._utterance.duration_s))
        partial = self._utterance.partial
        now_s = self._now(began)
        for final in finals:
            self._times.end(final.words, now_s)
        self._times.note((*partial.stable, *partial.tentative), len(partial.stable), now_s)
        return replace(partial, finals=tuple(final for final in finals if final.words))

    @torch.no_grad()
    def finish(self) -> Transcript:
        """End the stream: the transcript of the utterance under way, empty where nothing was said in it.

        Raises:
            AudioError: the stream is shorter than 25 ms, or was finished before.
        """
        began = time.perf_counter()
        if self._finished:
            raise AudioError("the end of a stream, twice", "once", "make a new StreamingRecognizer")
        self._finished = True
        features = self._features.push(torch.from_numpy(self._audio.finish()))
        features = torch.cat((features, self._features.finish()))
        rest = [*self._encode(features), *self._encoder.finish([self._stream])]
        for frames in rest:
            self._utterance.feed(frames)
        whole_s = self._features.samples / self._recognizer.features.sample_rate
        final = self._close(max(0.0, whole_s - self._utterance.start_s))
        self._times.end(final.words, self._now(began))
        return final

    def _encode(self, features: Tensor) -> Iterator[Tensor]:
        """Encoder frames, chunk by chunk, so that what is found does not depend on how samples were pushed."""
        chunk = self._encoder.encoder.config.chunk
        normal = self._normaliser(features.to(self._stream.waiting.device))
        encoded = self._encoder.push([self._stream], [normal])[0]
        for first in range(0, len(encoded), chunk):
            yield encoded[first : first + chunk]

    def _new_utterance(self, first: int) -> _Utterance:
        return _Utterance(self._recognizer, self._options, self._lists, self._surroundings, first)

    def _close(self, duration_s: float) -> Transcript:
        """The transcript of the utterance under way, behind which a new one starts."""
        self._utterances += 1
        name = f"{self._name}-{self._utterances}" if self._endpoint else self._name
        final = self._utterance.finish(name, duration_s)
        self._utterance = self._new_utterance(self._utterance.end)
        return final

    def _now(self, began: float) -> float:
        """Seconds on the clock of a live stream, when a call that ``began`` then is over."""
        took = time.perf_counter() - began
        self._busy_s += took
        self._now_s = max(self._now_s, self._audio.seconds) + took
        return self._now_s


class _Utterance:
    """One search, from encoder frame ``first`` of the stream on; ``end`` is the frame behind what it was fed."""

    def __init__(
        self,
        recognizer: Recognizer,
        options: DecodingConfig,
        lists: Lists | None,
        surroundings: Surroundings,
        first: int,
    ) -> None:
        family, features, knowledge = recognizer.family, recognizer.features, recognizer._knowledge
        # Families make an emitter of features: here of one frame, which the search is not told of.
        nothing = torch.zeros(1, family.stacking, features.num_bins)
        length = torch.tensor([family.stacking])
        emitter = family.emitter(nothing, length, options.lm_scale, options.candidates)
        emitter.lengths = torch.zeros_like(emitter.lengths)
        search = knowledge.search(emitter, [lists], options, surroundings)
        if not isinstance(search, BeamSearch):
            raise ConfigError(
                "a stream with an attention model (AED)",
                "a model that moves with the frames: ctc, transducer, factorized or taed",
                "transcribe the finished recording, or train one of those with encoder.chunk",
            )
        self._search, self._surroundings = search, surroundings
        self._graph = self._search.graph
        self._encoded = lists.encoded if lists else None
        self._tokenizer, self._knowledge, self._options = recognizer.tokenizer, knowledge, options
        self._frame_s = family.stacking * features.shift / features.sample_rate
        self._first = self.end = first
        self._progress = Progress(EMPTY, 0, 0)
        self._partial: Partial | None = Partial()

    @property
    def start_s(self) -> float:
        """Where it starts in the stream."""
        return self._first * self._frame_s

    @property
    def duration_s(self) -> float:
        """Length of what it was fed."""
        return (self.end - self._first) * self._frame_s

    def feed(self, frames: Tensor) -> None:
        """Go on with encoder frames ``(T, D)``."""
        if len(frames):
            self._search.feed(frames[None], torch.tensor([len(frames)], device=frames.device))
            self._progress, self._partial = self._search.partial()[0], None
            self.end += len(frames)

    def is_over(self, rules: EndpointConfig) -> bool:
        """Whether the rules want it to end here."""
        said = self._progress.best.frames
        quiet_s = self.duration_s - (said[-1] + 1) * self._frame_s if said else self.duration_s
        limit_s = rules.pause_s if said else rules.silence_s
        return quiet_s >= limit_s - 1e-6 or self.duration_s >= rules.longest_s - 1e-6

    @property
    def partial(self) -> Partial:
        """What is known by now."""
        if self._partial is None:
            best, common, settled = self._progress
            found = self._renderer(self.duration_s).hypotheses([best])[0]
            # A word may grow, and its end is not known, until the next one is sure to have begun.
            stable = max(0, len(self._tokenizer.words(best.tokens[:common])) - 1)
            both = zip(best.spans, found.entities, strict=True)
            entities = tuple(span for raw, span in both if raw.end <= settled and span.end <= stable)
            self._partial = Partial(found.words[:stable], found.words[stable:], entities)
        return self._partial

    def finish(self, name: str, duration_s: float) -> Transcript:
        """The transcript."""
        nbest = self._knowledge.rescored(self._search, self._options, self._surroundings)[0]
        found = self._renderer(duration_s).hypotheses(nbest or [EMPTY])
        return join_segments(name, round(duration_s, 3), [found])

    def _renderer(self, duration_s: float) -> Renderer:
        encoded = self._encoded
        catalog = encoded.catalog if encoded else None
        return Renderer(
            self._tokenizer, self._frame_s, self.start_s, duration_s, self._graph, catalog, encoded,
            self._options.confidence,
        )  # fmt: skip
