"""Opening recordings: what libsndfile or librosa reads; files that hold less than their header promises."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm.errors import AudioError

_RATES = (1000, 768_000)
_UNKNOWN = 1 << 40  # libsndfile gives 2^63 - 1 frames where the header has no length
_HEADER_SLACK_S = 0.01  # writers that miscount by a few bytes are not cut files
_MP3_SLACK_S = 0.1  # the decoder's delay may take two frames
_CONVERT = "convert it to wav or flac (for example with ffmpeg)"


def open_sound(path: Path) -> Any:
    """Open a recording that libsndfile or librosa can read and whose header keeps its promises."""
    import soundfile

    _check_file(path)
    try:
        sound = soundfile.SoundFile(os.fsencode(path))  # as bytes: a name need not be UTF-8
    except (RuntimeError, TypeError):  # TypeError: a name that ends in .raw
        sound = _decode_with_librosa(path)
    try:
        check_rate(sound.samplerate, str(path))
        if sound.frames > _UNKNOWN:
            raise AudioError(
                f"{path}: its header does not say how long it is", "a length in the header", _CONVERT
            )
        _check_header(path, sound)
        if not sound.frames:
            raise AudioError(f"{path} holds no samples", "at least 25 ms of audio", "record it again")
    except AudioError:
        sound.close()
        raise
    return sound


def slack_s(path: Path, sound: Any) -> float | None:
    """Return how much less than ``sound.frames`` may be read; None where ``frames`` is a guess."""
    if sound.format != "MP3":
        return _HEADER_SLACK_S
    return _MP3_SLACK_S if _mp3_counts_its_frames(path) else None


def readable_s(path: Path) -> float:
    """Return how many seconds decode before the first error, in steps of 1/16 s."""
    import soundfile

    done = 0
    with soundfile.SoundFile(os.fsencode(path)) as sound:
        try:
            while read := len(sound.read(max(sound.samplerate // 16, 1))):
                done += read
        except RuntimeError:
            pass
        return done / float(sound.samplerate)


def cut_short(path: Path, read_s: float, promised_s: float | None) -> AudioError:
    """Return the error of a file of which ``read_s`` could be read, and ``promised_s`` should be there."""
    expected = (
        "whole pages to the end" if promised_s is None else f"the {promised_s:.2f} s its header promises"
    )
    given = f"{path} is cut short or damaged: {read_s:.2f} s could be read"
    return AudioError(given, expected, "copy the file again, or cut it to its good part")


def check_rate(sample_rate: float, name: str) -> None:
    """Raise `AudioError` unless ``sample_rate`` (Hz) is one that recordings have."""
    low, high = _RATES
    if not low <= sample_rate <= high:
        raise AudioError(
            f"{name}: sample rate {sample_rate} Hz", f"{low} to {high} Hz", "check where it comes from"
        )


class _Decoded:
    """What librosa decoded, behind the methods of `soundfile.SoundFile` that are used here."""

    format, extra_info = "OTHER", ""

    def __init__(self, samples: NDArray[np.float32], sample_rate: int) -> None:
        self.frames, self.channels = samples.shape
        self.samplerate = sample_rate
        self._samples, self._at = samples, 0

    def seek(self, frame: int) -> None:
        self._at = frame

    def read(self, frames: int, **_: object) -> NDArray[np.float32]:
        block = self._samples[self._at : self._at + frames]
        self._at += len(block)
        return block

    def close(self) -> None:
        self._samples = self._samples[:0]

    def __enter__(self) -> _Decoded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decode_with_librosa(path: Path) -> _Decoded:
    import librosa

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa warns that soundfile failed, which is known
            samples, rate = librosa.load(path, sr=None, mono=False)
    except Exception:  # each of its decoders has errors of its own
        raise AudioError(
            f"{path} is corrupt or not audio", "a recording that can be decoded", _CONVERT
        ) from None
    return _Decoded(np.atleast_2d(samples).T, int(rate))


def _check_file(path: Path) -> None:
    """Raise unless ``path`` is a readable file of at least one byte."""
    try:
        if path.is_dir():
            raise AudioError(f"{path} is a directory", "an audio file", "name the files in it")
        if not path.exists():
            raise AudioError(f"{path} does not exist", "an audio file", "check the path")
        if not path.is_file():
            raise AudioError(f"{path} is a pipe or a device", "an audio file", "save it to a file first")
        with path.open("rb") as file:
            if not file.read(1):
                raise AudioError(f"{path} is empty (0 bytes)", "an audio file", "copy or record it again")
    except PermissionError:
        raise AudioError(
            f"{path} may not be read", "read permission", "chmod +r it, or ask its owner"
        ) from None
    except OSError as error:
        raise AudioError(
            f"{path}: {error.strerror}", "an audio file", "check the path and the disk"
        ) from None


def _check_header(path: Path, sound: Any) -> None:
    """Raise if the header promises more than the file holds; libsndfile only notes this in its log."""
    rate, frames, log = sound.samplerate, sound.frames, sound.extra_info
    promised_s = 0.0
    if sound.format == "NIST":
        with path.open("rb") as file:
            count = re.search(rb"sample_count -i (\d+)", file.read(1024))
        promised_s = int(count[1]) / rate if count else 0.0
    elif "end-of-stream bit" in log and "Junk after the last page" in log:
        raise cut_short(path, frames / rate, None)
    else:
        chunk = re.search(
            r"^\s*(?:data|Data Size|SSND|riff) *: *(\d+) \(should be (\d+)\)", log, re.MULTILINE
        )
        # 0x7ffff000 and above is how writers to a pipe say that they do not know yet
        if chunk and int(chunk[2]) > 0 and int(chunk[1]) < 0x7FFFF000:
            promised_s = frames / rate * int(chunk[1]) / int(chunk[2])
    if promised_s > frames / rate + _HEADER_SLACK_S:
        raise cut_short(path, frames / rate, promised_s)
    if sound.format == "MP3" and not _mp3_counts_its_frames(path) and _mp3_rates_vary(path, rate):
        raise AudioError(
            f"{path}: mp3 of varying bit rate without a length", "a length in the header", _CONVERT
        )


def _mp3_counts_its_frames(path: Path) -> bool:
    """Whether the first frame says how many follow; if not, libsndfile guesses from the bit rate."""
    with path.open("rb") as file:
        file.seek(_mp3_start(file.read(10)))
        first = file.read(256)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _mp3_rates_vary(path: Path, sample_rate: int) -> bool:
    """Whether layer III frames differ in bit rate, which makes the guess (and libsndfile's end) wrong."""
    kbits = {
        True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
        False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
    }
    seen: set[int] = set()
    with path.open("rb") as file:
        at = _mp3_start(file.read(10))
        while len(seen) < 2:
            file.seek(at)
            head = file.read(4)
            if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
                break
            version_1 = head[1] & 0x18 == 0x18
            rate = kbits[version_1][head[2] >> 4]
            if not rate:
                break
            seen.add(rate)
            at += (144 if version_1 else 72) * rate * 1000 // sample_rate + (head[2] >> 1 & 1)
    return len(seen) > 1


def _mp3_start(head: bytes) -> int:
    """Return where the first frame begins: after the ID3v2 tag, if there is one."""
    if head[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
