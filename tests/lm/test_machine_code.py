"""Compiled functions are those of the sources at hand, of all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from numba import config

import decoding
from lm.machine_code import compiled, sources

ROOT = Path(decoding.__file__).parents[1]


def test_a_function_knows_what_it_was_made_from() -> None:
    names = {str(path.relative_to(ROOT)) for path in sources(ROOT / "decoding" / "step_kernel.py")}
    assert {"decoding/step_kernel.py", "decoding/settle_kernel.py", "decoding/kernel_types.py"} <= names
    assert {"decoding/beam.py", "decoding/trace.py", "lm/machine_code.py"} <= names
    assert "decoding/frame_sync.py" not in names


def test_every_file_with_compiled_functions_goes_through_it() -> None:
    for path in ROOT.glob("*/**/*.py"):
        if path.relative_to(ROOT).parts[0] in ("lm", "decoding", "asr", "recipes"):
            assert "njit" not in path.read_text() or path.name == "machine_code.py", path


def test_a_change_in_a_called_file_is_seen(tmp_path: Path) -> None:
    package = tmp_path / "decoding"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "__init__.py").write_text("")
    (tmp_path / "lm" / "machine_code.py").write_text((ROOT / "lm" / "machine_code.py").read_text())
    head = "from lm.machine_code import compiled\n"
    (package / "outer.py").write_text(
        f"{head}from decoding.inner import inner\n@compiled\ndef outer(x):\n    return inner(x) + 1\n"
    )
    found = []
    for factor in (2, 3, 2):
        (package / "inner.py").write_text(f"{head}@compiled\ndef inner(x):\n    return x * {factor}\n")
        command = [sys.executable, "-c", "from decoding.outer import outer; print(outer(5))"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        found.append(int(done.stdout))
    assert found == [11, 16, 11]
    folders = list((package / "__pycache__").glob("kernels-*"))
    assert len(folders) == 4, "two contents of inner, and outer with each"


def test_the_settings_of_numba_stay_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    made = compiled(sources)
    assert str(tmp_path) == config.CACHE_DIR
    assert made.__name__ == "sources"
