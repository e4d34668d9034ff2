"""Importing the packages needs none of the optional libraries and loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPTIONAL = ("torchaudio", "k2", "kenlm", "ray", "espeakng_loader")


def run(code: str) -> str:
    block = f"import sys\nfor name in {OPTIONAL!r}: sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_packages_import_without_heavy_libraries() -> None:
    heavy = "[m for m in sys.modules if m in ('torch', 'librosa', 'lhotse')]"
    code = f"import lm, decoding, asr, recipes\nprint({heavy})"
    assert run(code).strip() == "[]"


@pytest.mark.parametrize("module", ["asr.recognizer", "asr.training.loop", "recipes.asr", "asr.cli.main"])
def test_everything_loads_without_the_optional_libraries(module: str) -> None:
    assert run(f"import {module}\nprint('loaded')").strip() == "loaded"


def test_features_and_losses_work_without_torchaudio() -> None:
    code = (
        "import torch\n"
        "from asr.features import FeatureConfig, fbank\n"
        "print(tuple(fbank(torch.randn(16000), FeatureConfig()).shape))\n"
        "from asr.losses.rnnt import transducer_loss_from_logp\n"
        "loss = transducer_loss_from_logp(torch.full((1, 2, 1), -1.0), torch.zeros(1, 2, 0),"
        " torch.tensor([2]), torch.tensor([0]))\n"
        "print(round(float(loss), 3))\n"
    )
    assert run(code).split("\n")[:2] == ["(100, 80)", "2.0"]


def test_asking_for_torchaudio_without_it_names_the_extra() -> None:
    code = (
        "import torch\n"
        "from lm.errors import VocativeError\n"
        "from asr.losses.rnnt import transducer_loss_from_logp\n"
        "try:\n"
        "    transducer_loss_from_logp(torch.zeros(1, 2, 1), torch.zeros(1, 2, 0), torch.tensor([2]),"
        " torch.tensor([0]), backend='torchaudio')\n"
        "except VocativeError as error: print(error)\n"
    )
    assert "torchaudio" in run(code)
