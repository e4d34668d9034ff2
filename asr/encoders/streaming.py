"""A chunked encoder over streams: feature frames in, in any amounts; encoder frames of finished chunks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.encoders.conformer import BlockCache, Conformer
from lm.errors import ConfigError, DataError


@dataclass(eq=False)
class EncoderStream:
    """One utterance on its way through a `StreamingEncoder`.

    Attributes:
        waiting: ``(S, F)`` feature frames that do not fill a chunk yet.
        caches: what each block remembers, as a batch of one.
        frames: encoder frames given out so far.
        finished: whether its end was told.
    """

    waiting: Tensor
    caches: list[BlockCache] = field(repr=False)
    frames: int = 0
    finished: bool = False


class StreamingEncoder:
    """Encodes streams chunk by chunk; what comes out is what ``encoder`` gives for the whole utterance.

    Streams are independent: they may begin and end at any time and be fed unequal amounts. Those that have a
    chunk ready and remember equally much are computed together. A frame comes out when the last feature frame of
    its chunk is in, so it waits for at most ``chunk_frames`` frames.

    A stream holds less than a chunk of features and, in each block, keys and values of the ``left_chunks``
    chunks before, 2 D numbers a frame: its memory does not grow. With ``left_chunks`` = -1 the whole past is kept,
    and memory and time of a chunk grow with it: 8 blocks of width 192 keep 18 MB more each minute.

    Args:
        encoder: in evaluation mode, with a ``chunk``.

    Raises:
        ConfigError: the encoder sees the whole utterance.
    """

    def __init__(self, encoder: Conformer) -> None:
        config = encoder.config
        if not config.chunk:
            hint = (
                "set it, any size will do" if config.dynamic_chunk else "set it and train the model with it"
            )
            raise ConfigError("an encoder that sees the whole utterance", "model.encoder.chunk above 0", hint)
        self.encoder = encoder
        self.chunk_frames = config.chunk * config.stacking
        """Feature frames of a chunk."""

    def start(self) -> EncoderStream:
        """A new utterance."""
        caches = self.encoder.start()
        return EncoderStream(caches[0].convolution.new_zeros(0, self.encoder.config.features), caches)

    @torch.no_grad()
    def push(self, streams: Sequence[EncoderStream], features: Sequence[Tensor]) -> list[Tensor]:
        """Feed more of each utterance.

        Args:
            streams: from `start`, each at most once.
            features: ``(S, F)`` normalised features for each stream, on the encoder's device; S may be 0.

        Returns:
            Encoder frames ``(n, D)`` of the chunks that each stream has finished, n a multiple of the chunk.

        Raises:
            DataError: features of another shape, a finished stream, or one given twice.
        """
        self._check(streams, features)
        for stream, more in zip(streams, features, strict=True):
            stream.waiting = torch.cat((stream.waiting, more))
        encoded = {id(stream): [self._nothing(stream)] for stream in streams}
        while ready := [s for s in streams if len(s.waiting) >= self.chunk_frames]:
            for stream, frames in self._step(ready, self.chunk_frames):
                encoded[id(stream)].append(frames)
        return [torch.cat(encoded[id(stream)]) for stream in streams]

    @torch.no_grad()
    def finish(self, streams: Sequence[EncoderStream]) -> list[Tensor]:
        """Tell the end of the utterances and give their remaining encoder frames ``(n, D)``, at most a chunk.

        Raises:
            DataError: a stream that was finished before, or one given twice.
        """
        self._check(streams, [stream.waiting for stream in streams])
        encoded = {id(stream): self._nothing(stream) for stream in streams}
        lengths: dict[int, list[EncoderStream]] = {}
        for stream in streams:
            stream.finished = True
            stream.waiting = F.pad(
                stream.waiting, (0, 0, 0, -len(stream.waiting) % self.encoder.config.stacking)
            )
            if len(stream.waiting):
                lengths.setdefault(len(stream.waiting), []).append(stream)
        for length, group in lengths.items():
            encoded |= {id(stream): frames for stream, frames in self._step(group, length)}
        for stream in streams:
            stream.caches = []
        return [encoded[id(stream)] for stream in streams]

    def _step(self, streams: Sequence[EncoderStream], size: int) -> list[tuple[EncoderStream, Tensor]]:
        """Encode the first ``size`` feature frames that wait in each stream, a batch for each size of the past."""
        groups: dict[int, list[EncoderStream]] = {}
        for stream in streams:
            groups.setdefault(stream.caches[0].attention.shape[2], []).append(stream)
        found = []
        for group in groups.values():
            features = torch.stack([stream.waiting[:size] for stream in group])
            encoded, caches = self.encoder.step(features, _join([stream.caches for stream in group]))
            for row, stream in enumerate(group):
                stream.waiting = stream.waiting[size:]
                stream.caches = [BlockCache(*(part[row : row + 1] for part in cache)) for cache in caches]
                stream.frames += encoded.shape[1]
                found.append((stream, encoded[row]))
        return found

    def _check(self, streams: Sequence[EncoderStream], features: Sequence[Tensor]) -> None:
        width = self.encoder.config.features
        if len({id(stream) for stream in streams}) < len(streams):
            raise DataError("a stream given twice in one call", "each once", "join its features")
        for stream, more in zip(streams, features, strict=True):
            if stream.finished:
                raise DataError("a stream that was finished", "one that goes on", "start a new one")
            if more.dim() != 2 or more.shape[1] != width:
                raise DataError(
                    f"features of shape {tuple(more.shape)}",
                    f"(frames, {width})",
                    "use the filter bank that the model was trained with",
                )

    def _nothing(self, stream: EncoderStream) -> Tensor:
        return stream.waiting.new_zeros(0, self.encoder.width)


def _join(streams: Sequence[Sequence[BlockCache]]) -> list[BlockCache]:
    """The caches of a batch, block by block."""
    return [
        BlockCache(*(torch.cat(part) for part in zip(*block, strict=True)))
        for block in zip(*streams, strict=True)
    ]
