"""Greedy search over a batch: the best symbol at every step, no lists, no scorers."""

from __future__ import annotations

import torch

from decoding.emitter import FrameSynchronous


@torch.no_grad()
def greedy_search(
    emitter: FrameSynchronous, max_symbols_per_frame: int = 1
) -> list[tuple[list[int], list[int]]]:
    """Tokens and their frames for each utterance; what a beam of one finds."""
    state = emitter.start()[:, None]
    emitted = []
    lengths = emitter.lengths
    for frame in range(int(lengths.max())):
        open_ = frame < lengths
        here = torch.full_like(lengths, frame)[:, None]
        tokens = emitter.tokens[:, frame]
        for _ in range(max_symbols_per_frame):
            scores = emitter.score(here, state)
            label = scores.label[:, 0, 0]
            lm = emitter.lm_logp(state, tokens[:, None])
            if lm is not None:
                label = label + emitter.lm_scale * lm[:, 0, 0]
            best, place = label.max(-1)
            blank = scores.blank_logp[:, 0, 0]
            if scores.repeat_logp is None:
                taken, waits = open_ & (best > blank), open_
            else:
                again = scores.repeat_logp[:, 0, 0]
                taken, waits = open_ & (best > blank.maximum(again)), open_ & (blank >= again)
            closing = (waits & ~taken).nonzero().squeeze(1)
            state[closing, 0] = emitter.close(state[closing, 0])
            rows = taken.nonzero().squeeze(1)
            if not len(rows):
                break
            token = tokens[rows, place[rows]]
            state[rows, 0] = emitter.advance(state[rows, 0], token)
            emitted.append((frame, rows, token))
            open_ = taken
    result: list[tuple[list[int], list[int]]] = [([], []) for _ in range(len(lengths))]
    for frame, rows, token in emitted:
        for row, one in zip(rows.tolist(), token.tolist(), strict=True):
            result[row][0].append(one)
            result[row][1].append(frame)
    return result
