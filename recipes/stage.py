"""A stage says what it reads, makes and depends on; a fingerprint decides whether it must run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lm.errors import ConfigError
from recipes.fingerprint import ContentHasher, canonical, read_json, signature, write_json


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    ``run`` makes every path in ``outputs`` from ``inputs`` and ``params`` alone; ``params`` holds the
    JSON-able configuration values the result depends on. Raise ``version`` whenever the code behind ``run``
    changes what it makes: the fingerprint does not look at source code.
    """

    name: str
    description: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    params: Mapping[str, Any]
    run: Callable[[], None] = field(repr=False, compare=False)
    version: int = 1


def describe(stage: Stage, workdir: Path, hasher: ContentHasher) -> dict[str, Any]:
    """Everything a stage's result depends on: version, params, and the content hash of each input.

    Raises:
        ConfigError: if ``params`` cannot be written as JSON.
    """
    try:
        params = json.loads(canonical(dict(stage.params)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"stage {stage.name!r} has params that are not JSON ({error})",
            "strings, numbers, booleans, None, lists and mappings",
            "convert them, for example with config.model_dump(mode='json')",
        ) from None
    inputs = {label(path, workdir): hasher.hash(path) for path in stage.inputs}
    return {"version": stage.version, "params": params, "inputs": inputs}


def fingerprint(description: Mapping[str, Any]) -> str:
    """sha256 over what ``describe`` gave."""
    return hashlib.sha256(canonical(dict(description)).encode()).hexdigest()


def label(path: Path, workdir: Path) -> str:
    """The path relative to the workdir where it lies inside, so that a moved workdir stays valid."""
    absolute, base = os.path.abspath(path), os.path.abspath(workdir)
    return os.path.relpath(absolute, base) if absolute.startswith(base + os.sep) else absolute


class Records:
    """The small files ``<workdir>/.stages/<name>.json`` that say what was finished, and from what."""

    def __init__(self, workdir: Path, hasher: ContentHasher | None = None) -> None:
        self.folder = workdir / ".stages"
        self.hasher = hasher if hasher is not None else ContentHasher(self.folder / "hashes.json")
        self._workdir = workdir

    def path(self, stage: Stage) -> Path:
        """Where the record of ``stage`` lies."""
        return self.folder / f"{stage.name}.json"

    def forget(self, stage: Stage) -> None:
        """Drop the record before the stage runs: what is cut short must not pass for finished."""
        self.path(stage).unlink(missing_ok=True)

    def write(self, stage: Stage, description: Mapping[str, Any], seconds: float) -> None:
        """Record a finished run, atomically."""
        record = {
            **description,
            "fingerprint": fingerprint(description),
            "outputs": {label(path, self._workdir): self._made(path) for path in stage.outputs},
            "seconds": round(seconds, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(self.path(stage), record)
        self.hasher.save()

    def reasons(self, stage: Stage, description: Mapping[str, Any]) -> list[str]:
        """Why the stage must run, in words; empty if everything is as it was when it finished."""
        record = read_json(self.path(stage))
        if record is None or not all(
            isinstance(record.get(key), dict) for key in ("params", "inputs", "outputs")
        ):
            return ["no record of a finished run"]
        reasons = []
        if record.get("fingerprint") != fingerprint(description):
            reasons = _differences(record, description) or ["its fingerprint changed"]
        for path in stage.outputs:
            reasons += self._output_reason(path, label(path, self._workdir), record["outputs"])
        return reasons

    def _made(self, path: Path) -> list[str]:
        return [signature(path), self.hasher.hash(path)]

    def _output_reason(self, path: Path, name: str, recorded: Mapping[str, list[str] | str]) -> list[str]:
        """An output is unchanged if its times are, or, where a copy or a checkout changed them, its bytes."""
        if name not in recorded:
            return [f"output {name} is new"]
        before = recorded[name]
        seen, content = before if isinstance(before, list) else (before, None)  # text: before 2026-11-27
        now = signature(path)
        if now == seen:
            return []
        if now == "missing":
            return [f"output {name} is missing"]
        return [] if self.hasher.hash(path) == content else [f"output {name} was changed"]


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    reasons = []
    if before.get("version") != now["version"]:
        reasons.append(f"stage version {before.get('version')} -> {now['version']}")
    old, new = _flatten(before["params"]), _flatten(now["params"])
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            reasons.append(f"param {key} {old.get(key, 'unset')} -> {new.get(key, 'unset')}")
    for name in sorted(before["inputs"].keys() | now["inputs"].keys()):
        if name not in before["inputs"]:
            reasons.append(f"input {name} is new")
        elif name not in now["inputs"]:
            reasons.append(f"{name} is no longer an input")
        elif before["inputs"][name] != now["inputs"][name]:
            reasons.append(f"input {name} changed")
    return reasons


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)
    return flat
