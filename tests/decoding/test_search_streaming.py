"""A search fed piece by piece finds what it finds in the whole, and what it calls settled stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import TableScorer
from torch import Tensor
from toys import BigramLM, ToyEmitter
from trees import tree_of

from asr.families.ctc.emitter import CTCEmitter
from asr.families.factorized.config import FactorizedConfig
from asr.families.factorized.emitter import FactorizedEmitter
from asr.families.factorized.model import FactorizedTransducer
from asr.families.transducer.config import TransducerConfig
from asr.families.transducer.emitter import TransducerEmitter
from asr.families.transducer.model import Transducer
from decoding.class_status import ClassGrammar
from decoding.emitter import FrameSynchronous
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.phrase_boost import BoostGraph, PhraseBoost
from decoding.scorer import Scorer
from decoding.trace import RawHypothesis
from lm.prefix_tree import PrefixTree

VOCAB, CLASSES, WIDTH = 4, 2, 16
STARTS = torch.tensor([True, True, False, False])
LISTS = {0: [([0, 2], 1.0), ([0], 2.0), ([1, 3, 1], 1.0)], 1: [([1, 3], 1.0), ([0, 2], 0.5)]}
ENCODER = {"features": 8, "layers": 1, "width": WIDTH, "heads": 2, "feed_forward": 16, "dropout": 0}
LENGTHS = [40, 23, 1]


class StreamingToy(ToyEmitter):
    """The toy's table as its encoder frames."""

    def hear(self, encoded: Tensor, lengths: Tensor) -> None:
        self.table, self.lengths = encoded, lengths
        self.tokens = torch.arange(self.num_tokens).expand(*encoded.shape[:2], self.num_tokens)
        self.evidence = encoded.mean(2)[..., : self.num_tokens]


def toy(seed: int, lengths: list[int]) -> tuple[StreamingToy, Tensor]:
    emitter = StreamingToy(lengths, BigramLM(VOCAB, CLASSES, seed), seed, sharpness=3.0)
    return emitter, emitter.table


def factorized(seed: int, lengths: list[int]) -> tuple[FactorizedEmitter, Tensor]:
    torch.manual_seed(seed)
    predictor = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "dropout": 0}
    config = {"encoder": ENCODER, "predictor": predictor, "blank_width": 8}
    model = FactorizedTransducer(FactorizedConfig.model_validate(config), VOCAB, CLASSES).eval()
    encoded = torch.randn(len(lengths), max(lengths), WIDTH)
    with torch.no_grad():
        model.acoustic.weight *= 8
        return FactorizedEmitter(model, encoded, torch.tensor(lengths), top=3), encoded


def transducer(seed: int, lengths: list[int]) -> tuple[TransducerEmitter, Tensor]:
    torch.manual_seed(seed)
    kind: dict[str, Any] = {"kind": ("stateless", "lstm")[seed % 2], "dropout": 0.0}
    config = {"encoder": ENCODER, "predictor": kind, "joint_width": 12}
    model = Transducer(TransducerConfig.model_validate(config), VOCAB).eval()
    encoded = torch.randn(len(lengths), max(lengths), WIDTH)
    with torch.no_grad():
        model.joint.output.weight *= 8
        return TransducerEmitter(model, encoded, torch.tensor(lengths), top=3 + seed % 2), encoded


