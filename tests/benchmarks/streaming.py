"""How far behind the speaker the words of a stream are, on real speech.

    OMP_NUM_THREADS=1 python tests/benchmarks/streaming.py exp/chunked [--piece 0.1]

DIR is a recipe's work folder whose model has an encoder in chunks (``model.encoder.chunk``). Every recording of its
test set is a stream of its own, pushed in pieces as it would be spoken, without lists; the clock is that of a live
stream on this machine, one recording at a time. Printed are the error rate, the seconds between the end of a word
and the moment from which it is shown, and stays (95 % intervals over recordings), and the computation a second of
audio. Exit status 1 if a stream ends in another text than the recording does offline, or computation takes longer
than the audio.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from asr.audio import read_audio
from asr.recognizer import Recognizer
from asr.scoring.bootstrap import Bootstrap, ratio
from asr.scoring.errors import word_errors
from asr.scoring.measure import error_columns
from asr.streaming import StreamingRecognizer
from asr.streaming_stats import StreamStats
from decoding.result import Transcript


def main() -> int:
    """Stream, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--piece", type=float, default=0.1, help="seconds pushed at once")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(arguments.folder / "model")
    from asr.data.kaldi import read_table

    said = {name: text.upper() for name, text in read_table(arguments.folder / "data/test/text").items()}
    paths = {name: Path(path) for name, path in read_table(arguments.folder / "data/test/wav.scp").items()}
    options = recognizer.decoding.model_copy(update={"biasing": "none"})
    streamed(recognizer, options, next(iter(paths.values())), arguments.piece)  # whatever happens only once
    found = {n: streamed(recognizer, options, path, arguments.piece) for n, path in paths.items()}
    different = 0
    for path, result in recognizer.transcribe_many(list(paths.values()), options=options):
        assert isinstance(result, Transcript), result
        if result.text != found[path.stem][0].text:
            different += 1
            print(f"{path.stem}: offline {result.text!r}, streamed {found[path.stem][0].text!r}")
    errors = [word_errors(said[n], transcript.text) for n, (transcript, _) in found.items()]
    rate = Bootstrap(len(errors)).interval(error_columns(errors), ratio)
    print(f"{len(found)} streams, {different} with another text than offline")
    print(f"WER {100 * rate.value:.2f} [{100 * rate.low:.2f}, {100 * rate.high:.2f}] %")
    load = report([stats for _, stats in found.values()])
    return int(different > 0 or load > 1)


def streamed(
    recognizer: Recognizer, options: object, path: Path, piece_s: float
) -> tuple[Transcript, StreamStats]:
    """The transcript of one recording, pushed piece by piece, and what that took."""
    samples, rate = read_audio(path), recognizer.features.sample_rate
    stream = StreamingRecognizer(recognizer, options=options, endpoint=None)  # type: ignore[arg-type]
    size = max(1, round(piece_s * rate))
    for first in range(0, len(samples), size):
        stream.push(samples[first : first + size])
    return stream.finish(), stream.stats


def report(stats: list[StreamStats]) -> float:
    """Print the delays; the computation a second of audio."""
    print(f"a sound waits for at most {stats[0].latency_s:.2f} s before it is encoded")
    for name in ("shown_s", "stable_s"):
        delays = [np.array([getattr(word, name) for word in each.words]) for each in stats]
        chance = np.random.default_rng(0)
        samples = chance.integers(len(delays), size=(1000, len(delays)))
        for share in (0.5, 0.9):
            drawn = [np.quantile(np.concatenate([delays[i] for i in rows]), share) for rows in samples]
            low, high = np.quantile(drawn, (0.025, 0.975))
            value = np.quantile(np.concatenate(delays), share)
            what = f"{name[:-2]:7s} behind the end of a word, {share:.0%} of words"
            print(f"{what}: {value:.2f} [{low:.2f}, {high:.2f}] s")
    load = sum(each.busy_s for each in stats) / sum(each.audio_s for each in stats)
    print(f"{load:.3f} s of computation a second of audio")
    return load


if __name__ == "__main__":
    sys.exit(main())
