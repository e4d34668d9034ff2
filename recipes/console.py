"""What a recipe shows: rich text on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(line: str, style: str = "") -> None:
    """Print one line; ``style`` (a rich style such as ``bold``) only shows on a terminal."""
    if not sys.stdout.isatty():
        print(line, flush=True)
        return
    from rich.console import Console

    Console().print(line, style=style or None, markup=False, highlight=False)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how far a long job is; the body calls the given function with the number of items done so far."""
    if not sys.stdout.isatty():
        yield _plain_progress(title, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _plain_progress(title: str, total: int) -> Callable[[int], None]:
    """Print a line at each tenth of the way."""
    begun = time.monotonic()
    at_start = -1
    shown = 0

    def update(done: int) -> None:
        nonlocal at_start, shown
        at_start = done if at_start < 0 else at_start
        tenth = 10 * done // max(total, 1)
        if tenth <= shown:
            return
        shown = tenth
        passed = time.monotonic() - begun
        left = passed * (total - done) / max(done - at_start, 1)
        print(f"{title}: {done}/{total}, {passed:.0f} s passed, about {left:.0f} s left", flush=True)

    return update
