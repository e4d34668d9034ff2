"""Shared by all tests: one thread, and the real corpora when VOCATIVE_CORPORA points at them."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder of real corpora; the test is skipped, saying so, where there is none."""
    folder = os.environ.get("VOCATIVE_CORPORA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VOCATIVE_CORPORA does not point at the corpora")
    return Path(folder)
