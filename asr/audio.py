"""Audio in: any file or array becomes mono float32 samples in [-1, 1] at one rate, or one clear `AudioError`.

libsndfile (soundfile) reads wav, flac, ogg (vorbis, opus), mp3, NIST sphere, aiff, au ...; what it cannot
open goes to librosa. soxr resamples: its streaming form gives the same bits as its one-shot form, so a file
read in blocks equals the file read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.audio_files import check_rate, cut_short, open_sound, readable_s, slack_s
from lm.errors import AudioError, ConfigError

Samples = NDArray[np.float32]

SAMPLE_RATE = 16000
"""Hz; the rate everything is brought to unless said otherwise."""
MIN_S = 0.025
"""One analysis frame; less than this cannot be turned into features."""

_BLOCK = 1 << 18  # frames a read: 5 to 33 s, at most a few MB
_MAX_CHANNELS = 64
_END_SLACK_S = 0.05  # segment tables round their times


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header says."""

    duration_s: float
    sample_rate: int
    channels: int
    format: str


def audio_info(path: str | Path) -> AudioInfo:
    """Read the header of a recording, and make sure that its last sample can be read.

    Raises:
        AudioError: as for `read_audio`, but for NaN and too short recordings, which only reading finds.
    """
    path = Path(path)
    with open_sound(path) as sound:
        frames = sound.frames
        if slack_s(path, sound) is not None:
            try:
                sound.seek(frames - 1)
                readable = len(sound.read(1)) == 1
            except RuntimeError:
                readable = False
            if not readable:
                raise cut_short(path, readable_s(path), frames / sound.samplerate)
        return AudioInfo(frames / sound.samplerate, sound.samplerate, sound.channels, sound.format)


def read_audio(
    path: str | Path, sample_rate: int = SAMPLE_RATE, start_s: float = 0.0, end_s: float | None = None
) -> Samples:
    """Read a recording, or the part of it from ``start_s`` to ``end_s``; channels are averaged.

    Returns:
        (samples,) float32 at ``sample_rate``.

    Raises:
        AudioError: the file is missing, a directory, unreadable, empty, not audio, corrupt, cut short,
            shorter than 25 ms, or holds NaN, infinite or wrongly scaled samples.
    """
    path = Path(path)
    samples = np.concatenate([np.zeros(0, np.float32), *_mono_blocks(path, sample_rate, start_s, end_s)])
    return _long_enough(samples, sample_rate, str(path))


def read_segments(
    path: str | Path,
    max_s: float,
    sample_rate: int = SAMPLE_RATE,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[tuple[float, Samples]]:
    """Read a recording of any length, or a part of it, in pieces of at most ``max_s``, holding one in memory.

    A cut falls in the middle of the quietest 100 ms of the last quarter of each ``max_s`` window. The pieces
    joined are the samples of `read_audio`; a recording of at most ``max_s`` is one piece. (A format that only
    librosa can read is decoded whole.)

    Yields:
        (seconds from the start of the part, (samples,) float32).

    Raises:
        ConfigError: ``max_s`` under 1 s.
        AudioError: as for `read_audio`; a file cut short is found before the first piece.
    """
    path = Path(path)
    if max_s < 1.0:
        raise ConfigError(f"pieces of at most {max_s} s", "at least 1 s", "raise the length of a piece")
    audio_info(path)
    longest, start, held = int(max_s * sample_rate), 0, np.zeros(0, np.float32)
    for block in _mono_blocks(path, sample_rate, start_s, end_s):
        held = np.concatenate([held, block])
        while len(held) > longest:
            cut = _quietest(held[:longest], sample_rate)
            yield start / sample_rate, held[:cut].copy()
            start, held = start + cut, held[cut:]
    yield start / sample_rate, _long_enough(held, sample_rate, str(path))


def as_samples(
    samples: Any, sample_rate: int, target_rate: int = SAMPLE_RATE, name: str = "the array"
) -> Samples:
    """Turn an array or tensor of audio at ``sample_rate`` into (samples,) float32 at ``target_rate``.

    Floats are taken as they are (full scale 1), integers (uint8, int16, int32) are scaled to it. Of two axes
    the longer is time; channels are averaged.

    Raises:
        AudioError: dtype, shape, scale, rate or length cannot be audio, or samples are NaN or infinite.
    """
    if hasattr(samples, "detach"):  # a tensor: torch is not imported, so that readers of files start fast
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()
    array = np.asarray(samples)
    check_rate(sample_rate, name)
    if array.ndim == 2:
        array = array if array.shape[0] >= array.shape[1] else array.T
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > _MAX_CHANNELS):
        raise AudioError(
            f"{name} has shape {tuple(array.shape)}",
            f"(samples,), (channels, samples) or (samples, channels), at most {_MAX_CHANNELS} channels",
            "pass one recording at a time",
        )
    floats = _as_float(array if array.ndim == 2 else array[:, None], name)
    bad = _count_bad(floats)
    if bad:
        raise _not_finite(name, bad, len(floats))
    _check_scale(floats, name)
    return _long_enough(resample(floats.mean(axis=1), sample_rate, target_rate), target_rate, name)


