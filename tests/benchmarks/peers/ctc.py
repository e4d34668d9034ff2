"""CTC beam search with an n-gram model and phrases against other toolkits' on the same emissions.

    OMP_NUM_THREADS=1 python tests/benchmarks/peers/ctc.py --peers DIR

The emissions are synthetic: peaks of 500 tokens among blanks, each with a rival and with others less likely; about
45 tokens are said in each utterance of 250 frames (40 ms each), and some are phrases of tokens that the language
model hardly knows, whose rivals are a little louder. The model is of order 3 over the tokens, trained on text of
the same kind. Every token is a word, so that pyctcdecode's language model of words is the same; all read one ARPA
file.

One thread; all searches take turns with 8 utterances that nobody has seen before, and ratios are medians over turns
with their range. Ours keeps the rows of its language model from turn to turn, as in service; "cold" forgets them.
flashlight-text has no phrases without a lexicon and runs without; pyctcdecode boosts each word of a phrase alone.
Beams and thresholds are equal; ours and flashlight-text consider the same number of tokens in each frame, and
pyctcdecode those above its own default of -5 nats, which are fewer.

Exit status 1 if a bar is missed or ours answers worse than a peer with the same beam: without phrases its best
texts may be less probable by 0.5 nats an utterance (CTC over all alignments plus weighted language model) and its
error rate higher by one point; it must find 80 % of the planted phrases, no fewer than a peer does. Bars, with
phrases wherever there are:

    faster than pyctcdecode; no slower than flashlight-text.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from protocol import Peer, environment, take_turns, timed
from torch import Tensor

from asr.decoding_config import DecodingConfig
from asr.families.ctc.emitter import CTCEmitter
from asr.scoring.errors import score_pairs, total
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.internal_lm import ContextScorer
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.scorer import Scorer
from lm.kneser_ney import train_arpa
from lm.ngram import NGramModel

VOCAB, FRAMES, UTTERANCES = 500, 250, 8
COMMON, STOP = 300, VOCAB - 1
"""Tokens from COMMON to STOP are names, of which phrases are made; STOP ends every sentence."""
PHRASES, BEAMS = 200, (8, 16, 32)
LM_WEIGHT, BONUS = 0.4, 2.0
CANDIDATES, THRESHOLD = DecodingConfig().candidates, BeamConfig().threshold
WORDS = [f"w{i:03d}" for i in range(VOCAB)]
OURS = "ours"

Answers = list[list[list[int]]]
"""Tokens of every utterance in every turn."""


class Name(NamedTuple):
    """Which search; ``phrases`` as far as it has them."""

    who: str
    beam: int
    phrases: bool


LESS, MORE = 0.5, 1.0
"""Nats an utterance by which our answers may be less probable, points by which their error rate may be higher."""
BARS = {"pyctcdecode": (True, 1.0), "flashlight-text": (False, 1.0)}
"""Whether the peer has phrases, and how many times longer it must take."""


class Planted:
    """``emissions`` ``(turns, 8, 250, V + 1)``, what is ``said`` in them and which phrases are ``planted``."""

    def __init__(self, turns: int, seed: int) -> None:
        self._dice, self._noise = random.Random(seed), np.random.default_rng(seed)
        dice = self._dice
        self._follower = [[dice.randrange(COMMON) for _ in range(15)] for _ in range(VOCAB)]
        for followers in self._follower:
            followers += [token ^ 1 for token in followers[:5]]
        names = range(COMMON, STOP)
        self.phrases = [tuple(dice.sample(names, dice.choice((2, 3)))) for _ in range(PHRASES)]
        self._rival = [t ^ 1 if t < COMMON else dice.randrange(COMMON) for t in range(VOCAB)]
        self.emissions = np.empty((turns, UTTERANCES, FRAMES, VOCAB + 1), np.float32)
        self.said: Answers = [[] for _ in range(turns)]
        self.planted: list[list[list[tuple[int, ...]]]] = [[] for _ in range(turns)]
        for turn in range(turns):
            for utterance in range(UTTERANCES):
                self.emissions[turn, utterance] = self._speak(turn)

    def sentence(self, length: int, phrases: list[tuple[int, ...]] | None = None) -> list[int]:
        """So many tokens, each mostly one of a few that follow the last; any name may stand between, or phrases."""
        dice, tokens = self._dice, [self._dice.randrange(COMMON)]
        while len(tokens) < length:
            if phrases is not None and dice.random() < 0.07:
                phrases.append(dice.choice(self.phrases))
                tokens += phrases[-1]
            elif phrases is None and dice.random() < 0.03:
                tokens.append(dice.randrange(COMMON, STOP))
            else:
                surprise = dice.random() < 0.3
                tokens.append(dice.randrange(COMMON) if surprise else dice.choice(self._follower[tokens[-1]]))
        return [*tokens, STOP]

    def _speak(self, turn: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Log probabilities ``(T, V + 1)`` of one utterance."""
        dice, phrases = self._dice, list[tuple[int, ...]]()
        tokens = self.sentence(44, phrases)
        logits = self._noise.normal(size=(FRAMES, VOCAB + 1))
        logits[:, VOCAB] = 14 + self._noise.normal(size=FRAMES)
        places = sorted(dice.sample(range(2, FRAMES - 2, 2), len(tokens)))
        for frame in dice.sample(range(FRAMES), FRAMES // 20):  # something that was not said
            logits[frame, dice.randrange(COMMON)] = 14 - dice.uniform(1, 4)
        for place, token in zip(places, tokens, strict=True):
            logits[place, VOCAB] = 14 - dice.uniform(1, 7)
            for _ in range(3):
                logits[place, dice.randrange(VOCAB)] = 14 - dice.uniform(2, 7)
            named = COMMON <= token < STOP
            behind = dice.uniform(-1.5, 0) if named else dice.uniform(-1, 5)
            logits[place, self._rival[token]] = 14 - (6 if token == STOP else behind)
            logits[place, token] = 14
            if dice.random() < 0.4:
                logits[place + 1, [token, VOCAB]] = 13 - dice.random(), 14
        self.said[turn].append(tokens)
        self.planted[turn].append(phrases)
        logp = torch.from_numpy(logits).float().log_softmax(-1)
        return np.asarray(logp.numpy())

    def found(self, answers: Answers) -> float:
        """Share of the planted phrases that are in the answers, in percent."""
        hits = [
            any(tuple(tokens[i : i + len(phrase)]) == phrase for i in range(len(tokens)))
            for answer, planted in zip(answers, self.planted, strict=True)
            for tokens, phrases in zip(answer, planted, strict=True)
            for phrase in phrases
        ]
        return 100 * statistics.mean(hits)


class Sentences(ContextScorer):
    """An n-gram model that also scores the end of the sentence, as the peers do; ours leave ends alone."""

    def __init__(self, ngram: NGramModel) -> None:
        contexts = ngram.contexts()
        super().__init__(contexts, "fusion", LM_WEIGHT)
        self._states, self._ngram = contexts._states, ngram

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        return self._ngram.rows(self._states.data[state])[:, -1]


class Ours:
    """Our searches; each has a language model of its own, so that none learns from another."""

    def __init__(self, planted: Planted, ngram: NGramModel) -> None:
        self._emissions = torch.from_numpy(planted.emissions)
        self._ngram = ngram
        self._graph = BoostGraph.build([(phrase, 1.0) for phrase in planted.phrases], VOCAB)

    def make(self, beam: int, phrases: bool, cold: bool) -> Callable[[int], list[list[int]]]:
        """Searches the utterances of a turn."""
        own = replace(self._ngram, _stores={})
        config = BeamConfig(beam=beam, nbest=1)
        model: Any = SimpleNamespace(num_tokens=VOCAB, logp=lambda emissions: emissions)
        lengths = torch.full((UTTERANCES,), FRAMES)

        @torch.no_grad()
        def search(batch: int) -> list[list[int]]:
            ngram = replace(own, _stores={}) if cold else own
            scorers: list[Scorer] = [Sentences(ngram)]
            if phrases:
                scorers.append(PhraseBoost([self._graph], BONUS, "phrases"))
            emitter = CTCEmitter(model, self._emissions[batch], lengths, CANDIDATES)
            return [list(found[0].tokens) for found in BeamSearch(emitter, config, scorers=scorers).run()]

        return search


class Rotating:
    """A search that takes other utterances in every turn, and its ``answers``."""

    def __init__(self, search: Callable[[int], tuple[float, list[list[int]]]]) -> None:
        self._search, self._turn = search, count()
        self.answers: Answers = []

    def __call__(self) -> tuple[float, list[list[int]]]:
        taken, tokens = self._search(next(self._turn))
        self.answers.append(tokens)
        return taken, tokens


def train(planted: Planted, path: Path) -> NGramModel:
    """The language model, and its file."""
    sentences = [[WORDS[token] for token in planted.sentence(44)] for _ in range(10_000)]
    train_arpa(sentences, 3, path)
    tokenizer: Any = SimpleNamespace(pieces=tuple(WORDS), classes=(), vocab_size=VOCAB, num_classes=0)
    return NGramModel.from_arpa(path, tokenizer)


def all_searches(planted: Planted, ngram: NGramModel, peer: Peer | None) -> dict[Name, Rotating]:
    """Ours and the peers'."""
    ours, searches = Ours(planted, ngram), dict[Name, Rotating]()

    def run(search: Callable[[int], list[list[int]]], batch: int) -> tuple[float, list[list[int]]]:
        return timed(partial(search, batch))()

    def ask(toolkit: str, beam: int, phrases: bool, batch: int) -> tuple[float, list[list[int]]]:
        assert peer is not None
        return peer.search(toolkit=toolkit, beam=beam, phrases=phrases, batch=batch)

    for beam in BEAMS:
        for who, phrases in ((OURS, False), (OURS, True), ("ours, cold", True)):
            search = ours.make(beam, phrases, who != OURS)
            searches[Name(who, beam, phrases)] = Rotating(partial(run, search))
        for who in BARS if peer else ():
            for phrases in {False, BARS[who][0]}:
                toolkit = who.partition("-")[0]
                searches[Name(who, beam, phrases)] = Rotating(partial(ask, toolkit, beam, phrases))
    return searches


def start_peer(planted: Planted, arpa: Path, python: Path) -> Peer:
    """The worker, with all it needs written beside the language model."""
    emissions, path = arpa.with_name("emissions.npy"), arpa.with_name("task.json")
    np.save(emissions, planted.emissions)
    task = {
        "words": WORDS,
        "phrases": planted.phrases,
        "arpa": str(arpa),
        "emissions": str(emissions),
        "candidates": CANDIDATES,
        "threshold": THRESHOLD,
        "lm_weight": LM_WEIGHT,
        "bonus": BONUS,
    }
    path.write_text(json.dumps(task), encoding="utf-8")
    return Peer(python, Path(__file__).with_name("ctc_worker.py"), str(path))


class Judge:
    """Scores answers by what all searches look for, apart from phrases."""

    def __init__(self, planted: Planted, ngram: NGramModel) -> None:
        self._planted, self._ngram = planted, ngram
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}

    def scores(self, answers: Answers) -> list[float]:
        """Log probability of each text over all alignments, and by the ARPA file with ``</s>``, weighted."""
        emissions = torch.from_numpy(self._planted.emissions).flatten(0, 1)
        texts = [tuple(tokens) for answer in answers for tokens in answer]
        return [self._score(i, text, emissions[i]) for i, text in enumerate(texts)]

    def _score(self, utterance: int, text: tuple[int, ...], logp: Tensor) -> float:
        if (utterance, text) not in self._known:
            sizes = torch.tensor([FRAMES]), torch.tensor([len(text)])
            labels = torch.tensor([text], dtype=torch.long)
            heard = -torch.nn.functional.ctc_loss(logp[:, None], labels, *sizes, blank=VOCAB, reduction="sum")
            score = float(heard) + LM_WEIGHT * self._ngram.score_text(text)
            self._known[utterance, text] = score
        return self._known[utterance, text]

    def errors(self, answers: Answers) -> float:
        """Error rate in percent."""
        said, heard = (
            [" ".join(map(str, tokens)) for answer in one for tokens in answer]
            for one in (self._planted.said, answers)
        )
        return 100 * total(score_pairs(zip(said, heard, strict=True))).rate


