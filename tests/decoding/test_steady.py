"""The search that waits for nothing against that of ``frame_sync`` in tensors; recorded where there is a GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.families.ctc.emitter import CTCEmitter
from asr.families.transducer.config import PredictorConfig
from asr.families.transducer.emitter import TransducerEmitter
from asr.families.transducer.predictor import LSTMPredictor, StatelessPredictor
from decoding.emitter import FrameSynchronous
from decoding.frame_sync import BeamConfig, BeamSearch
from decoding.greedy import greedy_search
from decoding.trace import RawHypothesis

VOCAB, WIDTH = 5, 4
DEVICE = os.environ.get("VOCATIVE_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = [6, 90, 0, 2, 71]


def ctc(seed: int, lengths: list[int], first: int = 0, last: int = 1000, top: int = 3) -> FrameSynchronous:
    """Random frames, most of them blank; of all of them those from ``first`` on."""
    logp = 3.0 * torch.randn(len(LENGTHS), 90, VOCAB + 1, generator=torch.Generator().manual_seed(seed))
    logp[..., -1] += 4.0
    model: Any = SimpleNamespace(num_tokens=VOCAB, logp=lambda encoded: encoded)
    kept = [max(0, min(length, last) - first) for length in lengths]
    heard = logp[: len(lengths), first : first + max(kept)].log_softmax(-1).to(DEVICE)
    return CTCEmitter(model, heard, torch.tensor(kept, device=DEVICE), top)


def transducer(
    seed: int, lengths: list[int], first: int = 0, last: int = 1000, top: int = 3
) -> FrameSynchronous:
    """The same for a transducer with a random joint network."""
    torch.manual_seed(seed)
    predictor = StatelessPredictor(PredictorConfig(kind="stateless", dropout=0.0), VOCAB, WIDTH)
    output = torch.nn.Linear(WIDTH, VOCAB + 1)
    with torch.no_grad():
        output.weight *= 6
        output.bias[-1] += 3
    joint = SimpleNamespace(output=output, frame=lambda encoded: encoded)
    model: Any = SimpleNamespace(num_tokens=VOCAB, predictor=predictor.to(DEVICE), joint=joint)
    output.to(DEVICE)
    encoded = 2 * torch.randn(len(LENGTHS), 90, WIDTH)
    kept = [max(0, min(length, last) - first) for length in lengths]
    heard = encoded[: len(lengths), first : first + max(kept)].to(DEVICE)
    with torch.no_grad():
        return TransducerEmitter(model, heard, torch.tensor(kept, device=DEVICE), top)


MODELS = {"ctc": ctc, "transducer": transducer}


def same(found: list[list[RawHypothesis]], expected: list[list[RawHypothesis]]) -> None:
    """The same lists, but for scores so near to each other that rounding decides their order."""
    for one, other in zip(found, expected, strict=True):
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-3)
        assert (one[0].tokens, one[0].frames) == (other[0].tokens, other[0].frames)
        assert one[0].token_logp == pytest.approx(other[0].token_logp, abs=1e-3)
        assert one[0].parts == pytest.approx(other[0].parts, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    beam=st.integers(1, 9),
    threshold=st.sampled_from([1.0, 4.0, 1000.0]),
    name=st.sampled_from(sorted(MODELS)),
    top=st.integers(1, VOCAB),
    recombine=st.sampled_from(["sum", "max"]),
)
def test_the_same_as_in_tensors(
    seed: int, beam: int, threshold: float, name: str, top: int, recombine: str
) -> None:
    if name == "ctc":
        threshold = 1000.0  # how many frames are passed at once decides what is added up near a threshold
    config = BeamConfig(beam=beam, threshold=threshold, recombine=recombine)
    model = MODELS[name]
    found = BeamSearch(model(seed, LENGTHS, top=top), config, steady=True).run()
    expected = BeamSearch(model(seed, LENGTHS, top=top), config, reference=True, steady=False).run()
    same(found, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(4))
def test_batch_is_single_and_a_beam_of_one_is_greedy(name: str, seed: int) -> None:
    model = MODELS[name]
    config = BeamConfig(beam=4)
    together = BeamSearch(model(seed, LENGTHS), config, steady=True).run()
    same(BeamSearch(model(seed, LENGTHS[:2]), config, steady=True).run(), together[:2])
    narrow = BeamSearch(model(seed, LENGTHS), BeamConfig(beam=1, recombine="max"), steady=True).run()
    if name == "transducer":
        greedy = greedy_search(model(seed, LENGTHS))
        assert [(list(h[0].tokens), list(h[0].frames)) for h in narrow] == greedy


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("piece", [3, 40])
def test_frames_that_come_in_pieces(name: str, piece: int) -> None:
    model, config = MODELS[name], BeamConfig(beam=4, threshold=1000.0)
    whole = BeamSearch(model(1, LENGTHS), config, steady=True).run()
    search = BeamSearch(model(1, LENGTHS, 0, piece), config, steady=True)
    for first in range(piece, max(LENGTHS), piece):
        further = model(1, LENGTHS, first, first + piece)
        heard = further._logp if isinstance(further, CTCEmitter) else further._frame  # type: ignore[attr-defined]
        search.feed(heard, further.lengths)
    same(search.finish(), whole)


def test_only_where_nothing_is_remembered() -> None:
    predictor = LSTMPredictor(PredictorConfig(kind="lstm", width=WIDTH, dropout=0.0), VOCAB, WIDTH)
    joint = SimpleNamespace(output=torch.nn.Linear(WIDTH, VOCAB + 1), frame=lambda encoded: encoded)
    model: Any = SimpleNamespace(num_tokens=VOCAB, predictor=predictor, joint=joint)
    with torch.no_grad():
        emitter = TransducerEmitter(model, torch.randn(1, 9, WIDTH), torch.tensor([9]))
        assert not emitter.steady
        found = BeamSearch(emitter, BeamConfig(beam=4), steady=True).run()
        expected = BeamSearch(emitter, BeamConfig(beam=4), reference=True).run()
    same(found, expected)
