"""Noise and rooms in training: what is drawn, from which recordings, and that what came before plays no part."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError
from test_training import make_trainer, same

from asr.augment import NoiseConfig, ReverbConfig
from asr.data.distortion import Distortion, find_noises
from asr.training.config import TrainingConfig
from lm.errors import ConfigError, Interrupted


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six noises of a quarter of a second, in folds 1, 2 and 5."""
    folder = tmp_path_factory.mktemp("noises")
    (folder / "all").mkdir()
    rows, folds = [], []
    for i in range(6):
        samples = np.random.default_rng(i).standard_normal(4000).astype(np.float32) * 0.1
        soundfile.write(folder / f"n{i}.wav", samples, 16000, subtype="FLOAT")
        rows.append(f"n{i} n{i}.wav\n")
        folds.append(f"n{i} {(1, 2, 5)[i % 3]}\n")
    (folder / "all" / "wav.scp").write_text("".join(rows))
    (folder / "all" / "utt2fold").write_text("".join(folds))
    return folder


def noise(folder: Path, **changes: object) -> NoiseConfig:
    return NoiseConfig.model_validate({"corpus": str(folder), "probability": 1.0, **changes})


def speech(count: int = 9000) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(1)) * 0.1


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.5])
def test_noise_is_as_loud_as_asked_for(noises: Path, snr_db: float) -> None:
    distortion = Distortion(noise(noises, snr_db=(snr_db, snr_db)), None, seed=0)
    for name in ("a", "b", "c"):
        change = distortion.of(name, 0)
        assert change is not None
        samples = speech().double()
        changed = change(samples)
        assert changed.shape == samples.shape
        ratio = samples.square().mean() / (changed - samples).square().mean()
        assert 10 * torch.log10(ratio).item() == pytest.approx(snr_db, abs=1e-4)


