from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import AudioSource, CutSet, MonoCut, Recording

from asr.audio import read_audio
from asr.augment import speed
from asr.data.batches import BatchPlan, FeatureLoader
from asr.data.kaldi import Utterance
from asr.data.manifest import to_cuts
from asr.features import FeatureConfig, fbank
from lm.errors import AudioError, DataError, VocativeError


def make_cuts(durations: list[float]) -> CutSet:
    cuts = []
    for i, duration in enumerate(durations):
        source = AudioSource(type="file", channels=[0], source=f"{i}.wav")
        samples = round(duration * 16000)
        recording = Recording(f"r{i}", [source], 16000, samples, duration)
        cuts.append(MonoCut(id=f"u{i}", start=0.0, duration=duration, channel=0, recording=recording))
    return CutSet.from_cuts(cuts)


def some_durations(count: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [round(generator.lognormvariate(1.0, 0.7) + 0.3, 2) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(
    durations=st.lists(st.integers(3, 2000).map(lambda n: n / 100), min_size=1, max_size=60),
    cap=st.floats(20, 200),
    num_buckets=st.integers(1, 30),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_every_cut_once_and_no_batch_over_the_cap(
    durations: list[float], cap: float, num_buckets: int, seed: int, epoch: int
) -> None:
    cuts = make_cuts(durations)
    batches = BatchPlan(cuts, cap, num_buckets, seed).epoch(epoch)
    assert sorted(id for batch in batches for id in batch) == sorted(f"u{i}" for i in range(len(durations)))
    length = {cut.id: cut.duration for cut in cuts}
    for batch in batches:
        assert batch
        assert len(batch) * max(length[id] for id in batch) <= cap + 1e-6


def test_large_epochs_are_complete_full_and_little_padded() -> None:
    cuts = make_cuts(some_durations(3000))
    plan = BatchPlan(cuts, 80.0, 10, seed=1)
    length = {cut.id: cut.duration for cut in cuts}
    total = sum(length.values())
    for epoch in range(3):
        batches = plan.epoch(epoch)
        assert sorted(id for batch in batches for id in batch) == sorted(length)
        padded = sum(len(batch) * max(length[id] for id in batch) for batch in batches)
        assert padded < 1.25 * total
        assert len(batches) < 1.35 * total / 80


def test_epochs_and_seeds_differ_and_repeat() -> None:
    cuts = make_cuts(some_durations(300))
    plan = BatchPlan(cuts, 40.0, 5, seed=0)
    first, second = plan.epoch(0), plan.epoch(1)
    assert first != second
    assert plan.epoch(0) == first
    assert BatchPlan(cuts, 40.0, 5, seed=0).epoch(1) == second
    other = BatchPlan(cuts, 40.0, 5, seed=1)
    for batches in (other.epoch(0), other.epoch(1)):
        shared = set(map(frozenset, batches)) & (set(map(frozenset, first)) | set(map(frozenset, second)))
        assert len(shared) < len(batches) / 4


def test_the_order_of_the_manifest_does_not_matter() -> None:
    cuts = list(make_cuts([2.0] * 20 + some_durations(100)))
    shuffled = random.Random(5).sample(cuts, len(cuts))
    one, two = (BatchPlan(CutSet.from_cuts(c), 30.0, 4).epoch(3) for c in (cuts, shuffled))
    assert one == two


def test_other_processes_ranks_and_random_states_give_the_same_plan() -> None:
    wanted = BatchPlan(make_cuts(some_durations(120)), 30.0, 4, seed=7).epoch(2)
    script = (
        "import random, sys; random.seed(99); sys.path.insert(0, sys.argv[1])\n"
        "from test_batches import *\n"
        "print(BatchPlan(make_cuts(some_durations(120)), 30.0, 4, seed=7).epoch(2))"
    )
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "PYTHONHASHSEED": "12"}
    run = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | ranks,
    )
    assert run.stdout.strip() == str(wanted)


@pytest.mark.parametrize(
    ("durations", "words"),
    [([], "no utterances"), ([1.0, 31.0], "utterance u1 lasts 31.00 s; expected at most the 30 s")],
)
def test_plans_that_cannot_be_made(durations: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        BatchPlan(make_cuts(durations), 30.0)


def test_ids_twice() -> None:
    cuts = list(make_cuts([1.0]))
    with pytest.raises(DataError, match="share an id"):
        BatchPlan([*cuts, *cuts], 30.0)


# Features.


@pytest.fixture
def recording(tmp_path: Path) -> tuple[Path, CutSet]:
    path = tmp_path / "a.wav"
    sf.write(path, np.random.default_rng(0).standard_normal(44100) * 0.1, 22050)
    cuts, problems = to_cuts([Utterance("all", path, "", "s"), Utterance("part", path, "", "s", 0.5, 1.25)])
    assert not problems
    return path, cuts


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("factor", [0.9, 1.0, 1.1])
def test_features_are_those_of_the_part_at_the_speed(
    recording: tuple[Path, CutSet], factor: float, cache: bool
) -> None:
    path, cuts = recording
    loader = FeatureLoader(cuts, FeatureConfig(), cache=cache)
    samples = torch.from_numpy(read_audio(path, start_s=0.5, end_s=1.25))
    wanted = fbank(speed(samples, factor), FeatureConfig())
    for _ in range(2):
        got = loader.load("part", factor)
        assert got.dtype == torch.float16
        assert got.shape == wanted.shape
        torch.testing.assert_close(got.float(), wanted, atol=0.01, rtol=0)
    assert len(got) == pytest.approx(75 / factor, abs=1)


def test_the_cache_reads_a_recording_once(
    recording: tuple[Path, CutSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    import asr.data.batches as module

    reads: list[Any] = []

    def counted(*args: Any) -> Any:
        reads.append(args)
        return read_audio(*args)

    monkeypatch.setattr(module, "read_audio", counted)
    kept, fresh = (FeatureLoader(recording[1], FeatureConfig(), cache=cache) for cache in (True, False))
    for _ in range(3):
        kept.load("all", 1.0)
        kept.load("all", 0.9)
    assert len(reads) == 2
    for _ in range(3):
        fresh.load("all", 1.0)
    assert len(reads) == 5


def test_what_the_loader_does_not_know(recording: tuple[Path, CutSet]) -> None:
    loader = FeatureLoader(recording[1], FeatureConfig(), speeds=(1.0,))
    with pytest.raises(DataError, match="utterance 'x'"):
        loader.load("x", 1.0)
    with pytest.raises(DataError, match=r"speed 0\.9"):
        loader.load("all", 0.9)
    recording[0].unlink()
    with pytest.raises(AudioError, match="does not exist"):
        loader.load("all", 1.0)


def test_collate_pads_with_zeros() -> None:
    one, two = torch.randn(3, 4).half(), torch.randn(5, 4).half()
    features, lengths = FeatureLoader.collate([one, two])
    assert features.shape == (2, 5, 4)
    assert features.dtype == torch.float32
    assert lengths.tolist() == [3, 5]
    assert torch.equal(features[0, :3], one.float())
    assert torch.equal(features[1], two.float())
    assert not features[0, 3:].any()


def test_kept_features_are_those_that_would_be_computed(
    recording: tuple[Path, CutSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asr.data.batches as module

    wanted = {"part": (0.9, 1.0, 1.1), "all": (1.0,)}
    fresh = FeatureLoader(recording[1], FeatureConfig())
    expected = {(i, s): fresh.load(i, s) for i, speeds in wanted.items() for s in speeds}
    reads: list[Any] = []

    def counted(*args: Any) -> Any:
        reads.append(args)
        return read_audio(*args)

    monkeypatch.setattr(module, "read_audio", counted)
    folder = tmp_path / "features"
    done: list[int] = []
    assert not FeatureLoader(recording[1], FeatureConfig()).keep(wanted, folder, make=False)
    for turn in range(2):
        loader = FeatureLoader(recording[1], FeatureConfig())
        assert loader.keep(wanted, folder, on_item=done.append)
        for (i, s), features in expected.items():
            assert torch.equal(loader.load(i, s), features)
        assert len(reads) == 2  # once each, and never again
        assert done == [1, 2]
        if not turn:
            assert torch.equal(loader.load("all", 0.9), fresh.load("all", 0.9))  # not kept: computed
            reads.clear()
            reads += [None, None]


def test_kept_features_of_other_settings_or_recordings_are_not_used(
    recording: tuple[Path, CutSet], tmp_path: Path
) -> None:
    folder, wanted = tmp_path / "features", {"all": (1.0,)}
    assert FeatureLoader(recording[1], FeatureConfig()).keep(wanted, folder)
    (data,) = folder.glob("*.f16")
    other = FeatureLoader(recording[1], FeatureConfig(num_bins=40))
    assert not other.keep(wanted, folder, make=False)
    assert other.keep(wanted, folder)
    assert other.load("all").shape[1] == 40
    assert not data.exists()
    assert len(list(folder.iterdir())) == 2
    sf.write(recording[0], np.zeros(44100), 22050)
    assert not other.keep(wanted, folder, make=False)


def test_a_half_written_file_of_features_is_made_again(
    recording: tuple[Path, CutSet], tmp_path: Path
) -> None:
    loader, wanted = FeatureLoader(recording[1], FeatureConfig()), {"all": (1.0,)}
    before = loader.load("all").clone()
    assert loader.keep(wanted, tmp_path / "f")
    (data,) = (tmp_path / "f").glob("*.f16")
    data.write_bytes(data.read_bytes()[:-2])
    again = FeatureLoader(recording[1], FeatureConfig())
    assert not again.keep(wanted, tmp_path / "f", make=False)
    assert again.keep(wanted, tmp_path / "f")
    assert torch.equal(again.load("all"), before)
    with pytest.raises(VocativeError, match="keep_features=false"):
        again.keep(wanted, data / "below")
