from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm.errors import ConfigError, DataError, VocativeError
from recipes.recipe import Recipe
from recipes.stage import Stage


class Kitchen:
    """prepare -> words -> count, and a lone stage; each notes that it ran."""

    def __init__(self, workdir: Path) -> None:
        self.workdir = workdir
        self.ran: list[str] = []
        self.params: dict[str, dict[str, Any]] = {"prepare": {"n": 3, "note": ""}, "count": {"by": 1}}
        self.bodies: dict[str, Callable[[], None]] = {}
        (workdir.parent / "corpus.txt").write_text("a b c d")

    def prepare(self) -> None:
        words = (self.workdir.parent / "corpus.txt").read_text().split()[: self.params["prepare"]["n"]]
        (self.workdir / "prepared").write_text(" ".join(words))

    def words(self) -> None:
        (self.workdir / "words").mkdir(exist_ok=True)
        (self.workdir / "words" / "list").write_text((self.workdir / "prepared").read_text().upper())

    def count(self) -> None:
        size = len((self.workdir / "words" / "list").read_text().split()) * self.params["count"]["by"]
        (self.workdir / "count").write_text(str(size))

    def lone(self) -> None:
        (self.workdir / "lone").write_text("lone")

    def stage(self, name: str, inputs: list[Path], output: str) -> Stage:
        def run() -> None:
            self.ran.append(name)
            self.bodies.get(name, getattr(self, name))()

        params = self.params.get(name, {})
        return Stage(name, f"does {name}", tuple(inputs), (self.workdir / output,), params, run)

    def recipe(self) -> Recipe:
        stages = (
            self.stage("prepare", [self.workdir.parent / "corpus.txt"], "prepared"),
            self.stage("words", [self.workdir / "prepared"], "words"),
            self.stage("count", [self.workdir / "words"], "count"),
            self.stage("lone", [], "lone"),
        )
        return Recipe("kitchen", self.workdir, stages)

    def run(self, **options: Any) -> list[str]:
        """Run the recipe; returns the names of the stages that ran."""
        self.ran.clear()
        self.recipe().run(**options)
        return list(self.ran)


ALL = ["prepare", "words", "count", "lone"]


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path / "work")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*"))}


