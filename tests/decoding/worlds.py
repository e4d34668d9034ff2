"""Small random worlds in which everything that can be said is enumerated: models, lists, scorers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import torch
from label_toys import ToyLabels
from paths import score_alone
from torch import Tensor
from toys import ToyEmitter, log_sum
from trees import tree_of

from asr.families.ctc.emitter import CTCEmitter
from decoding.class_status import ClassGrammar
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.internal_lm import ContextScorer, density_ratio, ilme, lodr
from decoding.label_sync import LabelBeamConfig, LabelBeamSearch
from decoding.length_bonus import LengthBonus
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from lm.language_model import LanguageModel
from lm.lstm import LSTMLM, LSTMLMConfig
from lm.ngram import NGramModel
from lm.prefix_tree import PrefixTree
from lm.transformer import TransformerLM, TransformerLMConfig

Kind = Literal["transducer", "ctc", "labels"]
Tokens = tuple[int, ...]
Stack = frozenset[str]
Entries = dict[int, list[tuple[list[int], float]]]
Total = Callable[[list[float]], float]

VOCAB, CLASSES = 3, 2
WORDS = ("a", "b", "c", "<c0>", "<c1>")
STARTS = [True, True, False]
BONUS = 0.7
KINDS: tuple[Kind, ...] = ("transducer", "ctc", "labels")
SCORERS = ("ngram", "neural", "internal", "boost", "length")
WEIGHTS = {"ngram": 0.6, "neural": 0.4, "internal": 0.3, "boost": 0.8, "length": 0.5}
STACKS = [
    frozenset(chosen)
    for size in range(len(SCORERS) + 2)
    for chosen in itertools.combinations((*SCORERS, "classes"), size)
]
LISTS: list[Entries] = [
    {
        0: [([0, 2], 1.0), ([0], 2.0), ([0, 0], 1.0)],
        1: [([1, 2, 1], 1.0), ([1], 0.5), ([0, 2], 0.5), ([1, 2], 3.0)],
    },
    {1: [([1, 2], 1.0), ([0], 3.0)]},
    {},
]
PHRASES: list[list[tuple[list[int], float]]] = [
    [([0, 1], 1.5), ([1, 1, 2], 1.0), ([1], 0.4)],
    [([2, 0], 2.0), ([0], -0.5)],
    [],
]


def name_of(stack: Stack) -> str:
    return "+".join(sorted(stack)) or "nothing"


def neural(kind: str, seed: int, end: bool = False) -> LanguageModel:
    """A random model whose every token depends on all before, and far from flat."""
    torch.manual_seed(seed)
    model: LanguageModel
    if kind == "lstm":
        model = LSTMLM(LSTMLMConfig(width=8, end=end), VOCAB, CLASSES)
    else:
        config = TransformerLMConfig(layers=1, width=8, heads=2, feed_forward=8, end=end)
        model = TransformerLM(config, VOCAB, CLASSES)
    with torch.no_grad():
        for part in model.parameters():
            part.mul_(3.0)
    return model.eval()


class Unheard:
    """A model without its encoder: a table over the last two tokens. ``WithoutEncoder`` of the internal model."""

    num_tokens = VOCAB

    def __init__(self, utterances: int, seed: int) -> None:
        self.utterances, self.rows = utterances, VOCAB + 1
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(self.rows**2, VOCAB, generator=generator)

    def start(self) -> Tensor:
        return torch.full((self.utterances,), self.rows**2 - 1)

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        return state % self.rows * self.rows + tokens

    def internal_logits(self, state: Tensor) -> Tensor:
        return self.table[state]


class Reading(NamedTuple):
    """One way to read tokens as text and entities.

    ``lm`` and ``classes`` are log probabilities outside and inside entities, ``share`` what its entities hold of
    their lists, ``steps`` the log probability of each token, ``end`` that of the end, where there is one.
    """

    spans: tuple[tuple[int, int, int], ...]
    history: Tokens
    lm: float
    classes: float
    share: float
    steps: tuple[float, ...]
    end: float = 0.0


class Path_(NamedTuple):
    """One alignment: its log probability, and frame and log probability of each token."""

    logp: float
    frames: Tokens
    tokens: tuple[float, ...]


class World:
    """Models, lists and phrases of one seed, with all that can be said of them by enumeration."""

    def __init__(
        self, kind: Kind, seed: int, sizes: Sequence[int], ngram: NGramModel | None, ends: bool = False
    ) -> None:
        self.ends = ends
        self.kind, self.seed, self.sizes, self.ngram = kind, seed, list(sizes), ngram
        self.weights, self.symbols = dict(WEIGHTS), 1
        self.lm = neural("lstm", seed + 1, ends)
        self.external = neural("transformer" if seed % 2 else "lstm", seed + 2, ends)
        self.source = neural("lstm", seed + 3, ends)
        self.labels = ToyLabels(self.sizes, VOCAB, seed)
        generator = torch.Generator().manual_seed(seed)
        self.frames = torch.randn(len(sizes), max(sizes), VOCAB + 1, generator=generator).log_softmax(-1)
        self.transducer = ToyEmitter(self.sizes, self.lm, seed)
        self.transducer.lm_scale = 0.8
        self.lm_scale = {"transducer": 0.8, "ctc": 0.5, "labels": 0.4}[kind]
        self.alignments = cache(self._alignments)
        self.readings = cache(self._readings)
        self.row = cache(self._row)
        self.said = cache(self._said)

    @property
    def fused_end(self) -> bool:
        """Whether the class grammar's language model, which is not the emitter's own, scores the end."""
        return self.ends and self.kind != "transducer"

    def emitter(self, only: int | None) -> Any:
        chosen = range(len(self.sizes)) if only is None else [only]
        if self.kind == "labels":
            return ToyLabels(self.sizes, VOCAB, self.seed) if only is None else self.labels.alone(only)
        if self.kind == "ctc":
            model: Any = SimpleNamespace(num_tokens=VOCAB, logp=lambda encoded: encoded)
            lengths = torch.tensor([self.sizes[u] for u in chosen])
            return CTCEmitter(model, self.frames[chosen, : int(lengths.max())], lengths)
        emitter = self.transducer if only is None else self.transducer.alone(only)
        emitter.contexts = self.lm.contexts()
        return emitter

    def scorer(
        self, name: str, emitter: Any, utterances: Sequence[int], reference: bool, reverse: bool = False
    ) -> Scorer:
        """A fresh scorer, which knows nothing that another one has met."""
        weight = self.weights[name]
        if name == "ngram":
            assert self.ngram is not None
            return ContextScorer(self.ngram.contexts(self.ends), name, weight)
        if name == "neural":
            return ContextScorer(self.external.contexts(self.ends), name, weight)
        if name == "boost":
            step = -1 if reverse else 1
            graphs = [BoostGraph.build(PHRASES[u % len(PHRASES)][::step], VOCAB) for u in utterances]
            return PhraseBoost(graphs, weight, reference=reference)
        if name == "length":
            return LengthBonus(weight, torch.device("cpu"))
        found: Scorer
        if self.kind == "labels":
            found = ilme(Unheard(len(utterances), self.seed), weight)
        elif self.kind == "transducer" and self.seed % 3:
            found = ilme(emitter.contexts, weight)
        elif self.seed % 2:
            found = lodr(ContextScorer(self.source.contexts(self.ends), "any", 9.0), weight)
        else:
            found = density_ratio(ContextScorer(self.source.contexts(self.ends), "any", 9.0), weight)
        found.name = name
        return found

    def grammar(self, emitter: Any, utterances: Sequence[int], reverse: bool = False) -> ClassGrammar:
        contexts = emitter.contexts if self.kind == "transducer" else self.lm.contexts(self.ends)
        scale = self.lm_scale if self.kind == "ctc" else None
        trees = [self.tree(u, reverse) for u in utterances]
        return ClassGrammar(contexts, torch.tensor(STARTS), trees, BONUS, lm_scale=scale)

    def tree(self, utterance: int, reverse: bool = False) -> PrefixTree:
        lists = LISTS[utterance % len(LISTS)]
        if reverse:
            lists = {index: entries[::-1] for index, entries in reversed(lists.items())}
        return tree_of(lists, VOCAB, CLASSES) if lists else PrefixTree.empty(VOCAB, CLASSES)

    def search(
        self,
        stack: Stack,
        beam: int = 150,
        threshold: float = 1000.0,
        recombine: str = "sum",
        reference: bool = False,
        only: int | None = None,
        order: Callable[[list[Scorer]], list[Scorer]] = list,
        reverse: bool = False,
    ) -> list[list[RawHypothesis]]:
        emitter = self.emitter(only)
        utterances = range(len(self.sizes)) if only is None else [only]
        grammar = self.grammar(emitter, utterances, reverse) if "classes" in stack else None
        scorers = order(
            [self.scorer(n, emitter, utterances, reference, reverse) for n in SCORERS if n in stack]
        )
        shape: dict[str, Any] = {
            "beam": beam,
            "threshold": threshold,
            "nbest": 4 * beam,
            "recombine": recombine,
        }
        if self.kind == "labels":
            config = LabelBeamConfig(class_weight=self.lm_scale, **shape)
            return LabelBeamSearch(emitter, config, grammar, scorers).run()
        config_ = BeamConfig(max_symbols_per_frame=self.symbols, **shape)
        return BeamSearch(emitter, config_, grammar, scorers, reference).run()

    def _alignments(self, utterance: int) -> dict[Tokens, list[Path_]]:
        """Every alignment of every label sequence."""
        found: dict[Tokens, list[Path_]] = {}
        size = self.sizes[utterance]
        if self.kind == "labels":
            for length in range(size + 1):
                for tokens in itertools.product(range(VOCAB), repeat=length):
                    rows = [self.labels.logp(utterance, tokens[:i]).double() for i in range(length + 1)]
                    each = tuple(float(rows[i][t]) for i, t in enumerate(tokens))
                    found[tokens] = [Path_(sum(each) + float(rows[-1][VOCAB]), (), each)]
            return found
        return self._ctc(utterance) if self.kind == "ctc" else self._transducer(utterance)

    def _ctc(self, utterance: int) -> dict[Tokens, list[Path_]]:
        """All frame by frame labels; a label behind itself is the same one, and VOCAB is the blank."""
        found: dict[Tokens, list[Path_]] = {}
        logp, size = self.frames[utterance].double().tolist(), self.sizes[utterance]
        for said in itertools.product(range(VOCAB + 1), repeat=size):
            at = [f for f, s in enumerate(said) if s != VOCAB and (f == 0 or s != said[f - 1])]
            total = sum(logp[f][s] for f, s in enumerate(said))
            path = Path_(total, tuple(at), tuple(logp[f][said[f]] for f in at))
            found.setdefault(tuple(said[f] for f in at), []).append(path)
        return found

    def _transducer(self, utterance: int) -> dict[Tokens, list[Path_]]:
        """In each frame up to ``symbols`` labels, then a blank unless the last of them was taken."""
        found: dict[Tokens, list[Path_]] = {}
        logp = self.transducer.table[utterance].double().log_softmax(-1).tolist()
        of_frame = [
            labels
            for count in range(self.symbols + 1)
            for labels in itertools.product(range(VOCAB), repeat=count)
        ]
        for said in itertools.product(of_frame, repeat=self.sizes[utterance]):
            last, total, frames, each = VOCAB, 0.0, list[int](), list[float]()
            for frame, labels in enumerate(said):
                for label in labels:
                    each.append(logp[frame][last][label])
                    frames.append(frame)
                    last = label
                total += 0.0 if len(labels) == self.symbols else logp[frame][last][VOCAB]
            path = Path_(total + sum(each), tuple(frames), tuple(each))
            found.setdefault(tuple(itertools.chain(*said)), []).append(path)
        return found

    def _row(self, history: Tokens) -> tuple[list[float], list[float], float]:
        """Probabilities of the tokens, over these alone, and the odds of the tags and the end."""
        with torch.no_grad():
            logits = self.lm(torch.tensor([history], dtype=torch.long))[0, -1].double()
        odds = (logits - logits[:VOCAB].logsumexp(-1)).exp().tolist()
        return odds[:VOCAB], odds[VOCAB : VOCAB + CLASSES], odds[-1] if self.fused_end else 0.0

    def _readings(self, tokens: Tokens, lists: int) -> list[Reading]:
        """All class readings, from the lists and not from a tree of them; one without lists."""
        return list(self._read(tokens, LISTS[lists], Reading((), (), 0.0, 0.0, 0.0, ())))

    def _read(self, tokens: Tokens, lists: Entries, so_far: Reading) -> Iterator[Reading]:
        at = len(so_far.steps)
        behind = bool(so_far.history) and so_far.history[-1] >= VOCAB
        surface, odds, end = self.row(so_far.history)
        surface = [p if STARTS[v] or not behind else 0.0 for v, p in enumerate(surface)]
        odds = [math.exp(BONUS) * odds[c] if c in lists else 0.0 for c in range(CLASSES)]
        mass = end + (sum(surface) + sum(odds) if behind or lists else 1.0)
        if at == len(tokens):
            yield so_far._replace(end=math.log(end / mass) if end else 0.0)
            return
        token = tokens[at]
        if surface[token]:
            step = math.log(surface[token] / mass)
            after = so_far._replace(
                history=(*so_far.history, token), lm=so_far.lm + step, steps=(*so_far.steps, step)
            )
            yield from self._read(tokens, lists, after)
        for index, entries in lists.items():
            for entry, weight in entries:
                end = at + len(entry)
                if list(tokens[at:end]) != entry:
                    continue
                # What goes on behind each prefix; the last step is the entry's own weight.
                on = [
                    sum(w for e, w in entries if e[:n] == entry[:n] and len(e) > n) for n in range(len(entry))
                ]
                inside = [math.log(b / a) for a, b in zip(on, [*on[1:], weight], strict=True)]
                inside[0] += math.log(odds[index] / mass)
                after = Reading(
                    (*so_far.spans, (index, at, end)),
                    (*so_far.history, VOCAB + index),
                    so_far.lm,
                    so_far.classes + sum(inside),
                    so_far.share + math.log(weight / on[0]),
                    (*so_far.steps, *inside),
                )
                yield from self._read(tokens, lists, after)

    def _said(self, name: str, utterance: int, tokens: Tokens) -> float:
        """What a scorer says of the tokens, one by one, and of the end; weighted."""
        scorer = self.scorer(name, self.emitter(utterance), [utterance], True)
        return score_alone(scorer, tokens)

    def read_as(self, stack: Stack, utterance: int, tokens: Tokens) -> list[Reading]:
        """Readings that count: all, or where there are no classes the plain one, or one that costs nothing."""
        if "classes" in stack:
            return self.readings(tokens, utterance % len(LISTS))
        if self.kind == "transducer":
            return self.readings(tokens, 2)
        return [Reading((), tokens, 0.0, 0.0, 0.0, (0.0,) * len(tokens))]

    def expected(self, stack: Stack, utterance: int, maximum: bool) -> dict[Tokens, float]:
        """The score of all that can be said."""
        total: Total = max if maximum else log_sum
        found = {}
        for tokens, paths in self.alignments(utterance).items():
            readings = self.read_as(stack, utterance, tokens)
            if readings:
                found[tokens] = (
                    total([path.logp for path in paths])
                    + total([self.lm_scale * (r.lm + r.classes + r.end) for r in readings])
                    + sum(self.said(name, utterance, tokens) for name in SCORERS if name in stack)
                )
        return found


@cache
def world(kind: Kind, seed: int, sizes: tuple[int, ...], ngram: NGramModel | None) -> World:
    return World(kind, seed, sizes, ngram)
