"""Decoders: what a search computes step by step is what training computed at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.decoders.config import LSTMDecoderConfig, TransformerDecoderConfig
from asr.decoders.histories import DecoderHistories, LabelTree
from asr.decoders.lstm import LSTMDecoder, LSTMDecoderHistories
from asr.decoders.memory import positions
from asr.decoders.transformer import TransformerDecoder
from asr.encoders.masks import valid_frames
from asr.losses.attention import attention_loss
from lm.config import build_config
from lm.errors import ConfigError

VOCAB, WIDTH = 5, 12
LENGTHS = torch.tensor([9, 6, 1])


def transformer(**changes: object) -> TransformerDecoder:
    torch.manual_seed(0)
    values = {"layers": 2, "width": 8, "heads": 2, "feed_forward": 16, "dropout": 0.0} | changes
    return TransformerDecoder(TransformerDecoderConfig.model_validate(values), VOCAB, WIDTH)


def lstm(**changes: object) -> LSTMDecoder:
    torch.manual_seed(0)
    values = {"kind": "lstm", "embedding": 6, "width": 8, "key": 7, "dropout": 0.0} | changes
    return LSTMDecoder(LSTMDecoderConfig.model_validate(values), VOCAB, WIDTH)


def frames() -> Tensor:
    return torch.randn(3, 9, WIDTH, generator=torch.Generator().manual_seed(1))


def whole(decoder: TransformerDecoder | LSTMDecoder, utterance: int, tokens: list[int], heard: int) -> Tensor:
    """The last state of one utterance of ``heard`` frames, alone and unpadded."""
    encoded = frames()[utterance : utterance + 1, :heard]
    visible = torch.ones(1, heard, dtype=torch.bool)
    labels = torch.tensor([tokens], dtype=torch.long)
    return decoder(labels, decoder.remember(encoded), visible)[0, -1]


walks = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(0, VOCAB - 1), max_size=6), st.integers(0, 2)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(walks=walks, chunk=st.sampled_from([0, 3, 4]))
@torch.no_grad()
def test_histories_of_a_transformer_are_its_states_in_any_order(
    walks: list[tuple[int, list[int], int]], chunk: int
) -> None:
    decoder = transformer().eval()
    histories = DecoderHistories(decoder, 3, chunk)
    histories.hear(decoder.remember(frames()), LENGTHS)
    for number in sorted({number for _, _, number in walks}):  # chunks come in order, as in a search
        now = [(utterance, tokens) for utterance, tokens, n in walks if n == number]
        for place in range(7):
            row = torch.tensor([utterance for utterance, _ in now])
            for step in range(place):
                longer = torch.tensor([len(tokens) > step for _, tokens in now])
                taken = torch.tensor([tokens[step] if len(tokens) > step else 0 for _, tokens in now])
                if longer.any():
                    row[longer] = histories.tree.advance(row[longer], taken[longer])
            states = histories.states(row, torch.full_like(row, number if chunk else 0))
            for (utterance, tokens), state in zip(now, states, strict=True):
                heard = int(LENGTHS[utterance])
                if chunk:
                    heard = min(heard, (number + 1) * chunk)
                torch.testing.assert_close(state, whole(decoder, utterance, tokens[:place], heard))


@settings(max_examples=25, deadline=None)
@given(walks=walks)
@torch.no_grad()
def test_histories_of_an_lstm_are_its_readouts(walks: list[tuple[int, list[int], int]]) -> None:
    decoder = lstm().eval()
    histories = LSTMDecoderHistories(decoder, decoder.remember(frames()), valid_frames(LENGTHS, 9))
    for utterance, tokens, _ in walks:
        node = torch.tensor([utterance])
        for token in tokens:
            node = histories.tree.advance(node, torch.tensor([token]))
        expected = whole(decoder, utterance, tokens, int(LENGTHS[utterance]))
        torch.testing.assert_close(histories.states(node)[0], expected)


@pytest.mark.parametrize("decoder", [transformer(), lstm()], ids=["transformer", "lstm"])
def test_a_batch_gives_what_its_utterances_give_alone(decoder: TransformerDecoder | LSTMDecoder) -> None:
    decoder.eval()
    labels = torch.tensor([[1, 2, 3], [4, 0, 0], [2, 2, 0]])
    states = decoder(labels, decoder.remember(frames()), valid_frames(LENGTHS, 9))
    for row, count in enumerate([3, 1, 2]):
        for place in range(count + 1):
            alone = whole(decoder, row, labels[row, :place].tolist(), int(LENGTHS[row]))
            torch.testing.assert_close(states[row, place], alone)


@pytest.mark.parametrize("make", [transformer, lstm])
def test_no_label_is_seen_before_its_time(make) -> None:  # type: ignore[no-untyped-def]
    decoder = make().eval()
    labels = torch.tensor([[1, 2, 3]])
    changed = torch.tensor([[1, 4, 0]])
    memory, visible = decoder.remember(frames()[:1]), torch.ones(1, 9, dtype=torch.bool)
    one, other = decoder(labels, memory, visible), decoder(changed, memory, visible)
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2:], other[:, 2:])


@pytest.mark.parametrize("make", [transformer, lstm])
def test_attention_is_relaxed_in_training_only(make) -> None:  # type: ignore[no-untyped-def]
    plain, relaxing = make(), make(relaxed_attention=0.5)
    labels, visible = torch.tensor([[1, 2]] * 3), valid_frames(LENGTHS, 9)

    def run(decoder: TransformerDecoder | LSTMDecoder, training: bool) -> Tensor:
        decoder.train(training)
        return decoder(labels, decoder.remember(frames()), visible)

    torch.testing.assert_close(run(plain, False), run(relaxing, False))
    assert not torch.allclose(run(plain, True)[0], run(relaxing, True)[0], atol=1e-4)
    # One frame cannot be attended to more evenly.
    torch.testing.assert_close(run(plain, True)[2], run(relaxing, True)[2])


def test_positions_go_on_where_the_last_piece_ended() -> None:
    device = torch.device("cpu")
    parts = torch.cat((positions(0, 4, 7, device), positions(4, 5, 7, device)))
    torch.testing.assert_close(parts, positions(0, 9, 7, device))


def test_paths_of_a_tree() -> None:
    tree = LabelTree(2, VOCAB, torch.device("cpu"))
    a = tree.advance(torch.tensor([0, 1, 0]), torch.tensor([3, 3, 3]))
    assert a[0] == a[2] != a[1]
    b = tree.advance(a[:1], torch.tensor([1]))
    assert tree.paths(torch.stack((b[0], a[1], torch.tensor(1)))).tolist() == [
        [0, int(a[0]), int(b[0])],
        [1, int(a[1]), int(a[1])],
        [1, 1, 1],
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_attention_loss_is_cross_entropy_with_the_end(smoothing: float) -> None:
    logits = torch.randn(2, 4, VOCAB + 1, generator=torch.Generator().manual_seed(3))
    found = attention_loss(logits, torch.tensor([[1, 2, 4], [3, 0, 0]]), torch.tensor([3, 1]), smoothing)
    for row, target in enumerate([[1, 2, 4, VOCAB], [3, VOCAB]]):
        expected = torch.nn.functional.cross_entropy(
            logits[row, : len(target)], torch.tensor(target), reduction="sum", label_smoothing=smoothing
        )
        torch.testing.assert_close(found[row], expected)


def test_a_width_that_cannot_be_rotated_is_refused() -> None:
    with pytest.raises(ConfigError, match="a width that 4 heads divide into even parts, like 80"):
        build_config(TransformerDecoderConfig, {"width": 84, "heads": 4}, "here")
