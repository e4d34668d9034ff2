"""The Python API: load a model folder, transcribe recordings, with or without lists of names.

recognizer = Recognizer.load("exp/model")
result = recognizer.transcribe("call.wav", entities={"contact": ["John Smith", "Maja Novak"]})
print(result.text, result.entities)
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import torch
from torch import Tensor

from asr.audio import Samples, as_samples, read_segments
from asr.bundle import Bundle, check_tensors, load_bundle
from asr.decoding_config import DecodingConfig
from asr.families import Family, load_family
from asr.features import FeatureConfig, fbank
from asr.knowledge import Knowledge, LanguageModels, Lists, Surroundings
from asr.recordings import AudioPart
from asr.rendering import Renderer, join_segments
from decoding.lattice import Lattice
from decoding.result import Hypothesis, Transcript
from decoding.trace import RawHypothesis
from lm.classes import EncodingReport, EntityCatalog, encode_catalog
from lm.config import build_config
from lm.errors import BundleError, ConfigError, VocativeError
from lm.tokenizer import Tokenizer
from lm.utterance_context import UtteranceContext

Entities: TypeAlias = Mapping[str, Sequence[Any]] | EntityCatalog | str | Path | None
Context: TypeAlias = UtteranceContext | Surroundings | None
Recorded: TypeAlias = Path | AudioPart
Audio: TypeAlias = Any  # a path, a part of a recording, or an array or tensor of samples


@dataclass(frozen=True)
class _Segment:
    """A piece of recording ``owner``, with the lists that apply to it and what surrounds it."""

    owner: int
    start_s: float
    duration_s: float
    features: Tensor
    lists: Lists | None
    context: UtteranceContext | None


@dataclass
class _Recording:
    """A recording on its way: ``found`` holds the n-best lists of its pieces by the time they start at."""

    name: str
    duration_s: float = 0.0
    pieces: int = 0
    found: dict[float, tuple[Hypothesis, ...]] = field(default_factory=dict)
    read: bool = False
    error: VocativeError | None = None

    @property
    def done(self) -> bool:
        """Whether nothing is left to read or to decode."""
        return self.read and (self.error is not None or len(self.found) == self.pieces)

    def add(self, start_s: float, nbest: tuple[Hypothesis, ...]) -> None:
        """Note what was found in a piece; of several pieces only the best hypotheses are of use."""
        if self.found:
            nbest = nbest[:1]
            if len(self.found) == 1:
                self.found = {start: others[:1] for start, others in self.found.items()}
        self.found[start_s] = nbest

    def result(self) -> Transcript | VocativeError:
        """The transcript, or what was wrong."""
        if self.error is not None:
            return self.error
        parts = [nbest for _, nbest in sorted(self.found.items())]
        return join_segments(self.name, round(self.duration_s, 3), parts)


class Recognizer:
    """A model, ready to transcribe. Make one with ``load``; it may be used for any number of calls.

    Args:
        family: model family with its weights loaded.
        tokenizer: its tokenizer.
        features: its acoustic features.
        decoding: default settings of the search.
        language_models: those that the settings may name.
    """

    def __init__(
        self,
        family: Family,
        tokenizer: Tokenizer,
        features: FeatureConfig,
        decoding: DecodingConfig | None = None,
        language_models: LanguageModels | None = None,
    ) -> None:
        self.family = family
        self.tokenizer = tokenizer
        self.features = features
        self.decoding = decoding or DecodingConfig()
        self.language_models = language_models or LanguageModels({}, tokenizer)
        self._knowledge = Knowledge(tokenizer, self.language_models, family.knows_classes)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Recognizer:
        """Load a model folder; nothing in it is executed.

        Raises:
            BundleError: the folder is incomplete, damaged, unsafe, or not such a model.
        """
        return cls.from_bundle(load_bundle(folder), device)

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str = "cpu") -> Recognizer:
        """Build from a bundle that was read already."""
        config, source = bundle.config, str(bundle.folder / "config.yaml")
        _check_keys(config, source)
        tokenizer = Tokenizer.load(bundle.tokenizer_path)
        try:
            features = build_config(FeatureConfig, config.get("features", {}), f"{source}, features")
            decoding = build_config(DecodingConfig, config.get("decoding", {}), f"{source}, decoding")
            family = load_family(config["family"], config.get("model", {}), tokenizer, source)
        except ConfigError as error:
            raise BundleError(error.given, error.expected, error.fix) from None
        shapes = {name: tuple(t.shape) for name, t in family.model.state_dict().items()}
        check_tensors(shapes, bundle.tensors, bundle.folder)
        bins = shapes.get("normaliser.mean", (features.num_bins,))[0]
        if bins != features.num_bins:
            raise BundleError(
                f"{source}: features.num_bins = {features.num_bins}",
                f"the {bins} bins of the model's tensors",
                "use the checkpoint and the configuration of one training run",
            )
        family.model.load_state_dict(bundle.tensors)
        family.model.to(device).eval()
        models = LanguageModels.of_folder(bundle.folder / "lm", tokenizer, device)
        return cls(family, tokenizer, features, decoding, models)

    @overload
    def transcribe(
        self, audio: list[Any], *, entities: Entities | Sequence[Entities] = ..., context: Context = ...,
        sample_rate: int = ..., options: DecodingConfig | None = ...,
    ) -> list[Transcript]: ...  # fmt: skip

    @overload
    def transcribe(
        self, audio: Audio, *, entities: Entities | Sequence[Entities] = ..., context: Context = ...,
        sample_rate: int = ..., options: DecodingConfig | None = ...,
    ) -> Transcript: ...  # fmt: skip

    def transcribe(
        self,
        audio: Audio | list[Any],
        *,
        entities: Entities | Sequence[Entities] = None,
        context: Context = None,
        sample_rate: int = 16000,
        options: DecodingConfig | None = None,
    ) -> Transcript | list[Transcript]:
        """Transcribe one recording, or a list of them.

        Args:
            audio: path of a recording, a part of one (``AudioPart``; times count from its start), or its samples
                as array or tensor; or a list of these.
            entities: names by class, as a mapping, a catalog or the path of a list; a sequence gives each
                recording its own.
            context: what is known of the recording apart from its sound, ``{"hour": 7, "app": "maps"}``, for a
                contextual language model among those of ``options``; a sequence gives each its own or None.
            sample_rate: of samples given as arrays.
            options: settings for this call in place of the model's.

        Raises:
            AudioError, EntityListError: what is wrong with a recording or a list, in one line.
            ConfigError, DataError: a context that no language model takes, or cannot have.
        """
        many = isinstance(audio, list)
        items = cast("list[Any]", audio) if many else [audio]
        if isinstance(entities, (list, tuple)):
            catalogs = [self.catalog(each) for each in entities]
        else:
            catalogs = [self.catalog(cast("Entities", entities))] * len(items)
        surroundings = [context] * len(items) if context is None or isinstance(context, Mapping) else context
        for given, what in ((catalogs, "sets of entities"), (surroundings, "contexts")):
            if len(given) != len(items):
                raise VocativeError(
                    f"{len(given)} {what} for {len(items)} recordings", "one for each", "match the lists"
                )
        found = []
        for _, result in self._run(items, catalogs, surroundings, sample_rate, options, batch_s=60.0):
            if isinstance(result, VocativeError):
                raise result
            found.append(result)
        return found if many else found[0]

    def transcribe_many(
        self,
        audio: Sequence[Recorded],
        *,
        entities: EntityCatalog | Mapping[Recorded, EntityCatalog] | None = None,
        contexts: Mapping[Recorded, UtteranceContext] | None = None,
        batch_s: float = 60.0,
        options: DecodingConfig | None = None,
    ) -> Iterator[tuple[Recorded, Transcript | VocativeError]]:
        """Transcribe many recordings or parts of recordings, each given back in order as soon as its batch is done.

        What is wrong with one recording, or with a list of its own, is given back in its place; the others go on.
        Recordings that are not in ``entities`` or ``contexts`` have no list, and nothing is known of them.

        Raises:
            EntityListError: the one list for all cannot be used.
        """
        surroundings = [contexts.get(item) for item in audio] if contexts else [None] * len(audio)
        if isinstance(entities, Mapping):
            catalogs = [entities.get(item) for item in audio]
        else:
            self._knowledge.lists(entities, options or self.decoding)
            catalogs = [entities] * len(audio)
        for index, result in self._run(list(audio), catalogs, surroundings, 16000, options, batch_s):
            yield audio[index], result

    def lattices(
        self,
        audio: Sequence[Audio],
        *,
        entities: Entities = None,
        context: UtteranceContext | None = None,
        options: DecodingConfig | None = None,
    ) -> list[tuple[Transcript, list[Lattice | None]]]:
        """Transcribe recordings one by one, each with the lattices of its pieces as the search left them.

        Tokens of a lattice are those of ``tokenizer``; a piece in which nothing could be said has none.

        Raises:
            AudioError, EntityListError: what is wrong with a recording or a list, in one line.
        """
        options = options or self.decoding
        catalog = self.catalog(entities)
        self._knowledge.check([context], options)
        found = []
        for index, item in enumerate(audio):
            recording = _Recording(_name(item, index))
            held = list[Lattice | None]()
            for piece in self._segments(index, item, self.features.sample_rate, options, catalog, context):
                if isinstance(piece, VocativeError):
                    raise piece
                (nbest,), lattices = self._decode([piece], options, lattices=True)
                recording.duration_s += piece.duration_s
                recording.add(piece.start_s, nbest)
                held += lattices
            found.append((cast("Transcript", recording.result()), held))
        return found

    def report(self, entities: Entities, options: DecodingConfig | None = None) -> EncodingReport:
        """What the model makes of each entry of the lists; only as classes must it know their classes.

        Raises:
            EntityListError: a class the model does not know, or one without a usable entry.
        """
        catalog, classes = self.catalog(entities) or EntityCatalog.empty(), self.biasing(options) == "classes"
        return encode_catalog(catalog, self.tokenizer, foreign=not classes).report

    def biasing(self, options: DecodingConfig | None = None) -> str:
        """What lists are used for under ``options``: ``classes``, ``phrases`` or ``none``.

        Raises:
            ConfigError: a language model in fusion that there is not.
        """
        return self._knowledge.biasing(options or self.decoding)

    def catalog(self, entities: Entities) -> EntityCatalog | None:
        """The lists as a catalog; None where there is none."""
        if entities is None or isinstance(entities, EntityCatalog):
            return entities or None
        if isinstance(entities, (str, Path)):
            return EntityCatalog.load(entities) or None
        return EntityCatalog.from_mapping(entities) or None

    def _run(
        self,
        items: Sequence[Any],
        catalogs: Sequence[EntityCatalog | None],
        surroundings: Surroundings,
        sample_rate: int,
        options: DecodingConfig | None,
        batch_s: float,
    ) -> Iterator[tuple[int, Transcript | VocativeError]]:
        """Results in order, each as soon as it is known; no more than a batch of features is held."""
        options = options or self.decoding
        self._knowledge.check(surroundings, options)
        open_: dict[int, _Recording] = {}
        waiting: list[_Segment] = []
        for index, item in enumerate(items):
            recording = open_[index] = _Recording(_name(item, index))
            known = catalogs[index], surroundings[index]
            for piece in self._segments(index, item, sample_rate, options, *known):
                if isinstance(piece, VocativeError):
                    recording.error, recording.found = piece, {}
                    waiting = [segment for segment in waiting if segment.owner != index]
                    continue
                recording.pieces += 1
                recording.duration_s += piece.duration_s
                waiting.append(piece)
                if sum(segment.duration_s for segment in waiting) >= batch_s:
                    self._decode_all(waiting, open_, options, batch_s)
                    waiting = []
                    yield from _finished(open_)
            recording.read = True
            yield from _finished(open_)
        self._decode_all(waiting, open_, options, batch_s)
        yield from _finished(open_)

    def _segments(
        self,
        owner: int,
        item: Any,
        sample_rate: int,
        options: DecodingConfig,
        catalog: EntityCatalog | None,
        context: UtteranceContext | None,
    ) -> Iterator[_Segment | VocativeError]:
        """The pieces of a recording; what is wrong with it or its lists ends them."""
        rate = self.features.sample_rate
        try:
            lists = self._knowledge.lists(catalog, options)
            part = AudioPart(Path(item)) if isinstance(item, (str, Path)) else item
            if isinstance(part, AudioPart):
                pieces = read_segments(part.path, options.segment_s, rate, part.start_s, part.end_s)
            else:
                pieces = _split(as_samples(item, sample_rate, rate), options.segment_s, rate)
            for start_s, samples in pieces:
                features = fbank(torch.from_numpy(samples), self.features)
                yield _Segment(owner, start_s, len(samples) / rate, features, lists, context)
        except VocativeError as error:
            yield error

    def _decode_all(
        self,
        segments: Sequence[_Segment],
        recordings: Mapping[int, _Recording],
        options: DecodingConfig,
        batch_s: float,
    ) -> None:
        for batch in _batches(segments, batch_s):
            for segment, nbest in zip(batch, self._decode(batch, options)[0], strict=True):
                recordings[segment.owner].add(segment.start_s, nbest)

    @torch.no_grad()
    def _decode(
        self, batch: Sequence[_Segment], options: DecodingConfig, lattices: bool = False
    ) -> tuple[list[tuple[Hypothesis, ...]], list[Lattice | None]]:
        """N-best lists of a batch of segments; and their lattices, if they are wanted."""
        lengths = torch.tensor([len(s.features) for s in batch])
        features = torch.nn.utils.rnn.pad_sequence([s.features.float() for s in batch], batch_first=True)
        emitter = self.family.emitter(features, lengths, options.lm_scale, options.candidates)
        lists = [s.lists for s in batch]
        surroundings = [s.context for s in batch]
        search = self._knowledge.search(emitter, lists, options, surroundings, lattices)
        search.advance()
        found = self._knowledge.rescored(search, options, surroundings)
        frame_s = self.family.stacking * self.features.frame_shift_ms / 1000
        results = []
        for segment, nbest in zip(batch, found, strict=True):
            encoded = segment.lists.encoded if segment.lists else None
            renderer = Renderer(
                self.tokenizer,
                frame_s,
                segment.start_s,
                segment.duration_s,
                search.graph,
                encoded.catalog if encoded else None,
                encoded,
                options.confidence,
            )
            results.append(renderer.hypotheses(nbest or [EMPTY]))
        return results, search.lattices() if lattices else []


KEYS = frozenset({"format", "family", "sha256", "model", "features", "decoding"})
"""What a model's ``config.yaml`` may hold."""

