"""The attention-based encoder-decoder: losses, search, recognizer, recipe."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asr.bundle import save_bundle
from asr.data.examples import Batch, Example, make_batch
from asr.decoding_config import AttentionConfig, DecodingConfig
from asr.families import load_family
from asr.families.aed.config import AEDConfig, AEDLossConfig
from asr.families.aed.emitter import AEDEmitter
from asr.families.aed.model import AED
from asr.features import fbank
from asr.knowledge import _heard
from asr.recognizer import Recognizer
from asr.streaming import StreamingRecognizer
from decoding.ctc_alignment import first_frames
from decoding.ctc_prefix import CTCPrefix
from decoding.internal_lm import ilme
from decoding.label_emitter import Attending, attended_frames
from decoding.label_sync import LabelBeamConfig, LabelBeamSearch
from lm.errors import ConfigError
from lm.tokenizer import Tokenizer
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig

VOCAB = 4
ENCODER = {"features": 8, "layers": 1, "width": 16, "heads": 2, "feed_forward": 16, "kernel": 3, "dropout": 0}
DECODERS: dict[str, dict[str, Any]] = {
    "transformer": {"layers": 2, "width": 8, "heads": 2, "feed_forward": 16, "dropout": 0},
    "lstm": {"kind": "lstm", "embedding": 6, "width": 8, "key": 7, "dropout": 0},
}
EXAMPLES = [Example("a", (1, 2, 2), ((0, 1, 3),)), Example("b", (3,), ()), Example("c", (), ())]


def make(kind: str, vocab: int = VOCAB, sharpness: float = 1.0) -> AED:
    torch.manual_seed(3)
    values = {"encoder": ENCODER, "decoder": DECODERS[kind]}
    model = AED(AEDConfig.model_validate(values), vocab).eval()
    with torch.no_grad():
        model.output.weight *= sharpness
    return model


def batch_of(examples: list[Example]) -> Batch:
    features = torch.randn(len(examples), 20, 8, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([20, 14, 9][: len(examples)])
    return make_batch(features, lengths, examples, VOCAB, 0.0, torch.Generator().manual_seed(2))


def logp_of(model: AED, encoded: Tensor, labels: list[int]) -> Tensor:
    """Log probabilities ``(U + 1, V + 1)`` of one unpadded utterance."""
    visible = torch.ones(1, encoded.shape[1], dtype=torch.bool)
    states = model.decoder(
        torch.tensor([labels], dtype=torch.long).view(1, -1), model.decoder.remember(encoded), visible
    )
    return model.output(states)[0].log_softmax(-1)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_batch_loses_what_its_utterances_lose(kind: str) -> None:
    model, batch, config = make(kind), batch_of(EXAMPLES), AEDLossConfig(ctc_weight=0)
    whole = model.losses(batch, config)["total"].item() * 7  # four labels and three ends
    alone = 0.0
    for row, example in enumerate(EXAMPLES):
        length = int(batch.feature_lengths[row])
        features = batch.features[row : row + 1, :length]
        lengths = batch.feature_lengths[row : row + 1]
        one = make_batch(features, lengths, [example], VOCAB, 0.0, torch.Generator())
        alone += model.losses(one, config)["total"].item() * (len(example.labels) + 1)
    assert whole == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("kind", DECODERS)
def test_twenty_steps_lower_the_loss_and_gradients_reach_every_part(kind: str) -> None:
    model, batch = make(kind).train(), batch_of(EXAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = []
    for _ in range(20):
        total = model.losses(batch, AEDLossConfig(label_smoothing=0))["total"]
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        values.append(float(total.detach()))
    assert values[-1] < 0.6 * values[0]
    reached = {n: p.grad is not None and bool(p.grad.abs().max() > 0) for n, p in model.named_parameters()}
    assert [n for n, hit in reached.items() if not hit] == []


def test_labels_are_not_smoothed_while_layers_are_added() -> None:
    model, batch = make("transformer"), batch_of(EXAMPLES)
    smooth, hard = AEDLossConfig(), AEDLossConfig(label_smoothing=0)
    assert model.losses(batch, smooth)["total"] != model.losses(batch, hard)["total"]
    model.pretraining(True)
    assert model.losses(batch, smooth)["total"] == model.losses(batch, hard)["total"]


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_wide_beam_finds_what_exhaustive_search_finds(kind: str) -> None:
    model = make(kind, vocab=2, sharpness=4.0)
    encoded, lengths = model.encode(torch.randn(1, 16, 8), torch.tensor([16]))
    totals = {}
    for size in range(5):  # four frames, so four labels at most
        for labels in itertools.product(range(2), repeat=size):
            logp = logp_of(model, encoded, list(labels))
            totals[labels] = float(sum(logp[i, label] for i, label in enumerate((*labels, 2))))
    config = LabelBeamConfig(beam=100, nbest=100, threshold=1e4)
    found = LabelBeamSearch(AEDEmitter(model, encoded, lengths), config).run()[0]
    assert {tuple(h.tokens): h.score for h in found} == pytest.approx(totals, abs=1e-4)
    assert all(len(h.frames) == len(h.tokens) for h in found)


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_a_batch_is_its_utterances_and_a_beam_of_one_is_greedy(kind: str) -> None:
    model = make(kind, sharpness=6.0)
    features, sizes = torch.randn(3, 60, 8), torch.tensor([60, 41, 8])
    encoded, lengths = model.encode(features, sizes)
    config = LabelBeamConfig(beam=4)
    together = LabelBeamSearch(AEDEmitter(model, encoded, lengths), config).run()
    for row in range(3):
        one, length = model.encode(features[row : row + 1, : int(sizes[row])], sizes[row : row + 1])
        alone = LabelBeamSearch(AEDEmitter(model, one, length), config).run()[0]
        assert [(h.tokens, h.frames) for h in alone] == [(h.tokens, h.frames) for h in together[row]]
        assert [h.score for h in alone] == pytest.approx([h.score for h in together[row]], abs=1e-3)
        narrow = LabelBeamSearch(AEDEmitter(model, one, length), LabelBeamConfig(beam=1)).run()[0]
        greedy: list[int] = []
        while len(greedy) < int(length):
            best = int(logp_of(model, one, greedy)[-1].argmax())
            if best == VOCAB:
                break
            greedy.append(best)
        assert list(narrow[0].tokens) == greedy


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_where_labels_are_heard_lies_inside_the_utterance(kind: str) -> None:
    model = make(kind)
    encoded, lengths = model.encode(torch.randn(2, 40, 8), torch.tensor([40, 12]))
    emitter = AEDEmitter(model, encoded, lengths)
    assert isinstance(emitter, Attending)
    state = emitter.start()
    for token in (1, 3, 0):
        assert (emitter.where(state) < lengths).all()
        state = emitter.advance(state, torch.tensor([token, token]))


@pytest.mark.parametrize("kind", DECODERS)
@torch.no_grad()
def test_the_internal_language_model_hears_nothing_and_is_one_for_all(kind: str) -> None:
    model = make(kind, sharpness=3.0)
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        encoded, lengths = model.encode(torch.randn(2, 40, 8), torch.tensor([40, 12]))
        scorer = ilme(AEDEmitter(model, encoded, lengths).internal(), 1.0)
        state = scorer.advance(scorer.start(2), torch.tensor([1, 1]))
        found.append(scorer.score(state, torch.arange(VOCAB).expand(2, -1)))
    assert found[0].equal(found[1])
    assert found[0][0].equal(found[0][1])
    assert scorer.weight < 0
    assert torch.allclose(found[0].exp().sum(-1), torch.ones(2), atol=1e-5)


# ---- as a family -------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "encoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
    "decoder": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
}


def bundle(folder: Path, model: dict[str, Any] = TINY) -> Recognizer:
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    torch.manual_seed(1)
    family = load_family("aed", model, tokenizer, "here")
    weights = family.model.state_dict()
    weights["output.weight"] *= 8
    save_bundle(folder, {"family": "aed", "model": model}, weights, tokenizer.model_bytes, "# Tiny")
    return Recognizer.load(folder)


@pytest.mark.parametrize("decoder", [TINY["decoder"], {"kind": "lstm", "width": 16, "key": 8}])
def test_a_model_folder_is_loaded_and_transcribes(tmp_path: Path, decoder: dict[str, Any]) -> None:
    recognizer = bundle(tmp_path, TINY | {"decoder": decoder})
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(n).astype(np.float32) / 10 for n in (16000, 9000)]
    options = DecodingConfig.model_validate({"attention": {"end_threshold": 1.0}, "label_bonus": 4.0})
    together = recognizer.transcribe(samples, options=options)
    alone = [recognizer.transcribe(each, options=options) for each in samples]
    assert [t.text for t in together] == [t.text for t in alone]
    assert together[0].text
    for word in together[0].words:
        assert 0 <= word.start_s <= word.end_s <= 1.0
    strong = DecodingConfig(biasing="phrases", phrase_bonus=30)
    boosted = recognizer.transcribe(samples[0], entities={"contact": ["maja novak"]}, options=strong)
    assert "MAJA NOVAK" in boosted.text
    empty = recognizer.transcribe(samples[0], entities=None, options=strong)
    assert "MAJA NOVAK" not in empty.text


def test_the_ctc_head_hears_what_the_decoder_says(tmp_path: Path) -> None:
    recognizer = bundle(tmp_path)
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(n).astype(np.float32) / 10 for n in (16000, 9000)]
    joint = DecodingConfig.model_validate({"attention": {"ctc_weight": 0.5}, "label_bonus": 2.0})
    with pytest.raises(ConfigError, match=r"CTC head was not trained.*attention.ctc_weight=0"):
        recognizer.transcribe(samples, options=joint)
    plain = {
        name: joint.model_copy(update={"attention": AttentionConfig(ctc_weight=weight)})
        for name, weight in (("said", 0.0), ("default", None), ("one", 1.0))
    }
    same = [recognizer.transcribe(samples[0], options=plain[name]) for name in ("said", "default")]
    assert replace(same[0], id="") == replace(same[1], id=""), "a head that was not trained has no say"
    torch.nn.init.normal_(recognizer.family.model.ctc.weight, std=3.0)
    torch.nn.init.normal_(recognizer.family.model.ctc.bias, std=0.1)
    same = [recognizer.transcribe(samples[0], options=plain[name]) for name in ("one", "default")]
    assert replace(same[0], id="") == replace(same[1], id="")
    features = [fbank(torch.from_numpy(each), recognizer.features) for each in samples]
    sizes = torch.tensor([len(each) for each in features])
    together = recognizer.transcribe(samples, options=joint)
    for number, transcript in enumerate(together):
        alone = recognizer.transcribe(samples[number], options=joint)
        assert [h.text for h in alone.hypotheses] == [h.text for h in transcript.hypotheses]
        size = sizes[number : number + 1]
        starts = [word.start_s for word in transcript.words]
        assert starts == sorted(starts)
        assert len(starts) == len(set(starts)), "a frame of CTC says one label"
        emitter = recognizer.family.emitter(features[number][None].float(), size, 1.0, 1)
        logp, frames = emitter.ctc()
        search = LabelBeamSearch(emitter, LabelBeamConfig(), scorers=[CTCPrefix(logp, frames, 0.5)])
        for h in search.run()[0]:
            labels, count = (
                torch.tensor([h.tokens], dtype=torch.long).view(1, -1),
                torch.tensor([len(h.tokens)]),
            )
            loss = torch.nn.functional.ctc_loss(
                logp.transpose(0, 1), labels, frames, count, logp.shape[-1] - 1, reduction="sum"
            )
            assert h.parts["ctc"] == pytest.approx(-0.5 * float(loss.detach()), abs=1e-2)


@torch.no_grad()
def test_what_ctc_has_too_few_frames_for_is_where_the_decoder_looked() -> None:
    model = make("transformer", sharpness=4.0)
    torch.nn.init.normal_(model.ctc.weight)
    torch.nn.init.normal_(model.ctc.bias, std=0.1)
    emitter = AEDEmitter(model, *model.encode(torch.randn(2, 32, 8), torch.tensor([32, 20])))
    tokens = [[(1,) * 8, (1, 2)], [(3,)]]
    expected = attended_frames(emitter, tokens)
    said = emitter.ctc()
    assert said is not None
    assert first_frames(*said, tokens)[0][0] is None
    found = _heard(emitter, said, tokens)
    assert found[0][0] == expected[0][0]
    assert found[0][1] == first_frames(*said, [[(1, 2)], []])[0][0]


def test_what_an_attention_model_cannot_do_is_said(tmp_path: Path) -> None:
    recognizer = bundle(tmp_path / "whole")
    samples = np.random.default_rng(0).standard_normal(16000).astype(np.float32) / 10
    with pytest.raises(ConfigError, match=r"rescoring.over=nbest"):
        recognizer.lattices([samples])
    chunked = bundle(tmp_path / "chunked", TINY | {"encoder": TINY["encoder"] | {"chunk": 4}})
    with pytest.raises(ConfigError, match="attention model"):
        StreamingRecognizer(chunked)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loss": {"ctc_wieght": 1}}, "did you mean 'ctc_weight'"),
        ({"loss": {"label_smoothing": 1.0}}, "loss: label_smoothing = 1.0"),
        ({"model": {"decoder": {"layer": 2}}}, "did you mean 'layers'"),
        ({"model": {"decoder": {"kind": "lstm", "kye": 3}}}, "did you mean 'key'"),
        ({"model": {"decoder": {"kind": "gru"}}}, "decoder"),
    ],
)
def test_recipes_take_the_family_and_refuse_unknown_keys(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    values = {"corpus": "contacts", "family": "aed", "systems": [{"name": "AED"}]}
    good = values | {"loss": {"ctc_weight": 0.5}, "model": {"decoder": {"kind": "lstm", "width": 32}}}
    assert asr_recipe(RecipeConfig.model_validate(good), tmp_path).stages
    with pytest.raises(ConfigError, match=says.replace("'", ".")):
        asr_recipe(RecipeConfig.model_validate(values | change), tmp_path)


def test_the_sum_over_all_sequences_is_one() -> None:
    model = make("transformer", vocab=2, sharpness=3.0)
    with torch.no_grad():
        encoded, _ = model.encode(torch.randn(1, 8, 8), torch.tensor([8]))
        total, open_ = 0.0, 0.0
        for size in range(6):
            for labels in itertools.product(range(2), repeat=size):
                logp = logp_of(model, encoded, list(labels))
                prefix = float(sum(logp[i, label] for i, label in enumerate(labels)))
                total += math.exp(prefix + float(logp[-1, 2]))
                open_ += math.exp(prefix) * (1 - math.exp(float(logp[-1, 2]))) if size == 5 else 0.0
    assert total + open_ == pytest.approx(1, abs=1e-5)
