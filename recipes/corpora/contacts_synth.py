"""The voice of the synthetic ``contacts`` corpus: espeak-ng, noise and a light room.

Run as ``python -m recipes.corpora.contacts_synth JOBS FOLDER`` it is one worker: it speaks the utterances
that the file JOBS lists (one JSON object a line, the fields of ``Utterance``) and prints a line for each.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lm.errors import DataError, VocativeError

Samples = npt.NDArray[np.float64]

SAMPLE_RATE = 16000
"""Hz, of the files written."""

Accent = Literal[
    "en",
    "en-us",
    "en-us-nyc",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
]
ACCENTS: tuple[Accent, ...] = get_args(Accent)
"""espeak-ng's English voices, all of them in every split; ``en`` is British."""

SPEAKERS: dict[str, tuple[str, ...]] = {
    "train": (
        *("m1", "m2", "m3", "m4", "f1", "f2", "f3", "iven3", "iven4", "Alex", "Andrea", "Annie", "Andy"),
        *("Denis", "Gene", "Hugo", "Lee", "Marco", "Michael", "Reed", "adam", "anika", "aunty", "belinda"),
        *("boris", "caleb", "edward", "grandma", "gustave", "ian", "john", "linda", "marcelo", "max"),
        *("michel", "norbert", "pablo", "quincy", "rob", "shelby", "travis", "victor"),
    ),
    "dev": ("m5", "f4", "Nguyen", "Henrique", "david"),
    "test": (
        *("m6", "m7", "f5", "kaukovalta", "Mike", "Alicia", "Diogo", "benjamin", "miguel", "sandro", "steph"),
        *("zac", "pedro", "robert"),
    ),
}
"""espeak-ng voice variants, each in one split; robots, whispers, near copies and klatt (it pops) are out."""

NOISES = ("white", "pink", "babble")

_BABBLE = (
    ("en-us+m3", "the committee will meet again on thursday to talk about the budget for the coming year"),
    (
        "en-gb-x-rp+f2",
        "we took the early boat across the bay and had breakfast on the other side of the water",
    ),
    ("en-029+m1", "nobody in the office could remember where the keys of the old cupboard had been put"),
    ("en-us+f3", "after the long summer the rain came back and the farmers were glad to see it at last"),
    ("en-gb-scotland+m4", "the second half of the match was much better than anybody had dared to hope for"),
    ("en-us+f1", "she read the whole newspaper from the first page to the last without saying a word"),
)

_ENGINE_RATE = 22050
_RETRIEVAL_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_UTF8 = 1
_VOLUME, _RATE, _PITCH, _RANGE, _WORD_GAP = 2, 1, 3, 4, 7
_QUIET_VOLUME = 50  # of 100: at full volume many voices clip inside the engine

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Utterance:
    """How one utterance is to sound. With the same fields the same samples come out.

    ``rate`` is in words a minute; ``pitch`` and ``pitch_range`` are espeak-ng's 0 to 99; ``word_gap`` is in
    units of 10 ms; ``rt60_s`` is None for a dry recording; ``peak_db`` is relative to full scale (negative).
    """

    id: str
    text: str
    tagged: str
    voice: str
    rate: int
    pitch: int
    pitch_range: int
    word_gap: int
    noise: str
    snr_db: float
    rt60_s: float | None
    peak_db: float
    seed: int


def espeak_loader() -> Any:
    """The package that brings espeak-ng; a VocativeError that names the extra where it is not installed."""
    try:
        import espeakng_loader
    except ImportError:
        raise VocativeError(
            "the package espeakng_loader is missing",
            "espeak-ng, which speaks the contacts corpus",
            "install the extra: pip install 'vocative[contacts]'",
        ) from None
    return espeakng_loader


