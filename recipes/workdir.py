"""One recipe at a time in a work folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lm.errors import VocativeError


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the work folder for this process.

    The lock belongs to the open file and not to the file's existence, so the kernel frees it after a kill -9.

    Raises:
        VocativeError: if another process holds it.
    """
    path = workdir / ".stages" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise VocativeError(f"{workdir} is not a folder", "a work folder", "give another --workdir") from None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise VocativeError(
                f"{workdir} is in use by process {holder}",
                "one run at a time in a work folder",
                f"wait for it to end, or stop it (kill {holder}), or use another folder",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