EMPTY = RawHypothesis((), (), (), 0.0, {}, ())
"""Stands in where no hypothesis was left."""


def _check_keys(config: Mapping[str, Any], source: str) -> None:
    unknown = sorted(config.keys() - KEYS)
    if unknown:
        near = difflib.get_close_matches(unknown[0], KEYS, n=1, cutoff=0.0)[0]
        raise BundleError(
            f"{source}: unknown key {unknown[0]!r}",
            f"some of {', '.join(sorted(KEYS))}",
            f"did you mean {near!r}?",
        )


def _name(item: Audio, index: int) -> str:
    path = item.path if isinstance(item, AudioPart) else item
    return Path(path).stem if isinstance(path, (str, Path)) else f"recording-{index}"


def _split(samples: Samples, longest_s: float, rate: int) -> Iterator[tuple[float, Samples]]:
    """An array in as few equal pieces as needed, so that none is too short to be recognised."""
    count = max(1, math.ceil(len(samples) / int(longest_s * rate)))
    bounds = [len(samples) * number // count for number in range(count + 1)]
    for start, end in pairwise(bounds):
        yield start / rate, samples[start:end]


def _finished(recordings: dict[int, _Recording]) -> Iterator[tuple[int, Transcript | VocativeError]]:
    """Take out the recordings that are done, up to the first that is not."""
    while recordings:
        index, recording = next(iter(recordings.items()))
        if not recording.done:
            return
        del recordings[index]
        yield index, recording.result()


def _batches(segments: Sequence[_Segment], batch_s: float) -> Iterator[list[_Segment]]:
    """Segments of similar length together, at most ``batch_s`` of padded audio in a batch."""
    batch: list[_Segment] = []
    for segment in sorted(segments, key=lambda s: (s.duration_s, s.owner, s.start_s)):
        if batch and segment.duration_s * (len(batch) + 1) > batch_s:
            yield batch
            batch = []
        batch.append(segment)
    if batch:
        yield batch
