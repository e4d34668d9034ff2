"""Noise and rooms for training speech, the same for an utterance and an epoch whatever happened before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from asr.audio import SAMPLE_RATE, read_audio
from asr.augment import NoiseConfig, ReverbConfig, add_noise, reverberate, synthetic_rir
from asr.data.kaldi import read_table, read_wav_scp
from lm.errors import ConfigError

HELD = 512
"""Recordings of noise that are held in memory; five seconds take 0.3 MB."""


class Distortion:
    """Gives some utterances a room, then some of them noise.

    Everything is drawn from a generator seeded by (seed, epoch, utterance): other utterances, batches and an
    interruption change nothing.

    Args:
        noise: the noise, if any.
        reverb: the rooms, if any.
        seed: of the training.
        sample_rate: Hz of the samples.

    Raises:
        ConfigError: there are no recordings of noise, or no such folds.
    """

    def __init__(
        self,
        noise: NoiseConfig | None,
        reverb: ReverbConfig | None,
        seed: int,
        sample_rate: int = SAMPLE_RATE,
    ) -> None:
        self.noise = noise if noise and noise.probability else None
        self.reverb = reverb if reverb and reverb.probability else None
        self.seed = seed
        self.sample_rate = sample_rate
        self.recordings = find_noises(self.noise) if self.noise else []
        self._read = lru_cache(maxsize=HELD)(self._read_noise)

    def of(self, utterance: str, epoch: int) -> Callable[[Tensor], Tensor] | None:
        """What happens to the samples (S,) of ``utterance`` in ``epoch``; None when nothing does."""
        digest = hashlib.sha256(f"{self.seed}/{epoch}/{utterance}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        room, noise = (torch.rand(2, generator=generator, dtype=torch.float64)).tolist()
        has_room = self.reverb is not None and room < self.reverb.probability
        has_noise = self.noise is not None and noise < self.noise.probability
        if not has_room and not has_noise:
            return None

        def change(samples: Tensor) -> Tensor:
            draws = generator.clone_state()  # may be called again
            if has_room and self.reverb:
                samples = reverberate(
                    samples, synthetic_rir(draws, _between(self.reverb.rt60_s, draws), self.sample_rate)
                )
            if has_noise and self.noise:
                chosen = int(torch.randint(len(self.recordings), (), generator=draws))
                ratio = _between(self.noise.snr_db, draws)
                samples = add_noise(samples, self._read(self.recordings[chosen]), ratio, draws)
            return samples

        return change

    def _read_noise(self, path: Path) -> Tensor:
        return torch.from_numpy(read_audio(path, self.sample_rate))


def find_noises(config: NoiseConfig) -> list[Path]:
    """Recordings of noise that may be trained on, sorted by id.

    Raises:
        ConfigError: no list, no recordings left, or a fold that does not exist.
    """
    named = Path(os.environ.get("VOCATIVE_CORPORA", "")) / config.corpus
    root = Path(config.corpus) if Path(config.corpus).is_dir() else named
    folder = next((each for each in (root, root / "all") if (each / "wav.scp").is_file()), None)
    if folder is None:
        raise ConfigError(
            f"training.noise.corpus = {config.corpus!r}",
            "a folder with wav.scp or all/wav.scp, or its name in $VOCATIVE_CORPORA",
            "correct the path",
        )
    recordings = read_wav_scp(folder / "wav.scp", root)
    folds = read_table(folder / "utt2fold") if (folder / "utt2fold").is_file() else {}
    held_out = {str(fold) for fold in config.held_out}
    unknown = held_out - set(folds.values()) if folds else set()
    if unknown:
        raise ConfigError(
            f"training.noise.held_out has fold {min(unknown)!r}",
            f"folds of {folder / 'utt2fold'}: {', '.join(sorted(set(folds.values())))}",
            "correct the folds",
        )
    chosen = [path for name, path in sorted(recordings.items()) if folds.get(name) not in held_out]
    if not chosen:
        raise ConfigError(
            f"every recording of {folder} is held out", "some to train with", "hold fewer folds out"
        )
    return chosen


def _between(limits: tuple[float, float], generator: torch.Generator) -> float:
    """A number drawn evenly between two."""
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    return limits[0] + share * (limits[1] - limits[0])