def ctc(seed: int, lengths: list[int]) -> tuple[CTCEmitter, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logp = (4.0 * torch.randn(len(lengths), max(lengths), VOCAB + 1, generator=generator)).log_softmax(-1)
    model: Any = SimpleNamespace(num_tokens=VOCAB, logp=lambda encoded: encoded)
    return CTCEmitter(model, logp, torch.tensor(lengths), top=3), logp


KINDS: dict[str, Any] = {"toy": toy, "factorized": factorized, "transducer": transducer, "ctc": ctc}


def knowledge(kind: str, emitter: Any, seed: int, lists: bool, boost: bool) -> Any:
    """Grammar and scorers for a batch."""
    grammar, scorers = None, list[Scorer]()
    if lists:
        tree, nothing = tree_of(LISTS, VOCAB, CLASSES), PrefixTree.empty(VOCAB, CLASSES)
        own = emitter.contexts is not None
        contexts = emitter.contexts if own else BigramLM(VOCAB, CLASSES, seed).contexts()
        trees = [tree, nothing, tree][: len(emitter.lengths)]
        grammar = ClassGrammar(contexts, STARTS, trees, 1.0, lm_scale=None if own else 0.5)
    if boost:
        graph = BoostGraph.build([([0, 2], 1.0), ([1, 3, 1], 0.5), ([3], 0.2)], VOCAB)
        scorers = [PhraseBoost([graph], 1.0), TableScorer("table", 0.3, seed, per_utterance=True)]
    return grammar, scorers


def fed(
    whole: Tensor, lengths: list[int], cuts: list[int], search: Any
) -> tuple[list[list[RawHypothesis]], list[Any]]:
    """Feed pieces that end at ``cuts``, each utterance as far as it goes; what was found, and on the way."""
    first, partials = 0, []
    for last in [*cuts, max(lengths)]:
        counts = torch.tensor([min(max(n - first, 0), last - first) for n in lengths])
        search.feed(whole[:, first:last], counts)
        partials.append(search.partial())
        first = last
    return search.finish(), partials


def shown(found: list[list[RawHypothesis]]) -> list[list[tuple[object, ...]]]:
    return [[(h.tokens, h.frames, [(s.node, s.start, s.end) for s in h.spans]) for h in one] for one in found]


def nothing_heard(emitter: FrameSynchronous, whole: Tensor) -> None:
    emitter.hear(whole[:, :1], torch.zeros(len(whole), dtype=torch.long))


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 10_000),
    cuts=st.sets(st.integers(1, max(LENGTHS) - 1), max_size=12),
    beam=st.integers(1, 8),
    lists=st.booleans(),
    boost=st.booleans(),
    symbols=st.integers(1, 2),
    reference=st.booleans(),
)
@torch.no_grad()
def test_pieces_give_the_whole(
    kind: str,
    seed: int,
    cuts: set[int],
    beam: int,
    lists: bool,
    boost: bool,
    symbols: int,
    reference: bool,
) -> None:
    symbols = 1 if kind == "ctc" else symbols
    lists = lists and kind != "transducer"
    config = BeamConfig(beam=beam, max_symbols_per_frame=symbols)

    def search() -> tuple[BeamSearch, Any, Tensor]:
        emitter, whole = KINDS[kind](seed, LENGTHS)
        grammar, scorers = knowledge(kind, emitter, seed, lists, boost)
        return BeamSearch(emitter, config, grammar, scorers, reference=reference), emitter, whole

    expected = search()[0].run()
    streaming, emitter, whole = search()
    nothing_heard(emitter, whole)
    found, partials = fed(whole, LENGTHS, sorted(cuts), streaming)
    if kind == "ctc":  # of the rest, see BeamSearch.feed
        found, expected = [one[:1] for one in found], [one[:1] for one in expected]
    assert shown(found) == shown(expected)
    tolerance = 1e-3 if kind == "ctc" else 1e-4
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.score == pytest.approx(b.score, abs=tolerance)
            assert a.parts == pytest.approx(b.parts, abs=1e-3)
            assert a.token_logp == pytest.approx(b.token_logp, abs=1e-4)
    for b, nbest in enumerate(found):
        heard, sure = list[tuple[int, int]](), 0
        for progress in partials:
            best, common, settled = progress[b]
            assert sure <= settled <= common
            assert list(zip(best.tokens, best.frames, strict=True))[: len(heard)] == heard
            heard, sure = list(zip(best.tokens, best.frames, strict=True))[:common], settled
            for final in nbest:
                assert list(zip(final.tokens, final.frames, strict=True))[:common] == heard
                assert final.token_logp[:settled] == best.token_logp[:settled]
                mine, theirs = ([s for s in h.spans if s.end <= settled] for h in (best, final))
                assert mine == theirs


@pytest.mark.parametrize("reference", [False, True])
def test_what_is_kept_does_not_grow_with_the_stream(reference: bool) -> None:
    """A table that says clearly what is meant: hypotheses part and meet again, over and over."""
    frames, size = 800, 10
    emitter, whole = toy(4, [frames])
    nothing_heard(emitter, whole)
    search = BeamSearch(emitter, BeamConfig(beam=3), reference=reference)
    kept, behind = [], []
    for first in range(0, frames, size):
        search.feed(2.0 * whole[:, first : first + size], torch.tensor([size]))
        [(best, common, settled)] = search.partial()
        kept.append(len(search._trace.steps))
        behind.append(len(best.tokens) - common)
    assert emitter.tokens.shape[1] == size
    assert len(search._trace.past[0]["token"]) == settled + 1
    assert len(best.tokens) > 400
    assert 1 < max(kept) < 100
    assert 0 < max(behind) < 50


def test_frames_may_be_fed_before_any_were_there_and_none_at_all() -> None:
    emitter, whole = toy(3, LENGTHS)
    nothing_heard(emitter, whole)
    search = BeamSearch(emitter, BeamConfig())
    assert [(p.best.tokens, p.common, p.settled) for p in search.partial()] == [((), 0, 0)] * 3
    search.feed(whole[:, :0], torch.zeros(3, dtype=torch.long))
    assert [best.tokens for [best] in search.finish()] == [()] * 3
