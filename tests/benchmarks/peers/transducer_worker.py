"""Transducer searches of other toolkits on given weights; started by ``transducer.py`` in their environments.

    python transducer_worker.py {torchaudio|espnet|speechbrain} WEIGHTS

The frames come projected into the joint network's width, and the predictor is two rows of a table added: the least
that a search can have to do for this model, and less than the toolkits' own joint networks do, which project both
sides at every step. Length normalisation of the final choice is off where it can be, as the answers are judged by
their probability; everything else is as the toolkits set it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from protocol import Search, serve
from torch import Tensor, nn

Find = Callable[[Tensor], list[int]]
"""Best tokens of the frames ``(T, J)`` of an utterance."""


class Weights:
    """``frames`` ``(B, T, J)``, ``embedding`` ``(2, V + 1, J)`` of the last but one and the last token (V: none),
    ``output`` from J to V + 1, blank last."""

    def __init__(self, path: str) -> None:
        saved = torch.load(path)
        self.frames, self.embedding = saved["frames"], saved["embedding"]
        self.output = nn.Linear(*reversed(saved["weight"].shape))
        self.output.weight.data, self.output.bias.data = saved["weight"], saved["bias"]
        self.blank = len(saved["bias"]) - 1

    def label(self, before: Tensor, last: Tensor) -> Tensor:
        """The predictor's part of the joint ``(..., J)``."""
        part: Tensor = self.embedding[0, before] + self.embedding[1, last]
        return part


class TorchaudioModel(nn.Module):
    """What ``RNNTBeamSearch`` asks of a model; the predictor's state is its last token."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def transcribe(self, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return frames, lengths

    def predict(
        self, targets: Tensor, lengths: Tensor, state: list[list[Tensor]] | None
    ) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        before = torch.full_like(targets, self.weights.blank) if state is None else state[0][0]
        return self.weights.label(before, targets), lengths, [[targets]]

    def join(
        self, frames: Tensor, frame_lengths: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        joined = torch.tanh(frames.unsqueeze(2) + labels.unsqueeze(1))
        return self.weights.output(joined), frame_lengths, label_lengths


def torchaudio_search(weights: Weights) -> Callable[[str, int], Find]:
    from torchaudio.models import RNNTBeamSearch

    model = TorchaudioModel(weights)

    def make(kind: str, beam: int) -> Find:
        search = RNNTBeamSearch(model, weights.blank, hypo_sort_key=lambda found: found[3])

        def find(frames: Tensor) -> list[int]:
            found = search(frames, torch.tensor(len(frames)), beam)
            tokens: list[int] = max(found, key=lambda one: one[3])[0]
            return tokens[1:]

        return find

    return make


class ESPnetDecoder:
    """What ``BeamSearchTransducer`` asks of a decoder, with the blank first: token v is class v + 1."""

    blank_id = 0

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.dunits, self.odim = weights.embedding.shape[-1], weights.blank + 1
        self.device = torch.device("cpu")

    def set_device(self, device: torch.device) -> None:
        self.device = device

    def init_state(self, beam: int) -> None:
        return None

    def select_state(self, state: None, index: int) -> None:
        return None

    def create_batch_states(self, state: None, new: list[None], check: Any) -> None:
        return None

    def score(self, hypothesis: Any, cache: dict[Any, Tensor]) -> tuple[Tensor, None, None]:
        last = self._last(hypothesis)
        if last not in cache:
            cache[last] = self._label([last])[0]
        return cache[last], None, None

    def batch_score(
        self, hypotheses: list[Any], state: None, cache: dict[Any, Tensor], use_lm: bool
    ) -> tuple[Tensor, None, None]:
        return self._label([self._last(one) for one in hypotheses]), None, None

    def _last(self, hypothesis: Any) -> tuple[int, int]:
        tokens = hypothesis.yseq
        return (tokens[-2] if len(tokens) > 1 else 0, tokens[-1])

    def _label(self, last: list[tuple[int, int]]) -> Tensor:
        none = self.weights.blank
        before, newest = torch.tensor([[none if y == 0 else y - 1 for y in pair] for pair in last]).unbind(1)
        return self.weights.label(before, newest)


def espnet_search(weights: Weights) -> Callable[[str, int], Find]:
    from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer

    decoder = ESPnetDecoder(weights)
    output = nn.Linear(weights.output.in_features, weights.output.out_features)
    output.weight.data = weights.output.weight.roll(1, 0).clone()
    output.bias.data = weights.output.bias.roll(1, 0).clone()

    def joint(frame: Tensor, label: Tensor) -> Tensor:
        logits: Tensor = output(torch.tanh(frame + label))
        return logits

    def make(kind: str, beam: int) -> Find:
        search = BeamSearchTransducer(decoder, joint, beam, search_type=kind, score_norm=False)
        return lambda frames: [y - 1 for y in search(frames)[0].yseq[1:]]

    return make


class RNN(nn.Module):
    """A predictor that SpeechBrain takes for a recurrent one, by its name; its state is its last token."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, tokens: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        before = torch.full_like(tokens, self.weights.blank) if state is None else state
        return self.weights.label(before, tokens), tokens.clone()


def speechbrain_search(weights: Weights) -> Callable[[str, int], Find]:
    from speechbrain.decoders.transducer import TransducerBeamSearcher
    from speechbrain.nnet.transducer.transducer_joint import Transducer_joint

    joint, predictor = Transducer_joint(joint="sum", nonlinearity=nn.Tanh), RNN(weights)

    def make(kind: str, beam: int) -> Find:
        search = TransducerBeamSearcher([predictor], joint, [weights.output], weights.blank, beam, nbest=1)
        return lambda frames: search(frames[None])[0][0]

    return make


def build() -> Search:
    """The search of the toolkit named."""
    torch.set_num_threads(1)
    toolkit, path = sys.argv[1:]
    toolkits = {"torchaudio": torchaudio_search, "espnet": espnet_search, "speechbrain": speechbrain_search}
    weights = Weights(path)
    make = toolkits[toolkit](weights)

    @torch.inference_mode()
    def search(kind: str, beam: int, utterances: int) -> list[list[int]]:
        find = make(kind, beam)
        return [find(frames) for frames in weights.frames[:utterances]]

    return search


if __name__ == "__main__":
    serve(build)
