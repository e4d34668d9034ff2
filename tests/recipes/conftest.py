"""A tiny corpus of noises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

WORDS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "ZERO")


def write_split(source: Path, split: str, speakers: str, count: int) -> dict[str, str]:
    """Utterances of noise; returns their texts."""
    chance = np.random.default_rng(len(speakers))
    folder = source / split
    folder.mkdir(parents=True)
    (source / "audio").mkdir(exist_ok=True)
    texts = {}
    for number in range(count):
        id = f"{speakers[number % len(speakers)]}-{split}-{number}"
        soundfile.write(source / "audio" / f"{id}.wav", chance.normal(0, 0.1, 24000), 16000)
        texts[id] = " ".join(chance.choice(WORDS, 3))
    for name, value in (("wav.scp", "audio/{}.wav"), ("utt2spk", "{:.1}")):
        (folder / name).write_text("".join(f"{id} {value.format(id)}\n" for id in texts))
    (folder / "text").write_text("".join(f"{id} {text}\n" for id, text in texts.items()))
    return texts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_split(tmp_path / "corpus", "train", "ab", 10)
    texts = write_split(tmp_path / "corpus", "dev", "cd", 6)
    lists = tmp_path / "biasing_lists"
    (lists / "words").mkdir(parents=True)
    (lists / "words" / "common_words_5k.txt").write_text("\n".join(WORDS[:7]).lower())
    (lists / "mini_librispeech").mkdir()
    rows = []
    for id, text in texts.items():
        rare = [word for word in text.split() if word not in WORDS[:7]]
        entries = json.dumps(sorted({*rare, *WORDS[8:]})).lower()
        rows.append(f"{id}\t{text.lower()}\t[]\t{entries}\n")
    (lists / "mini_librispeech" / "dev.biasing_100.tsv").write_text("".join(rows))
    return tmp_path / "corpus"
