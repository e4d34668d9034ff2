"""Several batches an update, several processes, an encoder that grows: the same training in other pieces."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import make_trainer, same
from torch import nn

from asr.augment import SpecAugmentConfig
from asr.encoders.stages import PretrainStage, stage_of_epoch
from asr.families.factorized.config import FactorizedLossConfig
from asr.training.checkpoint import load_tensors
from asr.training.processes import add_up

SCRIPT = """
import sys; sys.path.insert(0, {tests!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
from asr.training.checkpoint import save_tensors
from test_training import make_trainer
trainer = make_trainer(Path({folder!r}), Path({audio!r}), accumulate=3, checkpoint_s=1e-9, **{changes!r})
trainer.on_step = lambda step, total, loss: print(step, flush=True)
weights = trainer.run()
save_tensors(Path({folder!r}) / f"rank{{trainer.processes.rank}}.safetensors", weights)
"""


def start(folder: Path, audio: Path, count: int, **changes: object) -> list[subprocess.Popen[str]]:
    """``count`` processes, as torchrun starts them, with these settings of the training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = SCRIPT.format(
        tests=str(Path(__file__).parent), folder=str(folder), audio=str(audio), changes=changes
    )
    usual = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script], env=usual | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]


def kill_after_two_updates(processes: list[subprocess.Popen[str]]) -> None:
    """``kill -9`` to all, once the first has made two updates."""
    assert processes[0].stdout is not None
    for line in processes[0].stdout:
        if line.strip() == "2":
            break
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three batches an update in one process."""
    folder = tmp_path_factory.mktemp("alone")
    make_trainer(folder / "run", folder / "audio", accumulate=3).run()
    return folder


def losses(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["train"] | {f"valid {name}": value for name, value in row["valid"].items()} for row in rows]


def close(one: Path, other: Path) -> bool:
    mine, theirs = load_tensors(one), load_tensors(other)
    return all(torch.allclose(mine[name].float(), theirs[name].float(), atol=1e-5) for name in theirs)


def test_two_processes_make_the_training_of_one(tmp_path: Path, alone: Path) -> None:
    processes = start(tmp_path, alone / "audio", 2)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for mine, expected in zip(losses(tmp_path), losses(alone / "run"), strict=True):
        assert mine == pytest.approx(expected, rel=1e-4)
    last = "epoch-0002.safetensors"
    assert close(tmp_path / last, alone / "run" / last)
    ranks = [load_tensors(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    assert same(*ranks)


def test_two_processes_that_were_killed_go_on(tmp_path: Path, alone: Path) -> None:
    processes = start(tmp_path, alone / "audio", 2)
    kill_after_two_updates(processes)
    assert list((tmp_path / "checkpoints").glob("step-*"))
    assert not (tmp_path / "epoch-0002.safetensors").exists()
    assert [process.wait(timeout=120) for process in start(tmp_path, alone / "audio", 2)] == [0, 0]
    last = "epoch-0002.safetensors"
    assert close(tmp_path / last, alone / "run" / last)


def test_a_signal_to_one_process_stops_both(tmp_path: Path, alone: Path) -> None:
    processes = start(tmp_path, alone / "audio", 2)
    assert processes[1].stdout is not None
    processes[1].stdout.readline()
    processes[1].send_signal(signal.SIGTERM)
    assert all(process.wait(timeout=60) == 1 for process in processes)
    assert not (tmp_path / "epoch-0002.safetensors").exists()


def test_several_batches_make_the_update_of_one(tmp_path: Path) -> None:
    trainers = []
    for name, batches in (("one", [["u0", "u1", "u2"]]), ("three", [["u0"], ["u1"], ["u2"]])):
        trainer = make_trainer(
            tmp_path / name, tmp_path / "audio", speeds=[1.0], clip_norm=1e9,
            spec_augment=SpecAugmentConfig(freq_masks=0, time_masks=0),
        )  # fmt: skip
        trainer.loss_config = FactorizedLossConfig(class_weight=0)
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        parts = trainer._update(batches, 0, 0)
        trainers.append((trainer, parts))
    (one, whole), (three, added) = trainers
    assert added == pytest.approx(whole, rel=1e-4)
    for mine, theirs in zip(three.model.parameters(), one.model.parameters(), strict=True):
        if theirs.grad is not None and mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    assert sum(p.grad is not None for p in one.model.parameters()) > 10


def test_an_encoder_grows_by_epochs_also_after_a_stop(tmp_path: Path) -> None:
    stages = [{"epochs": 1, "layers": 1}, {"epochs": 1, "layers": 1}]
    seen: list[tuple[int, int | None]] = []

    def watched() -> tuple[object, list[int]]:
        trainer = make_trainer(tmp_path / "run", tmp_path / "audio", pretrain=stages)
        steps: list[int] = []

        def note(layers: int | None, reductions: object) -> None:
            seen.append((len(steps), layers))

        trainer.model.encoder.set_stage = note  # type: ignore[operator, union-attr]
        trainer.on_step = lambda step, total, loss: steps.append(step)
        return trainer, steps

    trainer, steps = watched()
    trainer.run()  # type: ignore[attr-defined]
    each = len(steps) // 3
    assert seen == [(0, 1), (each, 1), (2 * each, None), (3 * each, None)]
    again, _ = watched()
    seen.clear()
    again.run()  # type: ignore[attr-defined]
    assert seen == [(0, None)]


def test_stages_by_epoch() -> None:
    stages = [PretrainStage(epochs=2, layers=1), PretrainStage(epochs=1, layers=3)]
    found = [stage_of_epoch(stages, epoch) for epoch in range(5)]
    assert [stage and stage.layers for stage in found] == [1, 1, 3, None, None]


def test_adding_up_names() -> None:
    assert add_up([{"a": 1.0}, {}, {"a": 2.0, "b": 1.0}]) == {"a": 3.0, "b": 1.0}
