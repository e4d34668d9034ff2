"""What the tests of the command start from; modules with a model of their own have that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scripted_cli import Fake, save

import asr.cli.transcribe


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", 1.0)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("c", "a", "b"):
        (tmp_path / "in" / f"{name}.wav").write_text(name.upper())
    return tmp_path / "in"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "contacts.yaml"
    path.write_text("contact:\n  - maja novak\n")
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Models that were loaded, with their device."""
    from asr.decoding_config import DecodingConfig

    calls: list[tuple[Path, str]] = []

    def load(model: Path, device: str) -> Any:
        calls.append((model, device))
        return Fake(DecodingConfig())

    monkeypatch.setattr(asr.cli.transcribe, "load_recognizer", load)
    return calls
