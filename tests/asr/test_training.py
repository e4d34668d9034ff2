"""Training: exact resume after every kind of interruption, safe checkpoints, averaging."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from asr.data.batches import BatchPlan, FeatureLoader
from asr.data.examples import Example
from asr.data.kaldi import Utterance
from asr.data.manifest import to_cuts
from asr.encoders.conformer import ConformerConfig
from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.families.factorized.model import FactorizedTransducer
from asr.features import FeatureConfig
from asr.training.average import average_epochs
from asr.training.checkpoint import CheckpointStore, Progress, load_tensors, save_tensors
from asr.training.config import TrainingConfig
from asr.training.loop import Trainer, takes_bf16
from asr.training.schedule import learning_rate
from lm.errors import BundleError, DataError, Interrupted, VocativeError
from lm.transformer import TransformerLMConfig

VOCAB = 6


def make_trainer(folder: Path, audio: Path, **changes: object) -> Trainer:
    """A tiny model on eight noises; the recordings are made once."""
    utterances, examples = [], {}
    audio.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        path = audio / f"u{i}.wav"
        if not path.exists():
            noise = np.random.default_rng(i).standard_normal(4000 + 500 * i).astype(np.float32) * 0.1
            soundfile.write(path, noise, 16000)
        utterances.append(Utterance(f"u{i}", path, "X", f"s{i}"))
        examples[f"u{i}"] = Example(f"u{i}", (i % VOCAB, 1), ((0, 0, 2),))
    cuts, _ = to_cuts(utterances)
    features = FeatureConfig()
    torch.manual_seed(1)
    encoder = ConformerConfig(layers=1, width=16, heads=2, feed_forward=16, kernel=3)
    predictor = TransformerLMConfig(layers=1, width=16, heads=2, feed_forward=16)
    config = FactorizedConfig(encoder=encoder, predictor=predictor, blank_width=8)
    settings = {"epochs": 3, "batch_s": 1.0, "threads": 1, "average": 2, "precision": "fp32", **changes}
    return Trainer(
        FactorizedTransducer(config, VOCAB, 1),
        FactorizedLossConfig(),
        TrainingConfig.model_validate(settings),
        examples,
        BatchPlan(cuts, 1.0, num_buckets=2),
        [["u0", "u1"]],
        FeatureLoader(cuts, features),
        VOCAB,
        folder,
        "fingerprint",
    )


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor], int]:
    """An uninterrupted training: the audio folder, its weights, the number of updates."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer(folder / "run", folder / "audio")
    return folder / "audio", trainer.run(), trainer.steps


@pytest.mark.parametrize("stop_after", [1, 4, 5])
def test_a_signal_saves_and_the_next_run_makes_the_same_model(
    tmp_path: Path, whole: tuple[Path, dict[str, Tensor], int], stop_after: int
) -> None:
    audio, expected, steps = whole
    assert steps > 6
    first = make_trainer(tmp_path / "run", audio)

    def stop(step: int, total: int, loss: float) -> None:
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    first.on_step = stop
    with pytest.raises(Interrupted, match=f"stopped after {stop_after} of {steps} updates"):
        first.run()
    assert same(make_trainer(tmp_path / "run", audio).run(), expected)


SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from test_training import make_trainer
trainer = make_trainer(Path({folder!r}), Path({audio!r}), checkpoint_s=1e-9)
trainer.on_step = lambda step, total, loss: print(step, flush=True)
trainer.run()
"""


def test_kill_9_loses_nothing_that_was_saved_and_the_next_run_makes_the_same_model(
    tmp_path: Path, whole: tuple[Path, dict[str, Tensor], int]
) -> None:
    audio, expected, _ = whole
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"), audio=str(audio))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "3":
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                break
    resumed = make_trainer(tmp_path / "run", audio)
    steps: list[int] = []
    resumed.on_step = lambda step, total, loss: steps.append(step)
    assert same(resumed.run(), expected)
    assert 2 <= steps[0] <= 5


def test_other_settings_do_not_continue_a_training(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    CheckpointStore(tmp_path, "one").save(model, optimizer, Progress(1, 2, 3))
    with pytest.raises(BundleError, match="another configuration"):
        CheckpointStore(tmp_path, "two").restore(model, optimizer)
    assert CheckpointStore(tmp_path, "one").restore(model, optimizer) == Progress(1, 2, 3)


def test_a_half_written_checkpoint_is_not_used_and_old_ones_go(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    store = CheckpointStore(tmp_path, "x")
    for step in (1, 2):
        store.save(model, optimizer, Progress(0, step, step))
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "model.safetensors").write_bytes(b"half")
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000002"]
    assert store.restore(model, optimizer) == Progress(0, 2, 2)


def test_a_full_disk_is_told_in_one_line_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    store = CheckpointStore(tmp_path, "x")
    store.save(model, optimizer, Progress(0, 1, 1))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("asr.training.checkpoint.save_file", full)
    with pytest.raises(VocativeError, match="the disk of .* is full"):
        store.save(model, optimizer, Progress(0, 2, 2))
    monkeypatch.undo()
    assert store.restore(model, optimizer) == Progress(0, 1, 1)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    store = CheckpointStore(tmp_path, "x")
    store.save(model, optimizer, Progress(0, 1, 1))
    file = tmp_path / "step-00000001" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BundleError, match="model.safetensors cannot be read"):
        store.restore(model, optimizer)


def test_average_is_the_mean_of_the_last_epochs(tmp_path: Path) -> None:
    for epoch in range(4):
        save_tensors(tmp_path / f"epoch-{epoch:04d}.safetensors", {"w": torch.full((2,), float(epoch))})
    assert average_epochs(tmp_path, 4, 2)["w"].tolist() == [2.5, 2.5]
    with pytest.raises(BundleError, match="is missing"):
        average_epochs(tmp_path, 6, 2)
    assert load_tensors(tmp_path / "epoch-0003.safetensors")["w"].tolist() == [3.0, 3.0]


def test_updates_without_finite_gradients_end_with_one_line(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "run", tmp_path / "audio", epochs=9)
    with torch.no_grad():
        trainer.model.acoustic.bias.fill_(float("nan"))
    with pytest.raises(DataError, match="no finite gradient"):
        trainer.run()


def test_learning_rate_rises_then_falls_to_its_share() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1, 0.05) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)


@pytest.mark.parametrize("there", [False, True])
def test_bf16_is_taken_by_itself_only_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    cpu = torch.device("cpu")
    assert takes_bf16("auto", cpu) is there
    assert takes_bf16("bf16", cpu)
    assert not takes_bf16("fp32", cpu)