def resample(samples: Samples, sample_rate: float, target_rate: float) -> Samples:
    """Resample (samples,) float32; the only place that calls soxr whole."""
    if sample_rate == target_rate or not len(samples):
        return samples
    import soxr

    resampled: Samples = soxr.resample(samples, sample_rate, target_rate)
    return resampled


def _mono_blocks(path: Path, sample_rate: int, start_s: float, end_s: float | None) -> Iterator[Samples]:
    """Yield the recording in blocks, mono, checked and resampled."""
    with open_sound(path) as sound:
        rate, total = sound.samplerate, sound.frames
        first, last = round(start_s * rate), total if end_s is None else round(end_s * rate)
        if not 0 <= first < last <= total + _END_SLACK_S * rate:
            raise AudioError(
                f"{path}: the part from {start_s} s to {'its end' if end_s is None else f'{end_s} s'}",
                f"a part of its {total / rate:.2f} s",
                "correct the segment times",
            )
        stream = None
        if rate != sample_rate:
            import soxr

            stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
        for block in _checked_blocks(path, sound, first, min(last, total)):
            mono = block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
            yield stream.resample_chunk(mono) if stream else mono
        if stream:
            yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _checked_blocks(path: Path, sound: Any, first: int, last: int) -> Iterator[Samples]:
    """Yield (frames, channels) blocks from ``first`` to ``last``; NaN are counted to the end, then told."""
    rate, slack, at, bad = sound.samplerate, slack_s(path, sound), first, 0
    sound.seek(first)
    while at < last:
        try:
            block = sound.read(min(_BLOCK, last - at), dtype="float32", always_2d=True)
        except RuntimeError:
            # A frame that does not decode: the file is damaged or ends here; both leave the same head.
            raise cut_short(path, at / rate if first else readable_s(path), last / rate) from None
        if not len(block):
            break
        at += len(block)
        bad += _count_bad(block)
        if not bad:
            _check_scale(block, str(path))
            yield block
    if bad:
        raise _not_finite(str(path), bad, at - first)
    if slack is not None and at + slack * rate < last:
        raise cut_short(path, at / rate, last / rate)


def _as_float(array: NDArray[Any], name: str) -> Samples:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    scales = {"uint8": (128.0, 128.0), "int16": (0.0, 32768.0), "int32": (0.0, 2147483648.0)}
    if array.dtype.name not in scales:
        raise AudioError(
            f"{name} is of type {array.dtype}",
            "float, int16, int32 or uint8 samples",
            "convert it to float32",
        )
    middle, full = scales[array.dtype.name]
    scaled: Samples = ((array.astype(np.float64) - middle) / full).astype(np.float32)
    return scaled


def _quietest(window: Samples, sample_rate: int) -> int:
    """Return the middle of the quietest 100 ms in the last quarter; of equally quiet ones, a middle one."""
    width, hop = sample_rate // 10, sample_rate // 100
    first = len(window) * 3 // 4
    power = np.concatenate([[0.0], np.cumsum(window[first:].astype(np.float64) ** 2)])
    starts = np.arange(0, len(power) - width, hop)
    energy = power[starts + width] - power[starts]
    quiet = np.flatnonzero(energy <= energy.min() * 1.0001)
    return int(first + starts[quiet[len(quiet) // 2]] + width // 2)


def _count_bad(block: Samples) -> int:
    """Count frames of (frames, channels) with a sample that is not finite."""
    finite = np.isfinite(block)
    return 0 if finite.all() else int(np.count_nonzero(~finite.all(axis=1)))


def _check_scale(block: Samples, name: str) -> None:
    peak = float(np.abs(block).max(initial=0.0))
    # Float files may overshoot 1 a little; ten times that is another scale, which would shift every feature.
    if peak > 10.0:
        raise AudioError(
            f"{name}: samples reach {peak:.6g}", "samples in [-1, 1]", "divide by 32768 if they are 16-bit"
        )


def _long_enough(samples: Samples, sample_rate: int, name: str) -> Samples:
    if len(samples) < MIN_S * sample_rate:
        seconds = len(samples) / sample_rate
        raise AudioError(f"{name} lasts {seconds * 1000:.1f} ms", "at least 25 ms", "leave it out")
    return samples


def _not_finite(name: str, bad: int, total: int) -> AudioError:
    given = f"{name}: {bad} of {total} samples are NaN or infinite"
    return AudioError(given, "finite samples", "repair or re-export the recording")