def judge(planted: Planted, ngram: NGramModel, answers: dict[Name, Answers]) -> bool:
    """Print what was found; whether ours answers as well as the peers."""
    judges, good = Judge(planted, ngram), True
    print(
        f"\n{'answers':16s} beam phrases   log P  errors  phrases found  less probable, more probable than ours"
    )
    for name, found in answers.items():
        scores, share = judges.scores(found), planted.found(found)
        row = f"{name.who:16s} {name.beam:4d} {name.phrases!s:7s} {statistics.mean(scores):8.2f}"
        words = [f"{row} {judges.errors(found):6.2f}% {share:12.1f}%"]
        mine = answers[Name(OURS, name.beam, name.phrases)]
        if not name.phrases and name.who != OURS:
            gaps = [one - own for one, own in zip(scores, judges.scores(mine), strict=True)]
            better, worse = (sum(sign * gap > 0.1 for gap in gaps) for sign in (1, -1))
            words.append(f"{worse} and {better} of {len(gaps)}")
            if statistics.mean(gaps) > LESS or judges.errors(mine) > judges.errors(found) + MORE:
                good = False
                words.append("WORSE ANSWERS")
        if name.phrases and planted.found(mine) < max(80.0, share):
            good = False
            words.append("OURS FINDS TOO FEW PHRASES")
        print("; ".join(words))
    return good


