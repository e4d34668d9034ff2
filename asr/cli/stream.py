"""``asr stream``: text while the recording goes on."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from asr.cli.console import put, say
from asr.cli.entities import GivenEntities
from asr.cli.search_settings import search_changes, search_options
from asr.cli.transcribe import (
    LM,
    Beam,
    Device,
    LMWeight,
    Model,
    Settings,
    SettingsFile,
    add_models,
    load_recognizer,
)
from lm.errors import AudioError

if TYPE_CHECKING:
    from asr.audio import Samples
    from asr.streaming import Partial, StreamingRecognizer
    from decoding.result import Transcript
    from lm.classes import EntityCatalog

STDIN_RATE = 16000
"""Hz of samples on standard input."""
HEADERS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM", b"NIST")
"""How files begin that are not samples alone."""
PIECE_S = 0.1
"""Seconds of audio pushed at once."""

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="A recording, or - for samples on standard input: 16-bit, one channel, 16 kHz, no header.",
        show_default=False,
    ),
]
Entities = Annotated[
    Path | None,
    typer.Option(
        "--entities", "-e", metavar="LIST", help="Names to recognise, by class: yaml, jsonl, csv, txt."
    ),
]
Pause = Annotated[
    float, typer.Option("--pause-s", min=0.1, help="Silence behind the words that ends an utterance.")
]
Whole = Annotated[bool, typer.Option("--whole", help="Do not cut the stream into utterances.")]
Context = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=VALUE",
        help="What is known of the stream, for a contextual language model; may be repeated.",
    ),
]
RealTime = Annotated[bool, typer.Option("--real-time", help="Read a file no faster than it was spoken.")]


def stream(
    file: File,
    model: Model,
    entities: Entities = None,
    pause_s: Pause = 0.8,
    whole: Whole = False,
    real_time: RealTime = False,
    beam: Beam = None,
    lm: LM = None,
    lm_weight: LMWeight = None,
    context: Context = None,
    settings: Settings = None,
    settings_file: SettingsFile = None,
    device: Device = "cpu",
) -> int:
    """Turn a recording into text while it goes on; the model's encoder must work in chunks.

    Prints a line an utterance as soon as it is over: its start and its end in seconds, its text. On a terminal,
    what is known of the next one stands below, words that may still change in grey.

    Examples:

    \b
      asr stream call.wav --model exp/model --real-time
      arecord -q -f S16_LE -r 16000 -t raw | asr stream - --model exp/model
      asr stream call.wav --model exp/model --lm contextual.safetensors --context hour=7 --context app=maps
    """
    from asr.cli.contexts import context_of
    from asr.streaming import EndpointConfig, StreamingRecognizer

    catalog, known = _catalog(entities), context_of(context or [])
    changes = search_changes(beam, lm, lm_weight, settings or [], settings_file)
    recognizer = load_recognizer(model, device)
    options = search_options(recognizer, changes)
    add_models(recognizer, [lm] if lm else [], options)
    GivenEntities(catalog).check(recognizer, options)
    rules = None if whole else EndpointConfig(pause_s=pause_s)
    recognition = StreamingRecognizer(
        recognizer, entities=catalog, context=known, options=options, endpoint=rules
    )
    rate = STDIN_RATE if file == "-" else recognizer.features.sample_rate
    pieces = _from_stdin() if file == "-" else _from_file(Path(file), rate)
    interrupted = False
    began = time.monotonic()
    try:
        for piece in pieces:
            partial = recognition.push(piece, rate)
            for final in partial.finals:
                _put(final)
            _show(partial)
            if real_time and file != "-":
                time.sleep(max(0.0, began + recognition.stats.audio_s - time.monotonic()))
    except KeyboardInterrupt:  # the usual end of a stream from a microphone
        interrupted = True
    if interrupted and not recognition.stats.audio_s:
        return 130
    _put(recognition.finish())
    _tell(recognition)
    return 130 if interrupted else 0


def _from_file(path: Path, rate: int) -> Iterator[Samples]:
    from asr.audio import read_segments

    for _, samples in read_segments(path, 30.0, rate):
        for first in range(0, len(samples), int(PIECE_S * rate)):
            yield samples[first : first + int(PIECE_S * rate)]


def _from_stdin() -> Iterator[Samples]:
    first = True
    size = 2 * int(PIECE_S * STDIN_RATE)
    while len(data := sys.stdin.buffer.read(size)) > 1:
        if first and data[:4] in HEADERS:
            raise AudioError(
                f"a file on standard input ({data[:4].decode()} …)", "samples without a header",
                "name the file, or convert it: ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -",
            )  # fmt: skip
        first = False
        yield (np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 32768).astype(np.float32)


def _catalog(path: Path | None) -> EntityCatalog | None:
    if path is None:
        return None
    from lm.classes import EntityCatalog

    return EntityCatalog.load(path)


def _put(final: Transcript) -> None:
    _wipe()
    if final.words:
        put(f"{final.words[0].start_s:.2f}\t{final.words[-1].end_s:.2f}\t{final.text}")


def _show(partial: Partial) -> None:
    """The utterance under way, on a line that is written over; as much of its end as fits."""
    if sys.stderr.isatty():
        _wipe()
        width = shutil.get_terminal_size().columns - 1
        rest = partial.text[len(partial.stable_text) :][-width:]
        kept = partial.stable_text[max(0, len(partial.stable_text) + len(rest) - width) :]
        print(f"{kept}\x1b[2m{rest}\x1b[0m", end="", file=sys.stderr, flush=True)


def _wipe() -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _tell(recognition: StreamingRecognizer) -> None:
    stats = recognition.stats
    line = f"{stats.audio_s:.1f} s, {stats.real_time_factor:.2f} s of computation a second"
    if stats.words:
        shown = statistics.median(word.shown_s for word in stats.words)
        stable = statistics.median(word.stable_s for word in stats.words)
        line += f"; half of the words were shown {shown:.2f} s and stable {stable:.2f} s behind their end"
    say(line)
