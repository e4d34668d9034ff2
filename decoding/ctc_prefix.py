"""CTC's view of a label-synchronous hypothesis: the probability of all label sequences that begin with it
(Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", algorithm 2).

With p_t CTC's distribution in frame t, r^n_t(g) and r^b_t(g) the probability that the first t frames say g and
frame t its last label, or blank:

    φ_t(g, c)  = r^b_t(g) + [c is not the last label of g] r^n_t(g)
    ψ(g c)     = Σ_t φ_{t-1}(g, c) p_t(c)                            all sequences that begin with g c
    r^n_t(g c) = (r^n_{t-1}(g c) + φ_{t-1}(g, c)) p_t(c)
    r^b_t(g c) = (r^b_{t-1}(g c) + r^n_{t-1}(g c)) p_t(blank)

A label c scores log ψ(g c) - log ψ(g), the end log P(g) - log ψ(g): together log P of the whole sequence, and
over all labels and the end they sum to one. Both recursions are linear in what they carry along, so that a
cumulative sum over frames solves them: no loop over frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm.language_model import Rows

LEAST = -1000.0
"""Nats that stand for log 0: what CTC cannot say is no choice, but a hypothesis that has to end can."""
_QUIET = -100.0
"""The least log probability of a symbol in a frame: cumulative sums need finite ones."""


class CTCPrefix:
    """CTC as a scorer of a label-synchronous search. See ``decoding.scorer.Scorer``.

    The state is a row of tables that grow with the search: 16 (T + 1) bytes for every hypothesis that was extended.

    Args:
        logp: ``(B, T, V + 1)`` log probabilities, blank last.
        lengths: ``(B,)`` frames of each utterance.
        weight: multiplies the scores.
        name: of its part.
    """

    def __init__(self, logp: Tensor, lengths: Tensor, weight: float, name: str = "ctc") -> None:
        self.name, self.weight = name, weight
        if not logp.shape[1]:
            logp = logp.new_zeros((len(logp), 1, logp.shape[2]))
        padding = torch.arange(logp.shape[1], device=logp.device) >= lengths[:, None]
        logp = logp.double().clamp_min(_QUIET)
        # Padding is certain blank: what was said by the last frame stays as it is.
        self._blank = logp[..., -1].masked_fill(padding, 0.0)
        self._stay = logp[..., :-1].masked_fill(padding[..., None], _QUIET)
        self._enter = self._stay.masked_fill(padding[..., None], -torch.inf)
        self._p = self._enter.exp()
        device = logp.device
        self._utterance, self._last = (Rows((), torch.long, device) for _ in range(2))
        self._begins = Rows((), torch.double, device)
        self._spoken, self._silent = (Rows((logp.shape[1] + 1,), torch.double, device) for _ in range(2))
        utterance = torch.arange(len(lengths), device=device)
        silent = torch.nn.functional.pad(self._blank.cumsum(-1), (1, 0))
        nothing = torch.full_like(silent, -torch.inf)
        self._append(
            utterance, torch.full_like(utterance, -1), torch.zeros_like(silent[:, 0]), nothing, silent
        )

    def start(self, utterances: int) -> Tensor:
        """See ``Scorer.start``."""
        return torch.arange(utterances, device=self._blank.device)

    def score(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.score``."""
        begins = self._extended(state).gather(1, tokens)
        return _difference(begins, self._begins.data[state, None])

    def advance(self, state: Tensor, tokens: Tensor) -> Tensor:
        """See ``Scorer.advance``."""
        distinct, place = torch.unique(torch.stack((state, tokens)), dim=1, return_inverse=True)
        before, label = distinct
        utterance = self._utterance.data[before]
        enter = self._before(before, label == self._last.data[before]) + self._enter[utterance, :, label]
        spoken = _carried(enter, self._stay[utterance, :, label])
        blank = self._blank[utterance]
        silent = _carried(spoken[:, :-1] + blank, blank)
        first = self._append(utterance, label, enter.logsumexp(-1), spoken, silent)
        rows: Tensor = first + place
        return rows

    def _append(self, utterance: Tensor, last: Tensor, begins: Tensor, spoken: Tensor, silent: Tensor) -> int:
        self._last.append(last)
        self._begins.append(begins)
        self._spoken.append(spoken)
        self._silent.append(silent)
        return self._utterance.append(utterance)

    def finish(self, state: Tensor) -> Tensor:
        """See ``Scorer.finish``."""
        said: Tensor = torch.logaddexp(self._spoken.data[state, -1], self._silent.data[state, -1])
        return _difference(said, self._begins.data[state])

    def _before(self, state: Tensor, repeats: Tensor) -> Tensor:
        """log φ_{t-1} of t = 1 .. T, ``(N, T)``; where a label ``repeats`` a blank must have been between."""
        silent = self._silent.data[state, :-1]
        spoken = self._spoken.data[state, :-1].masked_fill(repeats[:, None], -torch.inf)
        return torch.logaddexp(silent, spoken)

    def _extended(self, state: Tensor) -> Tensor:
        """log ψ ``(N, V)`` of ``state`` ``(N,)`` followed by every label."""
        utterance, last = self._utterance.data[state], self._last.data[state]
        enter = self._before(state, torch.zeros_like(state, dtype=torch.bool))
        peak = enter.amax(-1, keepdim=True).clamp_min(torch.finfo(enter.dtype).min)
        begins = peak + _by_utterance((enter - peak).exp(), self._p, utterance).log()
        again = (self._before(state, last >= 0) + self._enter[utterance, :, last.clamp_min(0)]).logsumexp(-1)
        rows = (last >= 0).nonzero().squeeze(1)
        begins[rows, last[rows]] = again[rows]
        return begins


def _by_utterance(rows: Tensor, matrices: Tensor, utterance: Tensor) -> Tensor:
    """Products ``(N, V)`` of ``rows`` ``(N, T)``, each with that of ``matrices`` ``(B, T, V)`` of its utterance."""
    order = utterance.argsort(stable=True)
    count = torch.bincount(utterance, minlength=len(matrices))
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[utterance[order]]
    grouped = rows.new_zeros((len(matrices), int(count.max()), rows.shape[1]))
    grouped[utterance[order], place] = rows[order]
    product = torch.bmm(grouped, matrices)[utterance[order], place]
    found = torch.empty_like(product)
    found[order] = product
    return found


def _carried(enter: Tensor, stay: Tensor) -> Tensor:
    """log r_t ``(N, T + 1)`` of r_t = stay_t r_{t-1} + enter_t and r_0 = 0; what is given ``(N, T)`` are logs."""
    kept = stay.cumsum(-1)
    carried = kept + (enter - kept).logcumsumexp(-1)
    return torch.nn.functional.pad(carried, (1, 0), value=-torch.inf)


def _difference(more: Tensor, less: Tensor) -> Tensor:
    """Scores in single precision, at least ``LEAST``; what follows the impossible is impossible."""
    return (more - less).nan_to_num(nan=LEAST).clamp_min(LEAST).float()
