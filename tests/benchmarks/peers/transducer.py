"""Transducer beam search against other toolkits' on the same weights.

    OMP_NUM_THREADS=1 python tests/benchmarks/peers/transducer.py --peers DIR

A transducer with a stateless predictor of two tokens, 256 dimensions and 500 tokens; about 45 tokens are said in
each utterance of 250 frames (40 ms each). One thread; all searches take turns, each peer in a process and an
environment of its own (README.md), and ratios are medians over turns. The peers are handed frames that are already
projected into the joint network; ours projects them itself.

Exit status 1 if a bar is missed or ours answers worse than a peer does with the same beam: its best hypotheses may
be less probable, summed over all alignments, by 0.5 nats an utterance, and their error rate higher by one point.
Bars:

    at least 6 x as fast as torchaudio, 10 x with 32 utterances; 7 x ESPnet's maes, 12 x its default search,
    12 x SpeechBrain's; beam 4 takes at most 1.5 x batched greedy search.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from planted_transducer import FRAMES, VOCAB, PlantedTransducer
from protocol import Peer, Timed, environment, ratio, take_turns, timed

from asr.decoding_config import DecodingConfig
from asr.scoring.errors import score_pairs, total
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search

Name = tuple[str, int, int]
"""Which search, beam, utterances."""
FEW, MANY = 8, 32
BEAMS = (4, 10)
BARS = {
    ("torchaudio", FEW): 6.0,
    ("torchaudio", MANY): 10.0,
    ("espnet maes", FEW): 7.0,
    ("espnet default", FEW): 12.0,
    ("speechbrain", FEW): 12.0,
}
OVER_GREEDY = 1.5
OURS, ALL = "ours", "ours, all tokens"


def ours(planted: PlantedTransducer, candidates: int | None, beam: int, utterances: int) -> list[list[int]]:
    """Best tokens of our search."""
    emitter = planted.emitter(utterances, candidates)
    return [list(found[0].tokens) for found in BeamSearch(emitter, BeamConfig(beam=beam)).run()]


def greedy(planted: PlantedTransducer, utterances: int) -> list[list[int]]:
    """Tokens of our greedy search."""
    return [tokens for tokens, _ in greedy_search(planted.emitter(utterances, None))]


def save(planted: PlantedTransducer, path: Path) -> None:
    """What the peers are given: see ``transducer_worker.Weights``."""
    model = planted.model
    with torch.no_grad():
        frames = model.joint.frame(planted.encoded)
    output = model.joint.output
    table = model.predictor.embedding.weight.detach().view(2, VOCAB + 1, -1)
    parts = {
        "frames": frames,
        "embedding": table,
        "weight": output.weight.detach(),
        "bias": output.bias.detach(),
    }
    torch.save({name: part.clone() for name, part in parts.items()}, path)


def own_searches(planted: PlantedTransducer) -> dict[Name, Timed]:
    """Ours, by name."""
    candidates = DecodingConfig().candidates
    searches: dict[Name, Timed] = {}
    for utterances in (FEW, MANY):
        searches["greedy", 1, utterances] = timed(partial(greedy, planted, utterances))
        for beam in BEAMS:
            searches[OURS, beam, utterances] = timed(partial(ours, planted, candidates, beam, utterances))
            searches[ALL, beam, utterances] = timed(partial(ours, planted, None, beam, utterances))
    return searches


def start_peers(folder: Path | None, weights: Path) -> list[tuple[Peer, list[tuple[str, str, int]]]]:
    """The peers that there are, each with its searches: name, kind, utterances."""
    kinds = {
        "torchaudio": [("torchaudio", "", FEW), ("torchaudio", "", MANY)],
        "espnet": [("espnet maes", "maes", FEW), ("espnet default", "default", FEW)],
        "speechbrain": [("speechbrain", "", FEW)],
    }
    started = []
    for toolkit, searches in kinds.items():
        python = Path(sys.executable) if toolkit == "torchaudio" else environment(folder, toolkit)
        if python is not None:
            script = Path(__file__).with_name("transducer_worker.py")
            started.append((Peer(python, script, toolkit, str(weights)), searches))
    return started


def judge(
    planted: PlantedTransducer, answers: dict[Name, list[list[int]]]
) -> dict[Name, tuple[float, float]]:
    """Mean log probability and error rate in percent of every answer."""
    judged = {}
    for name, texts in answers.items():
        written = [" ".join(map(str, text)) for text in texts]
        spoken = [" ".join(map(str, said)) for said in planted.said[: len(texts)]]
        errors = total(score_pairs(zip(spoken, written, strict=True)))
        with torch.no_grad():
            logp = planted.logp(planted.encoded[: len(texts)], texts).mean()
        judged[name] = (float(logp), 100 * errors.rate)
    return judged


def compare(seconds: dict[Name, list[float]], judged: dict[Name, tuple[float, float]]) -> bool:
    """Print how every peer and greedy search compare with ours; whether all bars are met."""
    good = True
    print(f"\n{'ours against':16s} beam utterances   ratio          bar")
    for name in seconds:
        who, beam, utterances = name
        if (who, utterances) not in BARS:
            continue
        mine, bar = (OURS, beam, utterances), BARS[who, utterances]
        times, less = ratio(seconds[name], seconds[mine]), judged[name][0] - judged[mine][0]
        worse = judged[mine][1] - judged[name][1]
        words = [f"{times:6.1f} x faster  {bar:4.0f} x  {'met' if times >= bar else 'MISSED'}"]
        if less > 0.5 or worse > 1.0:
            words.append(f"WORSE ANSWERS: {less:.2f} nats, {worse:.2f} points")
        if who == "torchaudio":
            words.append(f"(about {times / 2:.1f} x icefall's, which is 1.8 to 2.1 x torchaudio's)")
        good &= times >= bar and less <= 0.5 and worse <= 1.0
        print(f"{who:16s} {beam:4d} {utterances:10d} {'; '.join(words)}")
    for utterances in (FEW, MANY):
        times = ratio(seconds[OURS, BEAMS[0], utterances], seconds["greedy", 1, utterances])
        good &= times <= OVER_GREEDY
        verdict = "met" if times <= OVER_GREEDY else "MISSED"
        row = f"{'greedy':16s} {BEAMS[0]:4d} {utterances:10d} {times:6.2f} x as long {OVER_GREEDY:4.1f} x"
        print(f"{row}  {verdict}")
    return good


def main() -> int:
    """Run, print, and check the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="timed turns of every search")
    default = os.environ.get("VOCATIVE_PEERS")
    parser.add_argument("--peers", type=Path, default=default, help="folder of environments (VOCATIVE_PEERS)")
    parser.add_argument("--updates", type=int, default=100, help="training steps of the model")
    given = parser.parse_args()
    torch.set_num_threads(1)
    planted = PlantedTransducer(MANY, given.updates)
    searches = own_searches(planted)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        save(planted, weights)
        peers = start_peers(given.peers, weights)
        for peer, kinds in peers:
            for name, kind, utterances in kinds:
                for beam in BEAMS:
                    wanted = {"kind": kind, "beam": beam, "utterances": utterances}
                    searches[name, beam, utterances] = partial(peer.search, **wanted)
        seconds, answers = take_turns(searches, given.turns)
        for peer, _ in peers:
            peer.close()
    quiet, loud = planted.sharpness()
    print(
        f"{FRAMES} frames of 40 ms, {VOCAB} tokens, 1 thread, {given.turns} turns, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"in the middle, blank is {quiet:.1f} nats ahead where it wins, and a label {loud:.1f} where it does"
    )
    judged = judge(planted, answers)
    print(f"{'search':18s} beam utterances  seconds (range)          x real time   log P  errors")
    for name, taken in seconds.items():
        middle, (logp, errors) = statistics.median(taken), judged[name]
        times = f"{middle:7.3f} ({min(taken):.3f}-{max(taken):.3f})"
        real = name[2] * FRAMES * 0.04 / middle
        print(f"{name[0]:18s} {name[1]:4d} {name[2]:10d} {times:24s} {real:8.0f} {logp:11.2f} {errors:6.2f}%")
    return int(not compare(seconds, judged))


if __name__ == "__main__":
    sys.exit(main())
