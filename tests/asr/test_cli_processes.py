"""``asr`` as a process: interrupted, with closed or full streams, on a terminal, in another locale."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted_cli import DRIVER, Fake, call, start, transcribe, wait_for_lines


def test_ctrl_c_keeps_results_and_says_how_to_go_on(model: Path, audio: Path, tmp_path: Path) -> None:
    for number in range(40):
        (audio / f"{number:02}.wav").write_text("x")
    log = tmp_path / "out" / "results.jsonl"
    process = start(audio, "-m", model, "-o", log.parent, FAKE_S="0.05")
    wait_for_lines(log, 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "asr: interrupted; run the same command again to go on" in stderr
    assert "Traceback" not in stderr
    kept = log.read_bytes().count(b"\n")
    assert 2 <= kept < 43
    again = start(audio, "-m", model, "-o", log.parent)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 0
    assert f"{43 - kept} done, {kept} skipped" in stderr


def test_ctrl_c_before_the_first_result(model: Path, audio: Path, tmp_path: Path) -> None:
    log = tmp_path / "out" / "results.jsonl"
    process = start(audio, "-m", model, "-o", log.parent, FAKE_LOAD_S="30")
    wait_for_lines(log, 0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_prints_what_was_known(model: Path, audio: Path, loaded: list[Any]) -> None:
    (audio / "a.wav").write_text("ctrl-c")
    result = transcribe(audio, "-m", model)
    assert result.exit_code == 130
    assert [line[:3] for line in result.stdout.splitlines()] == ["b\tB", "c\tC"]
    assert "asr: interrupted; add --out DIR" in result.stderr
    assert "2 done" in result.stderr


def test_a_full_standard_output_is_one_line(model: Path, audio: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start(audio, "-m", model, stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [line for line in stderr.splitlines() if "full" in line] == stderr.splitlines()
    assert len(stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_bug(model: Path, audio: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    process = start(audio, "-m", model, stdout=written)
    os.close(written)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "bug" not in stderr
    assert "Traceback" not in stderr


def test_paths_that_cannot_be_written_are_no_bug(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a one\n")
    words = ["score", tmp_path / "text", tmp_path / "text", "--json", tmp_path / "text" / "x.json"]
    result = call(*words)
    assert result.exit_code == 2
    assert "bug" not in result.stderr
    assert str(tmp_path / "text") in result.stderr


def test_a_search_that_memory_cannot_hold_is_no_bug(
    model: Path, audio: Path, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")

    monkeypatch.setattr(Fake, "transcribe_many", full)
    result = transcribe(audio, "-m", model)
    assert result.exit_code == 1
    assert "not enough memory; lower --batch-s, search.beam" in result.stderr
    assert "bug" not in result.stderr


def test_closed_standard_streams(model: Path, audio: Path, tmp_path: Path) -> None:
    script = DRIVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(audio), "-m", str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(["sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", *command], timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "out" / "a.txt").is_file()


def test_a_terminal_gets_a_bar_and_whole_lines(model: Path, audio: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    script = DRIVER.format(tests=str(Path(__file__).parent))
    words = [
        str(audio),
        str(tmp_path / ("gone" * 30 + ".wav")),
        "-m",
        str(model),
        "-o",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side of a terminal is closed
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert process.wait(60) == 1
    text = shown.decode()
    assert "4/4" in text
    assert "left" in text
    line = next(line for line in text.split("\r\n") if "asr: failed: " in line)
    assert line.endswith("check the path"), "one line, however long"


def test_file_names_that_are_no_text_and_a_locale_that_is_no_utf8(model: Path, audio: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (audio / name).write_text("X")
    (audio / "東京.wav").write_text("Y")
    script = DRIVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(audio), "gone-é.wav", "-m", str(model)]
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=env, timeout=60, check=False)
    assert done.returncode == 1
    assert b"caf\xe9\tX" in done.stdout
    assert "東京\tY".encode() in done.stdout
    assert b"Traceback" not in done.stderr
