"""A GPU computes what the CPU computes: losses, gradients, transcripts.

Skipped where there is no GPU; ``VOCATIVE_TEST_DEVICE=cpu`` runs the tests themselves without one.
"""

from __future__ import annotations

import os

import pytest
import torch
from sharded_gradients import SHAPES, batch_of
from tiny_models import FAMILIES, LISTS, alike, make_bundles, options_of, sound

from asr.families import load_family
from asr.recognizer import Recognizer
from lm.tokenizer import Tokenizer

DEVICE = os.environ.get("VOCATIVE_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "")
pytestmark = pytest.mark.skipif(not DEVICE, reason="no GPU here; VOCATIVE_TEST_DEVICE=cpu runs these without")


@pytest.fixture(autouse=True)
def whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and LSTMs in float32, not TF32, whose ten bits of mantissa are what would be compared."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recognizer, Recognizer]]:
    """Each family's model on the CPU and on the device."""
    folders = make_bundles(tmp_path_factory.mktemp("devices"))
    return {name: (Recognizer.load(f), Recognizer.load(f, DEVICE)) for name, f in folders.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_losses_and_gradients(name: str) -> None:
    tokenizer = Tokenizer.train(["call maja novak", "abcdefghijklmnopqrstuvwxyz"] * 20, 40, ["contact"])
    family, shape = SHAPES[name]
    found = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(7)
        built = load_family(family, shape, tokenizer, "here")
        model = built.model.to(device).train()  # no dropout in these shapes
        parts = model.losses(batch_of(1, tokenizer).to(device), built.loss_config({}))  # type: ignore[operator]
        torch.autograd.backward(parts["total"])
        gradients = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        found.append(({n: float(value.detach()) for n, value in parts.items()}, gradients))
    (losses, gradients), (theirs, others) = found
    assert theirs == pytest.approx(losses, rel=1e-3, abs=1e-4)
    assert gradients.keys() == others.keys()
    for n, gradient in gradients.items():
        scale = 1e-4 + float(gradient.abs().max())
        torch.testing.assert_close(others[n] / scale, gradient / scale, rtol=0, atol=5e-3, msg=n)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("biasing", ["none", "classes", "phrases"])
@pytest.mark.parametrize("model", ["transformer", "lstm", "based", "ngram"])
def test_transcripts(
    both: dict[str, tuple[Recognizer, Recognizer]], family: str, biasing: str, model: str
) -> None:
    on_cpu, on_device = both[family]
    options = options_of(
        on_cpu, biasing=biasing, fusion={"lm": model, "weight": 0.3},
        rescoring={"lm": "ngram", "weight": 0.2}, search={"beam": 4},
    )  # fmt: skip
    recordings, lists = [sound(1.5, 1), sound(2.2, 2)], [LISTS if biasing != "none" else None, None]
    expected = on_cpu.transcribe(recordings, entities=lists, options=options)
    found = on_device.transcribe(recordings, entities=lists, options=options)
    for mine, theirs in zip(found, expected, strict=True):
        assert theirs.text
        alike(mine, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_transcripts(both: dict[str, tuple[Recognizer, Recognizer]], family: str) -> None:
    on_cpu, on_device = both[family]
    options = options_of(on_cpu, biasing="none", search={"beam": 1})
    recordings = [sound(1.5, 1), sound(2.2, 2)]
    expected = on_cpu.transcribe(recordings, options=options)
    for mine, theirs in zip(on_device.transcribe(recordings, options=options), expected, strict=True):
        alike(mine, theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beam", [1, 4])
def test_long_recordings(both: dict[str, tuple[Recognizer, Recognizer]], family: str, beam: int) -> None:
    """Long enough for steps to be recorded (``decoding.steady``), where they can be."""
    on_cpu, on_device = both[family]
    options = options_of(on_cpu, biasing="none", search={"beam": beam})
    recordings = [sound(7.0, 3), sound(2.2, 2), sound(4.9, 4)]
    expected = on_cpu.transcribe(recordings, options=options)
    for mine, theirs in zip(on_device.transcribe(recordings, options=options), expected, strict=True):
        alike(mine, theirs)