class Engine:
    """espeak-ng from the ``espeakng_loader`` package.

    Raises:
        VocativeError: if the package is missing or the engine does not start.
    """

    def __init__(self) -> None:
        loader = espeak_loader()
        self._data = str(loader.get_data_path())
        self._chunks: list[bytes] = []
        self._receive = _Callback(self._keep)  # the engine holds no reference: it must outlive every call
        self._library = ctypes.CDLL(loader.get_library_path())
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        rate = self._library.espeak_Initialize(_RETRIEVAL_SYNCHRONOUS, 0, self._data.encode(), _DONT_EXIT)
        if rate != _ENGINE_RATE:
            raise VocativeError(
                f"espeak-ng answered {rate} when it was started with {self._data}",
                f"{_ENGINE_RATE} Hz",
                "reinstall espeakng_loader 0.2",
            )
        self._library.espeak_SetSynthCallback(self._receive)

    def speak(self, item: Utterance) -> Samples:
        """The plain voice, (samples,) in [-1, 1] at 22050 Hz.

        The engine keeps pieces of earlier utterances (wave phases, random numbers), so the same call sounds
        different later. A forked child starts from the fresh engine every time and is gone afterwards.

        Raises:
            DataError: if the voice does not exist or nothing was spoken.
        """
        variant = item.voice.partition("+")[2]
        if variant and not Path(self._data, "voices", "!v", variant).is_file():
            raise DataError(
                f"espeak-ng voice {item.voice!r}", "an installed voice", "install espeakng_loader 0.2"
            )
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)  # or the child would wait for itself if this process were killed
            self._speak_and_exit(item, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(child, 0)
        if status or not data:
            raise DataError(
                f"espeak-ng said nothing for {item.text!r} with voice {item.voice!r} (status {status})",
                "speech",
                "install espeakng_loader 0.2",
            )
        return np.frombuffer(data, dtype=np.int16).astype(np.float64) / 32768

    def _speak_and_exit(self, item: Utterance, writer: int) -> None:
        status = 1
        try:
            if self._library.espeak_SetVoiceByName(item.voice.encode()) == 0:
                settings = {_VOLUME: _QUIET_VOLUME, _RATE: item.rate, _PITCH: item.pitch}
                settings |= {_RANGE: item.pitch_range, _WORD_GAP: item.word_gap}
                for parameter, value in settings.items():
                    self._library.espeak_SetParameter(parameter, value, 0)
                self._library.espeak_ng_SetRandSeed(item.seed)
                text = item.text.lower().encode()  # capitals would be spelled out
                self._library.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
                self._library.espeak_Synchronize()
                with os.fdopen(writer, "wb") as pipe:
                    pipe.write(b"".join(self._chunks))
                status = 0
        finally:
            os._exit(status)

    def _keep(self, wave: ctypes._Pointer[ctypes.c_short], count: int, events: int | None) -> int:
        if wave and count > 0:
            self._chunks.append(ctypes.string_at(wave, count * 2))
        return 0


class Studio:
    """Speaks utterances and puts them into a room with noise."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._babble = self._make_babble()

    def record(self, item: Utterance) -> Samples:
        """(samples,) at 16 kHz with its peak at ``item.peak_db``."""
        generator = np.random.default_rng(item.seed)
        voice = to_16k(self._engine.speak(item))
        before, after = generator.uniform(0.1, 0.35, 2)
        voice = np.pad(voice, (int(before * SAMPLE_RATE), int(after * SAMPLE_RATE)))
        if item.rt60_s is not None:
            voice = reverberate(voice, item.rt60_s, generator)
        noise = self._noise(item.noise, len(voice), generator)
        mixed = add_noise(voice, noise, item.snr_db)
        return np.asarray(mixed * (10 ** (item.peak_db / 20) / np.abs(mixed).max()))

    def _noise(self, kind: str, count: int, generator: np.random.Generator) -> Samples:
        if kind == "babble":
            start = int(generator.integers(len(self._babble)))
            return np.take(self._babble, np.arange(start, start + count), mode="wrap")
        white = generator.standard_normal(count)
        return white if kind == "white" else pinken(white)

    def _make_babble(self) -> Samples:
        """Six voices talking at once, each with the same energy, from the top and from the middle."""
        takes = []
        for voice, text in _BABBLE:
            item = Utterance("babble", text, text, voice, 165, 50, 50, 0, "white", 0.0, None, -6.0, 1)
            takes.append(to_16k(self._engine.speak(item)))
        length = max(len(take) for take in takes)
        looped = [np.resize(take / np.sqrt(np.mean(take**2)), length) for take in takes]
        return np.asarray(np.sum([take + np.roll(take, length // 2) for take in looped], axis=0))


def to_16k(samples: Samples) -> Samples:
    """Bring (samples,) from the engine's rate to 16 kHz."""
    # Not through asr.audio: it imports torch, and a process with torch takes twenty times longer to fork.
    import soxr

    resampled: Samples = soxr.resample(samples, _ENGINE_RATE, SAMPLE_RATE)
    return resampled


def add_noise(voice: Samples, noise: Samples, snr_db: float) -> Samples:
    """Add (samples,) of noise so that mean powers stand ``snr_db`` apart."""
    gain = np.sqrt(np.mean(voice**2) / np.mean(noise**2)) * 10 ** (-snr_db / 20)
    return np.asarray(voice + gain * noise)


def pinken(white: Samples) -> Samples:
    """Shape white noise to power 1/f, flat below 20 Hz."""
    hertz = np.fft.rfftfreq(len(white), 1 / SAMPLE_RATE)
    return np.fft.irfft(np.fft.rfft(white) / np.sqrt(np.maximum(hertz, 20)), len(white))


def reverberate(voice: Samples, rt60_s: float, generator: np.random.Generator) -> Samples:
    """A small room: a direct path and an exponentially decaying noise tail, 60 dB down after ``rt60_s``."""
    time_s = np.arange(int(rt60_s * SAMPLE_RATE)) / SAMPLE_RATE
    tail = generator.standard_normal(len(time_s)) * np.exp(-np.log(1000) * time_s / rt60_s)
    tail[: int(0.002 * SAMPLE_RATE)] = 0
    # The direct path keeps 6 dB more energy than the tail: a speaker near the microphone.
    room = tail * (0.5 / np.sqrt(np.sum(tail**2)))
    room[0] = 1.0
    size = len(voice) + len(room)
    return np.fft.irfft(np.fft.rfft(voice, size) * np.fft.rfft(room, size), size)[: len(voice)]


def write_flac(samples: Samples, path: Path) -> None:
    """Write 16-bit FLAC so that ``path`` is either complete or absent."""
    import soundfile

    encoded = io.BytesIO()
    soundfile.write(encoded, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    # Python writes the file: libsndfile does not say that a disk is full.
    partial = path.with_suffix(".tmp")
    partial.write_bytes(encoded.getvalue())
    os.replace(partial, path)


def work(jobs: Path, folder: Path) -> None:
    """Record every utterance in ``jobs`` that ``folder`` lacks; prints one JSON line for each."""
    studio: Studio | None = None
    for line in jobs.read_text(encoding="utf-8").splitlines():
        item = Utterance(**json.loads(line))
        path = folder / f"{item.id}.flac"
        if not path.exists():
            studio = studio or Studio()
            write_flac(studio.record(item), path)
        # A parent that was killed has closed this pipe: the write fails and the worker ends with it.
        print(json.dumps({"id": item.id}), flush=True)


def main(arguments: list[str]) -> int:
    """Be a worker; a failure is the last line printed, with what the parent needs to say it again."""
    try:
        work(Path(arguments[0]), Path(arguments[1]))
    except BrokenPipeError:
        os._exit(1)
    except VocativeError as error:
        print(json.dumps({"given": error.given, "expected": error.expected, "fix": error.fix}), flush=True)
        return 1
    except OSError as error:
        print(
            json.dumps({"errno": error.errno, "message": error.strerror, "file": error.filename}), flush=True
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
