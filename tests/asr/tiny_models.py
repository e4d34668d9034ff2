"""Tiny random models of every family, sharp enough to say something, and what tests do with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from asr.bundle import save_bundle
from asr.decoding_config import DecodingConfig
from asr.families import load_family
from asr.features import FeatureConfig, FeatureNormaliser, fbank
from asr.recognizer import Recognizer
from decoding.result import Transcript
from lm.config import merge
from lm.kneser_ney import train_arpa
from lm.model_files import make_language_model, save_language_model
from lm.ngram import NGramModel
from lm.tokenizer import Tokenizer

ENCODER = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "ctc": {"encoder": ENCODER},
    "transducer": {"encoder": ENCODER, "joint_width": 16},
    "factorized": {
        "encoder": ENCODER,
        "predictor": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
        "blank_width": 8,
    },
}
DECODER = {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32}
SHAPES["taed"] = {"encoder": ENCODER, "decoder": DECODER, "decoder_chunk": 4, "joint_width": 16}
SHAPES["aed"] = {"encoder": ENCODER, "decoder": DECODER}
LISTS = {"contact": ["Maja Novak", "Jim", "Zoe", "Li", "Wu", "Anna"], "city": ["Ulm", "Bonn", "Rio"]}
FAMILIES = tuple(SHAPES)
FRAMES = tuple(family for family in FAMILIES if family != "aed")
"""Families whose search moves with the frames: they leave lattices."""
MODELS = ("transformer", "lstm", "based", "ngram")
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {"layers": 1, "width": 16, "heads": 2, "feed_forward": 32},
    "lstm": {"width": 16},
    "based": {"layers": 2, "width": 16, "heads": 2, "features": 2, "window": 3, "feed_forward": 32},
    "contextual": {
        "width": 16,
        "context_width": 8,
        "fields": [
            {"kind": "categorical", "name": "app", "values": ["maps", "music"]},
            {"kind": "cyclic", "name": "hour", "period": 24},
        ],
    },
}


def sound(seconds: float, seed: int) -> NDArray[np.float32]:
    """Noisy tones, a new one each 0.1 s, so that every frame is heard as something else."""
    random = np.random.default_rng(seed)
    time_s = np.arange(1600) / 16000
    parts = [
        np.sin(2 * np.pi * random.uniform(100, 4000) * time_s) * random.uniform(0.05, 0.5)
        + random.standard_normal(1600) * 10 ** random.uniform(-4, -1)
        for _ in range(round(seconds * 10))
    ]
    return (np.concatenate(parts) / 2).astype(np.float32)


def write_models(folder: Path, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Random neural ones, an n-gram of tagged text, and a bigram of its words; as files of a bundle."""
    torch.manual_seed(5)
    for kind, shape in SMALL.items():
        model: Any = make_language_model(kind, shape, tokenizer, "here")
        model.output.weight.data.mul_(4.0)
        save_language_model(folder / f"{kind}.safetensors", kind, model.config, model, tokenizer)
    names = [*tokenizer.pieces, *(f"<{name}>" for name in tokenizer.classes)]
    random = np.random.default_rng(1)
    tagged = [[names[i] for i in random.integers(0, len(names), 12)] for _ in range(60)]
    words = [[piece for piece in sentence if not piece.startswith("<")] for sentence in tagged]
    for name, order, text in (("ngram", 3, tagged), ("bigram", 2, words)):
        train_arpa(text, order, folder / f"{name}.arpa")
        NGramModel.from_arpa(folder / f"{name}.arpa", tokenizer).save(
            folder / f"{name}.safetensors", tokenizer
        )
    return {f"lm/{path.name}": path.read_bytes() for path in folder.glob("*.safetensors")}


def make_bundles(folder: Path) -> dict[str, Path]:
    """A model folder for each family."""
    text = ["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20
    tokenizer = Tokenizer.train(text, 40, ["contact", "city"])
    extra = write_models(folder, tokenizer)
    heard = [fbank(torch.from_numpy(sound(20.0, 9)), FeatureConfig())]
    statistics = FeatureNormaliser.estimate(heard).state_dict()
    found = {}
    for family, shape in SHAPES.items():
        torch.manual_seed(2)
        weights = load_family(family, shape, tokenizer, "here").model.state_dict()
        weights |= {f"normaliser.{name}": value for name, value in statistics.items()}
        if family == "factorized":
            weights["acoustic.weight"] *= 12
            weights["blank_output.bias"] += 2.5
        elif family == "aed":  # sharp enough to say something, and to end
            weights["output.weight"] *= 4
            weights["output.bias"][-1] += 0.5
        else:  # sharp enough to say something, and blank in most frames
            head = "output.weight" if family == "ctc" else "joint.output.weight"
            weights[head] *= 12 if family == "ctc" else 8
            weights[head.removesuffix("weight") + "bias"][-1] += 3.0
        config = {"family": family, "model": shape, "decoding": {"class_bonus": 4.0, "phrase_bonus": 2.0}}
        found[family] = save_bundle(
            folder / family, config, weights, tokenizer.model_bytes, "# Tiny", extra=extra
        )
    return found


def options_of(recognizer: Recognizer, **changes: Any) -> DecodingConfig:
    return DecodingConfig.model_validate(merge(recognizer.decoding.model_dump(mode="json"), changes))


def alike(one: Transcript, other: Transcript) -> None:
    """Equal but for the last digits of scores, and what they decide."""
    best, theirs = one.hypotheses[0], other.hypotheses[0]
    assert best.text == theirs.text
    assert [(w.text, w.start_s) for w in best.words] == [(w.text, w.start_s) for w in theirs.words]
    assert [e.written for e in best.entities] == [e.written for e in theirs.entities]
    assert best.score == pytest.approx(theirs.score, abs=0.02)


def save_talkative(folder: Path) -> Path:
    """A factorized model with weights that make it say something in many frames."""
    tokenizer = Tokenizer.train(
        ["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact", "city"]
    )
    torch.manual_seed(2)
    weights = load_family("factorized", SHAPES["factorized"], tokenizer, "here").model.state_dict()
    heard = [fbank(torch.from_numpy(sound(20.0, 9)), FeatureConfig())]
    for name, value in FeatureNormaliser.estimate(heard).state_dict().items():
        weights[f"normaliser.{name}"] = value
    weights["acoustic.weight"] *= 12
    weights["blank_output.bias"] += 2.5
    config = {"family": "factorized", "model": SHAPES["factorized"], "decoding": {"class_bonus": 4.0}}
    return save_bundle(folder, config, weights, tokenizer.model_bytes, "# Tiny")