def test_ratios_and_rooms_are_drawn_between_their_limits(
    noises: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asr.data.distortion as module

    seen: dict[str, list[float]] = {"ratio": [], "room": []}

    def mix(samples: torch.Tensor, _: torch.Tensor, ratio: float, draws: torch.Generator) -> torch.Tensor:
        seen["ratio"].append(ratio)
        return samples

    def room(draws: torch.Generator, rt60_s: float, rate: int) -> torch.Tensor:
        seen["room"].append(rt60_s)
        return torch.ones(1)

    monkeypatch.setattr(module, "add_noise", mix)
    monkeypatch.setattr(module, "synthetic_rir", room)
    distortion = Distortion(
        noise(noises, snr_db=(3, 9)), ReverbConfig(rt60_s=(0.2, 0.4), probability=1.0), seed=0
    )
    for i in range(200):
        change = distortion.of(f"u{i}", 0)
        assert change is not None
        change(speech(500))
    for values, low, high in ((seen["ratio"], 3, 9), (seen["room"], 0.2, 0.4)):
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_silence_stays_silence_and_lengths_stay(noises: Path) -> None:
    distortion = Distortion(noise(noises), ReverbConfig(probability=1.0), seed=3)
    for count in (400, 4000, 12345):
        change = distortion.of(f"u{count}", 1)
        assert change is not None
        assert torch.equal(change(torch.zeros(count)), torch.zeros(count))
        loud = change(speech(count))
        assert loud.shape == (count,)
        assert torch.isfinite(loud).all()


def test_an_utterance_and_an_epoch_decide_alone(noises: Path) -> None:
    both = (noise(noises, probability=0.6), ReverbConfig(probability=0.5))
    one, other = (Distortion(*both, seed=7) for _ in range(2))
    names = [(f"u{i}", epoch) for i in range(8) for epoch in range(2)]
    first = {name: change(speech()) if (change := one.of(*name)) else None for name in names}
    for name in reversed(names):
        change = other.of(*name)
        expected = first[name]
        assert (change is None) == (expected is None)
        if change is not None and expected is not None:
            assert torch.equal(change(speech()), expected)
            assert torch.equal(change(speech()), expected)
    heard = [tuple(value[:50].tolist()) for value in first.values() if value is not None]
    assert len(set(heard)) == len(heard)
    reseeded = Distortion(*both, seed=8)
    assert any((reseeded.of(*name) is None) != (first[name] is None) for name in names)


def test_as_many_utterances_as_asked_for_get_them(noises: Path) -> None:
    def share(distortion: Distortion) -> float:
        return sum(distortion.of(f"u{i}", 0) is not None for i in range(2000)) / 2000

    assert share(Distortion(noise(noises, probability=0.2), None, 0)) == pytest.approx(0.2, abs=0.03)
    both = Distortion(noise(noises, probability=0.2), ReverbConfig(probability=0.5), 0)
    assert share(both) == pytest.approx(1 - 0.8 * 0.5, abs=0.04)
    assert share(Distortion(None, None, 0)) == 0


def test_folds_that_are_held_out_are_not_heard(noises: Path, tmp_path: Path) -> None:
    assert [path.stem for path in find_noises(noise(noises))] == ["n0", "n1", "n3", "n4"]
    assert [path.stem for path in find_noises(noise(noises, held_out=[1, 5]))] == ["n1", "n4"]
    assert len(find_noises(noise(noises, held_out=[]))) == 6
    with pytest.raises(ConfigError, match="fold '7'"):
        find_noises(noise(noises, held_out=["7"]))
    with pytest.raises(ConfigError, match="every recording"):
        find_noises(noise(noises, held_out=["1", "2", "5"]))
    (tmp_path / "wav.scp").write_text("x x.wav\n")
    assert find_noises(noise(tmp_path)) == [tmp_path / "x.wav"]


def test_a_corpus_of_noise_is_found_by_name(noises: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOCATIVE_CORPORA", str(noises.parent))
    assert len(find_noises(noise(Path(noises.name)))) == 4
    with pytest.raises(ConfigError, match=r"training\.noise\.corpus = 'nowhere'"):
        find_noises(noise(Path("nowhere")))


def test_settings_out_of_range() -> None:
    for values in (
        {"noise": {"corpus": "x", "snr_db": [9, 3]}},
        {"noise": {"corpus": "x", "probability": 1.5}},
        {"reverb": {"rt60_s": [0, 1]}},
    ):
        with pytest.raises(ValidationError):
            TrainingConfig.model_validate(values)


def test_probability_zero_is_absent_to_the_bit(noises: Path, tmp_path: Path) -> None:
    plain = make_trainer(tmp_path / "plain", tmp_path / "audio", epochs=1, average=1)
    never = make_trainer(
        tmp_path / "never", tmp_path / "audio", epochs=1, average=1,
        noise={"corpus": str(noises), "probability": 0.0}, reverb={"probability": 0.0},
    )  # fmt: skip
    assert same(never.run(), plain.run())


def test_a_stopped_training_goes_on_with_the_same_noise(noises: Path, tmp_path: Path) -> None:
    settings = {
        "noise": {"corpus": str(noises), "probability": 0.7},
        "reverb": {"probability": 0.5},
        "epochs": 2,
    }
    audio = tmp_path / "audio"
    whole = make_trainer(tmp_path / "whole", audio, **settings).run()
    first = make_trainer(tmp_path / "parts", audio, **settings)

    def stop(step: int, total: int, loss: float) -> None:
        if step == first.steps // 2 + 1:
            os.kill(os.getpid(), signal.SIGINT)

    first.on_step = stop
    with pytest.raises(Interrupted):
        first.run()
    assert same(make_trainer(tmp_path / "parts", audio, **settings).run(), whole)
    assert not same(make_trainer(tmp_path / "plain", audio, epochs=2).run(), whole)


@pytest.mark.corpora
def test_the_last_fold_of_esc10_is_kept_for_tests(corpora: Path) -> None:
    root = corpora / "noise_esc10"
    found = find_noises(NoiseConfig(corpus="noise_esc10"))
    assert len(found) == 320
    assert all(path.is_file() for path in found)
    assert not {path.stem for path in found} & {
        line.split()[0]
        for line in (root / "all" / "utt2fold").read_text().splitlines()
        if line.endswith(" 5")
    }
