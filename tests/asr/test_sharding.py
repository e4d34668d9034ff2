"""Weights in pieces: the training of whole weights, and files that do not tell one from the other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import make_trainer
from test_training_processes import close, kill_after_two_updates, losses, start

from asr.training.checkpoint import load_tensors
from asr.training.processes import Processes
from asr.training.sharding import whole
from lm.errors import ConfigError

LAST = "epoch-0002.safetensors"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of three batches an update in one process: the second process lacks one."""
    folder = tmp_path_factory.mktemp("alone")
    make_trainer(folder / "run", folder / "audio", accumulate=3).run()
    return folder


def test_two_processes_with_a_piece_each_make_the_training_of_one(tmp_path: Path, alone: Path) -> None:
    processes = start(tmp_path, alone / "audio", 2, shard=True)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for mine, expected in zip(losses(tmp_path), losses(alone / "run"), strict=True):
        assert mine == pytest.approx(expected, rel=1e-4)
    assert close(tmp_path / LAST, alone / "run" / LAST)


def test_what_was_killed_goes_on_in_pieces_or_whole(tmp_path: Path, alone: Path) -> None:
    run = tmp_path / "pieces"
    processes = start(run, alone / "audio", 2, shard=True)
    kill_after_two_updates(processes)
    assert list((run / "checkpoints").glob("step-*"))
    assert not (run / LAST).exists()
    shutil.copytree(run, tmp_path / "whole")
    assert [p.wait(timeout=120) for p in start(run, alone / "audio", 2, shard=True)] == [0, 0]
    make_trainer(tmp_path / "whole", alone / "audio", accumulate=3).run()
    for folder in (run, tmp_path / "whole"):
        assert close(folder / LAST, alone / "run" / LAST)


def test_what_one_process_began_goes_on_in_pieces(tmp_path: Path, alone: Path) -> None:
    first = make_trainer(tmp_path, alone / "audio", accumulate=3)
    first.on_step = lambda step, total, loss: first._ask_to_stop()
    with pytest.raises(Exception, match="stopped after 1 of"):
        first.run()
    assert [p.wait(timeout=120) for p in start(tmp_path, alone / "audio", 2, shard=True)] == [0, 0]
    assert close(tmp_path / LAST, alone / "run" / LAST)


def test_files_hold_whole_tensors(tmp_path: Path, alone: Path) -> None:
    assert [p.wait(timeout=120) for p in start(tmp_path, alone / "audio", 2, shard=True)] == [0, 0]
    (folder,) = (tmp_path / "checkpoints").glob("step-*")
    expected = make_trainer(tmp_path / "x", alone / "audio").model.state_dict()
    found = load_tensors(folder / "model.safetensors")
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in expected.items()}
    moments = load_tensors(folder / "optimizer.safetensors")
    assert sum(t.numel() for n, t in moments.items() if n.endswith("exp_avg")) > 1000


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="training.shard=true with one process"):
        make_trainer(tmp_path / "run", tmp_path / "audio", shard=True)


@pytest.mark.parametrize("parts", range(6))
def test_every_process_takes_as_many_turns_and_every_part_counts_once(parts: int) -> None:
    taken = []
    for rank in range(3):
        processes = Processes()
        processes.rank, processes.count = rank, 3
        taken.append(processes.turns(parts, together=True))
    assert len({len(turns) for turns in taken}) == 1
    assert sorted(i for turns in taken for i, counts in turns if counts) == list(range(parts))


def test_every_family_has_the_gradients_of_whole_weights() -> None:
    script = Path(__file__).with_name("sharded_gradients.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_whole_stays_as_it_is() -> None:
    plain = {"a": [torch.ones(2), {"b": 3}], "c": torch.zeros(())}
    assert whole(plain) == plain
