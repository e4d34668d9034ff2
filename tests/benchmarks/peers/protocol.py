"""A peer in a process and an environment of its own: one line of JSON asks it for a search, one answers.

The peers' side must run where nothing of this project is installed, so this module needs the standard library only.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Search = Callable[..., list[list[int]]]
"""Takes what was asked for as keywords and gives the tokens of each utterance."""


def serve(build: Callable[[], Search]) -> None:
    """Build a search, then answer what comes on standard input until it ends; the search alone is timed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print must not be taken for an answer
    search = build()
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        began = time.process_time()
        tokens = search(**wanted)
        print(json.dumps([time.process_time() - began, tokens]), file=answers, flush=True)


class Peer:
    """A worker that searches when it is told to.

    Args:
        python: interpreter of its environment.
        script: the worker.
        arguments: what the worker is told at its start.

    Raises:
        RuntimeError: the worker ended; its own words are on standard error.
    """

    def __init__(self, python: Path, script: Path, *arguments: str) -> None:
        variables = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        variables.pop("PYTHONPATH", None)
        self._worker = subprocess.Popen(
            [str(python), "-W", "ignore", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self._name = f"{python} {script.name} {' '.join(arguments)}"
        self._read()

    def search(self, **wanted: Any) -> tuple[float, list[list[int]]]:
        """CPU seconds that a search took, and the tokens of each utterance."""
        asked: TextIO = self._worker.stdin  # type: ignore[assignment]
        print(json.dumps(wanted), file=asked, flush=True)
        seconds, tokens = self._read()
        return seconds, tokens

    def close(self) -> None:
        """Let the worker end."""
        self._worker.communicate()

    def _read(self) -> Any:
        answered: TextIO = self._worker.stdout  # type: ignore[assignment]
        line = answered.readline()
        if not line:
            raise RuntimeError(f"{self._name} ended with status {self._worker.wait()}")
        return json.loads(line)


def environment(folder: Path | None, name: str) -> Path | None:
    """The interpreter of the environment ``name``; None, and a line that says so, where there is none."""
    if folder is not None and (folder / name / "bin" / "python").exists():
        return folder / name / "bin" / "python"
    where = f"{folder / name}" if folder else "--peers and VOCATIVE_PEERS are not given"
    print(f"{name} left out: no environment ({where})")
    return None


Timed = Callable[[], tuple[float, list[list[int]]]]


def take_turns(
    searches: dict[str, Timed], turns: int
) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """CPU seconds of every search in each turn, all of them in every turn, and its last answer.

    A turn more is run first and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    answers: dict[str, list[list[int]]] = {}
    for turn in range(turns + 1):
        for name, search in searches.items():
            taken, answers[name] = search()
            if turn:
                seconds[name].append(taken)
    return seconds, answers


def ratio(one: list[float], other: list[float]) -> float:
    """Median over turns of how many times longer ``one`` took."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def timed(search: Callable[[], list[list[int]]]) -> Timed:
    """``search`` with its CPU seconds."""

    def run() -> tuple[float, list[list[int]]]:
        began = time.process_time()
        tokens = search()
        return time.process_time() - began, tokens

    return run