def compare(seconds: dict[Name, list[float]]) -> bool:
    """Print how every peer compares with ours; whether all bars are met."""
    good = True
    print(f"\n{'faster than':16s} beam phrases   ours (range)             ours, cold (range)")
    for name, taken in seconds.items():
        if name.who not in BARS:
            continue
        phrases, bar = BARS[name.who]
        row = f"{name.who:16s} {name.beam:4d} {name.phrases!s:7s}"
        against = [Name(OURS, name.beam, name.phrases or not phrases)]
        if against[0].phrases:
            against.append(Name("ours, cold", name.beam, True))
        for i, mine in enumerate(against):
            ratios = [a / b for a, b in zip(taken, seconds[mine], strict=True)]
            middle = statistics.median(ratios)
            row += f"  {middle:6.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"
            if name.phrases == phrases and i == 0:
                good &= middle >= bar
                row += f" bar {bar:.0f} x {'met' if middle >= bar else 'MISSED'}"
        print(row)
    return good


def main() -> int:
    """Run, print, and check the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=7, help="timed turns of every search")
    default = os.environ.get("VOCATIVE_PEERS")
    parser.add_argument("--peers", type=Path, default=default, help="folder of environments (VOCATIVE_PEERS)")
    parser.add_argument("--seed", type=int, default=0, help="of the emissions")
    given = parser.parse_args()
    torch.set_num_threads(1)
    planted = Planted(given.turns + 1, given.seed)
    with tempfile.TemporaryDirectory() as folder:
        arpa, python = Path(folder) / "lm.arpa", environment(given.peers, "ctc")
        ngram = train(planted, arpa)
        peer = start_peer(planted, arpa, python) if python else None
        searches = all_searches(planted, ngram, peer)
        seconds, _ = take_turns(searches, given.turns)
        if peer:
            peer.close()
    size = (
        f"{UTTERANCES} utterances x {FRAMES} frames of 40 ms (synthetic), {VOCAB} tokens, {PHRASES} phrases"
    )
    print(f"{size}, 1 thread, {given.turns} turns, load {os.getloadavg()[0]:.1f}")
    print(f"{'search':16s} beam phrases seconds (range)          x real time")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        times = f"{middle:7.3f} ({min(taken):.3f}-{max(taken):.3f})"
        real = UTTERANCES * FRAMES * 0.04 / middle
        print(f"{name.who:16s} {name.beam:4d} {name.phrases!s:7s} {times:24s} {real:8.0f}")
    met = compare(seconds)
    return int(not (judge(planted, ngram, {n: s.answers for n, s in searches.items()}) and met))


if __name__ == "__main__":
    sys.exit(main())
