"""Batches of utterances of like length, the same in every process, and the features to fill them.

Utterances are sorted into buckets of like length; in each, lhotse's `SimpleCutSampler` draws the batches.
lhotse's own bucketing does not fit (1.33). `DynamicBucketingSampler` with ``sync_buckets=False`` ends an
epoch when it happens to draw a bucket that is empty, and loses the rest (2 % of 3,000 cuts); with
``sync_buckets=True`` it closes a batch after the cut that breaks ``max_duration``, and visits buckets in one
order whatever the seed. `BucketingSampler` stops with a KeyError on some sets of durations (0.03, 0.03, 0.03
and 3.99 s in one bucket).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asr.audio import read_audio
from asr.augment import speed as change_speed
from asr.data.feature_store import Name, open_features, write_features
from asr.features import FeatureConfig, fbank
from lm.errors import DataError

if TYPE_CHECKING:
    from lhotse import CutSet


class BatchPlan:
    """Which utterances make up each batch of each epoch; short ones come first in the first epoch.

    (Starting with short utterances is SortaGrad, arXiv 1512.02595, section 3.2: fewer ways to align them.)
    A function of the cuts (in any order), the settings and the epoch alone: a training is resumed exactly by
    skipping the batches that are done. Each utterance is in one batch of an epoch, and utterances in a batch
    are of like length. Every process makes the whole plan; processes that share the work take turns at it.

    Args:
        cuts: utterances.
        max_duration_s: limit on (longest utterance) x (utterances) of a batch: its seconds when padded, at
            speed 1.
        num_buckets: classes of length, of equal total duration.
        seed: of the order; each (seed, epoch) has its own.

    Raises:
        DataError: there are no utterances, ids are not unique, or one is longer than ``max_duration_s``.
    """

    def __init__(self, cuts: CutSet, max_duration_s: float, num_buckets: int = 10, seed: int = 0) -> None:
        ordered = sorted(cuts, key=lambda cut: (cut.duration, cut.id))
        if not ordered:
            raise DataError("no utterances to train on", "one or more", "check the manifest")
        if len({cut.id for cut in ordered}) < len(ordered):
            raise DataError("utterances that share an id", "each id once", "rename them")
        longest = ordered[-1]
        if longest.duration > max_duration_s:
            given = f"utterance {longest.id} lasts {longest.duration:.2f} s"
            fix = "make batches larger, or cut or remove long utterances"
            raise DataError(given, f"at most the {max_duration_s:g} s of a batch", fix)
        self.seed = seed
        self._samplers = [_sampler(bucket, max_duration_s) for bucket in _buckets(ordered, num_buckets)]

    def epoch(self, epoch: int) -> list[list[str]]:
        """Return the ids in each batch of ``epoch``, in order."""
        # lhotse seeds with the sum of seed and epoch, so that seeds would share their epochs; this does not.
        order = random.Random(f"{self.seed}/{epoch}")
        batches = []
        for sampler in self._samplers:
            sampler.set_epoch(order.randrange(1 << 31))
            batches += [[cut.id for cut in batch] for batch in sampler]
        if epoch:
            order.shuffle(batches)  # before, the buckets are in order of length
        return batches


def _buckets(ordered: Sequence[Any], num_buckets: int) -> list[list[Any]]:
    """Part cuts sorted by duration into at most ``num_buckets`` runs of about equal total duration."""
    total, before = sum(cut.duration for cut in ordered), 0.0
    buckets: dict[int, list[Any]] = {}
    for cut in ordered:
        middle = (before + cut.duration / 2) / total
        buckets.setdefault(min(int(middle * num_buckets), num_buckets - 1), []).append(cut)
        before += cut.duration
    return list(buckets.values())


def _sampler(cuts: Sequence[Any], max_duration_s: float) -> Any:
    from lhotse import CutSet
    from lhotse.dataset.sampling import SimpleCutSampler

    # Rank and world size are not from the environment: under torchrun each rank would see a part of its own.
    return SimpleCutSampler(
        CutSet.from_cuts(cuts),
        max_duration=max_duration_s,
        shuffle=True,
        drop_last=False,
        world_size=1,
        rank=0,
    )


class FeatureLoader:
    """Features of utterances by id and speed, computed once and kept, in memory or (see `keep`) on disk.

    Args:
        cuts: utterances.
        config: the features.
        speeds: the speeds that may be asked for.
        cache: keep the features; an hour of speech takes 58 MB a speed.
    """

    def __init__(
        self,
        cuts: CutSet,
        config: FeatureConfig,
        speeds: Sequence[float] = (0.9, 1.0, 1.1),
        cache: bool = True,
    ) -> None:
        self.config = config
        self.speeds = tuple(speeds)
        # cut.end is start + duration on lhotse's grid of samples, which may be one sample more
        self._parts = {
            cut.id: (Path(cut.recording.sources[0].source), cut.start, cut.start + cut.duration)
            for cut in cuts
        }
        self._cache: dict[Name, Tensor] | None = {} if cache else None

    def keep(
        self,
        wanted: Mapping[str, Iterable[float]],
        folder: Path,
        make: bool = True,
        on_item: Callable[[int], None] | None = None,
    ) -> bool:
        """Take features from a file in ``folder``; without one (of these recordings and settings) write it.

        Each recording is read once for all its speeds. What was loaded before is forgotten.

        Args:
            wanted: the speeds of each utterance.
            folder: where the file is kept.
            make: whether a missing file is made.
            on_item: called with the number of utterances done while it is made.

        Returns:
            Whether there is a file.

        Raises:
            AudioError: a recording cannot be read.
            VocativeError: the disk does not take the file.
        """
        key = self._key(wanted)
        found = open_features(folder, key)
        if found is None and make:
            write_features(folder, key, self._all(wanted, on_item))
            found = open_features(folder, key)
        if found is not None:
            self._cache = found
        return found is not None

    def _all(
        self, wanted: Mapping[str, Iterable[float]], on_item: Callable[[int], None] | None
    ) -> Iterator[tuple[Name, Tensor]]:
        for done, (cut_id, speeds) in enumerate(wanted.items(), 1):
            samples = self._read(cut_id)
            for speed in speeds:
                yield (cut_id, speed), fbank(change_speed(samples, speed), self.config).half()
            if on_item:
                on_item(done)

    def _key(self, wanted: Mapping[str, Iterable[float]]) -> str:
        """Identifies recordings (by path, size and time of change), parts, speeds and features."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for cut_id, speeds in wanted.items():
            path, *part = self._parts[cut_id]
            changed = (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None
            digest.update(json.dumps([cut_id, list(speeds), str(path), part, changed]).encode())
        return digest.hexdigest()[:32]

    def load(
        self, cut_id: str, speed: float = 1.0, change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the features of an utterance played at ``speed``.

        Args:
            cut_id: which.
            speed: how fast.
            change: made to its samples (S,), played at that speed; such features are not kept.

        Returns:
            (T, num_bins) float16, which resolves log energies to 0.01; shared with the cache: do not change.

        Raises:
            DataError: unknown utterance or speed.
            AudioError: its recording cannot be read.
        """
        if cut_id not in self._parts:
            raise DataError(f"utterance {cut_id!r}", "one of the manifest", "prepare the data again")
        if speed not in self.speeds:
            raise DataError(f"speed {speed}", f"one of {self.speeds}", "name it when the loader is made")
        key = (cut_id, speed)
        if change is not None:
            return fbank(change(change_speed(self._read(cut_id), speed)), self.config).half()
        if self._cache is not None and key in self._cache:
            return self._cache[key]
        features = fbank(change_speed(self._read(cut_id), speed), self.config).half()
        if self._cache is not None:
            self._cache[key] = features
        return features

    def _read(self, cut_id: str) -> Tensor:
        path, start_s, end_s = self._parts[cut_id]
        return torch.from_numpy(read_audio(path, self.config.sample_rate, start_s, end_s))

    @staticmethod
    def collate(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Join features of utterances into a batch.

        Args:
            features: (T_i, F) each.

        Returns:
            (B, T, F) float32 padded with 0, and lengths (B,).
        """
        lengths = torch.tensor([len(item) for item in features])
        batch = torch.nn.utils.rnn.pad_sequence([item.float() for item in features], batch_first=True)
        return batch, lengths
