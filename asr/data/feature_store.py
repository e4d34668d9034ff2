"""Features on disk: one file of float16 numbers, mapped into memory, beside a table of what lies where."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lm.errors import VocativeError

Name = tuple[str, float]
"""An utterance's id and its speed."""


def open_features(folder: Path, key: str) -> dict[Name, Tensor] | None:
    """Features kept in ``folder`` under ``key``, or None where they are not, or not whole.

    Returns:
        (T, num_bins) float16 by utterance and speed, read from disk where they are used: do not change.
    """
    data, table = _files(folder, key)
    try:
        found = json.loads(table.read_text(encoding="utf-8"))
        bins, rows = int(found["bins"]), [(str(i), float(s), int(n)) for i, s, n in found["rows"]]
        size = data.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    frames = [count for _, _, count in rows]
    if size != 2 * bins * sum(frames) or not size:
        return None
    flat = torch.from_file(str(data), shared=False, size=bins * sum(frames), dtype=torch.float16)
    parts = torch.split(flat.view(-1, bins), frames)
    return {(i, speed): part for (i, speed, _), part in zip(rows, parts, strict=True)}


def write_features(folder: Path, key: str, items: Iterable[tuple[Name, Tensor]]) -> None:
    """Write features one after the other, complete or not at all, and remove those of other keys.

    Raises:
        VocativeError: the disk does not take them.
    """
    data, table = _files(folder, key)
    scratch = data.with_name(f".{data.name}.{os.getpid()}")
    rows, bins = [], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            for (utterance, speed), features in items:
                bins = features.shape[1]
                rows.append((utterance, speed, len(features)))
                file.write(np.ascontiguousarray(features.numpy(), np.float16).tobytes())
        old = [path for path in folder.iterdir() if path.suffix in (".f16", ".json")]
        os.replace(scratch, data)
        partial = table.with_name(f".{table.name}.{os.getpid()}")
        partial.write_text(json.dumps({"bins": bins, "rows": rows}), encoding="utf-8")
        os.replace(partial, table)
        for path in old:
            if path not in (data, table):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise VocativeError(
            f"features cannot be kept in {folder} ({error.strerror})",
            "room for 58 MB for an hour of speech and a speed",
            "free some space, or set training.keep_features=false",
        ) from None
    finally:
        if scratch.exists():
            scratch.unlink()


def _files(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / f"{key}.f16", folder / f"{key}.json"
