"""What the command says on standard error, and its results on standard output."""

from __future__ import annotations

import contextlib
import os
import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def say(line: str) -> None:
    """One line on standard error."""
    print(_printable(f"asr: {line}"), file=sys.stderr, flush=True)


def put(line: str) -> None:
    """One line on standard output, in UTF-8 whatever the locale; file names keep their bytes."""
    sys.stdout.flush()
    sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def abandon_stdout() -> None:
    """Stop writing to a standard output that failed, so that Python's flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(line: str) -> str:
    # A file name that is not UTF-8 must not stop the message about it.
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


class Bar:
    """A progress bar with time left on standard error; silent unless that is a terminal.

    Args:
        total: size of the whole work, in any unit.
        count: number of recordings, shown beside the bar.
        wanted: False keeps it silent anyway.
    """

    def __init__(self, total: float, count: int, wanted: bool = True) -> None:
        self._total = total
        self._count = count
        self._wanted = wanted and sys.stderr.isatty()
        self._progress: Progress | None = None
        self._seen = 0

    def __enter__(self) -> Bar:
        if self._wanted:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.fields[seen]}/{task.fields[count]}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
                redirect_stdout=False,
            )
            self._progress.add_task("", total=self._total, seen=0, count=self._count)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def say(self, line: str) -> None:
        """One line on standard error, above the bar."""
        if self._progress:
            text = _printable(f"asr: {line}")
            self._progress.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            say(line)

    def advance(self, size: float) -> None:
        """One more recording is done, of ``size``."""
        self._seen += 1
        if self._progress:
            self._progress.update(self._progress.task_ids[0], advance=size, seen=self._seen)

    def reach(self, seen: int) -> None:
        """So many items are done, each of size 1."""
        self._seen = seen
        if self._progress:
            self._progress.update(self._progress.task_ids[0], completed=seen, seen=seen)