def test_unchanged_stages_are_skipped(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    assert kitchen.run() == ALL
    out = capsys.readouterr().out
    assert "[1] words: does words" in out
    assert "inputs: prepared" in out
    assert "runs: no record of a finished run" in out
    assert re.search(r"done in \d+\.\d s", out)
    assert kitchen.run() == []
    assert capsys.readouterr().out.count("skipped: unchanged") == 4


def test_a_changed_param_reruns_what_depends_on_it(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen.run()
    kitchen.params["prepare"]["n"] = 4
    capsys.readouterr()
    assert kitchen.run() == ["prepare", "words", "count"]
    out = capsys.readouterr().out
    assert "runs: param n 3 -> 4" in out
    assert "runs: input prepared changed" in out
    assert (kitchen.workdir / "count").read_text() == "4"
    kitchen.params["count"]["by"] = 2
    assert kitchen.run() == ["count"]


def test_early_cut_off(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.params["prepare"]["note"] = "changes no output"
    assert kitchen.run() == ["prepare"]
    (kitchen.workdir.parent / "corpus.txt").write_text("a b c e")
    assert kitchen.run() == ["prepare"]
    (kitchen.workdir.parent / "corpus.txt").write_text("a b x e")
    assert kitchen.run() == ["prepare", "words", "count"]


def test_a_deleted_or_touched_output_is_made_again(kitchen: Kitchen) -> None:
    kitchen.run()
    (kitchen.workdir / "words" / "list").unlink()
    assert kitchen.run() == ["words"]
    (kitchen.workdir / "prepared").write_text("x")
    assert kitchen.run() == ["prepare"]
    assert (kitchen.workdir / "prepared").read_text() == "a b c"


def test_start_stop_and_force(kitchen: Kitchen) -> None:
    assert kitchen.run(stop="words") == ["prepare", "words"]
    assert kitchen.run(start="2", stop=2) == ["count"]
    assert kitchen.run(start="lone") == ["lone"]
    assert kitchen.run(force=True) == ALL
    assert kitchen.run(start=1, stop=1, force=True) == ["words"]


@pytest.mark.parametrize("start", [4, -1, "9", "wrods", "", "-1", "²"])
def test_a_stage_that_is_not_there(kitchen: Kitchen, start: int | str) -> None:
    with pytest.raises(ConfigError, match="one of 0 prepare, 1 words, 2 count, 3 lone"):
        kitchen.run(start=start)
    with pytest.raises(ConfigError, match="--stop-stage"):
        kitchen.run(stop=start)
    assert not kitchen.workdir.exists()


def test_start_after_stop(kitchen: Kitchen) -> None:
    with pytest.raises(ConfigError, match="--stage count comes after --stop-stage 1"):
        kitchen.run(start="count", stop=1)


def test_a_missing_input_names_the_stage_that_makes_it(kitchen: Kitchen) -> None:
    with pytest.raises(DataError, match=r"stage 2 'count' failed: input .*words does not exist.*--stage 1"):
        kitchen.run(start="count")
    (kitchen.workdir.parent / "corpus.txt").unlink()
    with pytest.raises(DataError, match=r"corpus.txt does not exist.*check the path"):
        kitchen.run()


def test_a_failing_stage_is_named(kitchen: Kitchen) -> None:
    def bad_list() -> None:
        raise ConfigError("a typo", "a key", "mend it")

    kitchen.bodies["words"] = bad_list
    with pytest.raises(
        ConfigError, match=r"^stage 1 'words' failed: a typo; expected a key; mend it, .*--stage 1$"
    ):
        kitchen.run()
    kitchen.bodies["words"] = lambda: print([][1])
    with pytest.raises(VocativeError, match=r"stage 1 'words' failed: IndexError.*words.error.txt") as caught:
        kitchen.run()
    assert "\n" not in str(caught.value)
    assert "IndexError" in (kitchen.workdir / ".stages" / "words.error.txt").read_text()
    kitchen.bodies["words"] = lambda: None
    with pytest.raises(DataError, match=r"stage 1 'words' failed: it ended without making .*words"):
        kitchen.run()
    kitchen.bodies.clear()
    assert kitchen.run() == ["words", "count", "lone"]


def test_a_full_disk_is_one_clear_line(kitchen: Kitchen) -> None:
    def fill() -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "big.pt")
        except OSError as error:
            raise RuntimeError("could not save") from error

    kitchen.bodies["words"] = fill
    with pytest.raises(VocativeError, match=r"^the disk is full: stage 1 'words' could not write") as caught:
        kitchen.run()
    assert "MiB left" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_full_disk_under_the_records(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("recipes.stage.write_json", no_room)
    with pytest.raises(
        VocativeError, match=r"the disk is full: stage 0 'prepare' could not write .*prepare.json"
    ):
        kitchen.run()
    monkeypatch.undo()
    assert kitchen.run() == ALL


def test_ctrl_c_leaves_a_workdir_to_go_on_from(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        (kitchen.workdir / "words").mkdir()
        (kitchen.workdir / "words" / "list").write_text("HALF")
        raise KeyboardInterrupt

    kitchen.bodies["words"] = interrupted
    with pytest.raises(SystemExit) as caught:
        kitchen.run()
    assert caught.value.code == 130
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "interrupted in stage 1 'words': run the same command again to go on"
    kitchen.bodies.clear()
    assert kitchen.run() == ["words", "count", "lone"]
    assert (kitchen.workdir / "words" / "list").read_text() == "A B C"


def test_a_forced_rerun_cut_short_does_not_pass_for_finished(kitchen: Kitchen) -> None:
    kitchen.run()

    def interrupted() -> None:
        raise KeyboardInterrupt

    kitchen.bodies["words"] = interrupted
    with pytest.raises(SystemExit):
        kitchen.run(start="words", stop="words", force=True)
    kitchen.bodies.clear()
    assert kitchen.run() == ["words"]


def test_dry_run_touches_nothing(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    assert kitchen.run(dry_run=True) == []
    assert not kitchen.workdir.exists()
    kitchen.run()
    kitchen.params["prepare"]["n"] = 4
    before = listing(kitchen.workdir.parent)
    capsys.readouterr()
    assert kitchen.run(dry_run=True) == []
    assert listing(kitchen.workdir.parent) == before
    out = capsys.readouterr().out
    assert "would run: param n 3 -> 4" in out
    assert "would run if 'prepare' makes something new" in out
    assert "would run if 'words' makes something new" in out
    assert "would be skipped: unchanged" in out


def test_two_stages_may_not_share_a_name_or_an_output(tmp_path: Path) -> None:
    def stage(name: str, output: str) -> Stage:
        return Stage(name, "", (), (tmp_path / output,), {}, lambda: None)

    with pytest.raises(ConfigError, match="2 stages are named 'a'"):
        Recipe("r", tmp_path, (stage("a", "x"), stage("a", "y")))
    with pytest.raises(ConfigError, match="both make"):
        Recipe("r", tmp_path, (stage("a", "x"), stage("b", "x/inner")))
    with pytest.raises(ConfigError, match="stage name '3'"):
        Recipe("r", tmp_path, (stage("3", "x"),))
    assert len(Recipe("r", tmp_path, (stage("a", "x"), stage("b", "xy"))).stages) == 2


def test_a_workdir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VocativeError, match="file is not a folder"):
        Recipe("r", tmp_path / "file", (Stage("a", "", (), (), {}, lambda: None),)).run()


SLOW = """
import sys, time
from pathlib import Path
from recipes.recipe import Recipe
from recipes.stage import Stage

workdir = Path(sys.argv[1])

def first():
    (workdir / "first").write_text("1")

def slow():
    (workdir / "slow").write_text("half")
    (workdir / "begun").write_text("")
    time.sleep(60)

Recipe("slow", workdir, (
    Stage("first", "", (), (workdir / "first",), {}, first),
    Stage("slow", "", (workdir / "first",), (workdir / "slow",), {}, slow),
)).run()
"""


def start_slow(workdir: Path) -> subprocess.Popen[str]:
    """Start a recipe in a process of its own; returns once it is inside its second stage."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = time.monotonic() + 30
    while not (workdir / "begun").exists():
        assert time.monotonic() < limit
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return process


def second_try(workdir: Path, ran: list[str]) -> Recipe:
    def body(name: str) -> Callable[[], None]:
        def run() -> None:
            ran.append(name)
            (workdir / name).write_text("whole")

        return run

    stages = (
        Stage("first", "", (), (workdir / "first",), {}, body("first")),
        Stage("slow", "", (workdir / "first",), (workdir / "slow",), {}, body("slow")),
    )
    return Recipe("slow", workdir, stages)


def test_lock_then_kill_9_then_rerun(tmp_path: Path) -> None:
    process = start_slow(tmp_path)
    ran: list[str] = []
    try:
        with pytest.raises(VocativeError, match=f"in use by process {process.pid}"):
            second_try(tmp_path, ran).run()
        second_try(tmp_path, ran).run(dry_run=True)
    finally:
        process.kill()
        process.communicate()
    assert ran == []
    assert (tmp_path / "slow").read_text() == "half"
    second_try(tmp_path, ran).run()
    assert ran == ["slow"]
    assert (tmp_path / "slow").read_text() == "whole"


def test_ctrl_c_of_a_real_process(tmp_path: Path) -> None:
    process = start_slow(tmp_path)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.splitlines()[-1] == "interrupted in stage 1 'slow': run the same command again to go on"
    assert "Traceback" not in out
    ran: list[str] = []
    second_try(tmp_path, ran).run()
    assert ran == ["slow"]
