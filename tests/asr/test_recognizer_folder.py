"""A recognizer and its folder: what does not fit is refused, and nothing in it is changed."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
from tiny_models import LISTS, SHAPES, save_talkative, sound

from asr.bundle import load_bundle, save_bundle
from asr.recognizer import Recognizer
from lm.errors import BundleError

TINY = SHAPES["factorized"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_talkative(tmp_path_factory.mktemp("model") / "model")


def resave(model: Path, folder: Path, config: dict[str, Any], without: str = "") -> Path:
    bundle = load_bundle(model)
    whole = {k: v for k, v in bundle.config.items() if k not in ("format", "sha256")} | config
    tensors = {name: value for name, value in bundle.tensors.items() if name != without}
    return save_bundle(folder, whole, tensors, bundle.tokenizer_path.read_bytes(), "# Other")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model": {**TINY, "blank_witdh": 8}}, "did you mean 'blank_width'"),
        ({"model": {**TINY, "blank_width": 9}}, "checkpoint of another model"),
        ({"model": {**TINY, "encoder": {**TINY["encoder"], "layers": 2}}}, "missing"),
        ({"decoding": {"lm_scale": -1}}, "decoding: lm_scale = -1"),
        ({"features": {"num_bins": 40}}, "features.num_bins = 40"),
        ({"features": {"num_bin": 80}}, "did you mean 'num_bins'"),
        ({"decodin": {"lm_scale": 0.5}}, "did you mean 'decoding'"),
    ],
)
def test_configurations_that_do_not_fit(model: Path, tmp_path: Path, config: Any, says: str) -> None:
    folder = resave(model, tmp_path / "m", config)
    with pytest.raises(BundleError, match=says) as caught:
        Recognizer.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_and_pickles(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"1 missing \(acoustic.weight\)"):
        Recognizer.load(resave(model, tmp_path / "m", {}, without="acoustic.weight"))
    folder = resave(model, tmp_path / "p", {})
    (folder / "extra.txt").write_bytes(pickle.dumps(["x"]))
    with pytest.raises(BundleError, match="pickle"):
        Recognizer.load(folder)


def test_nothing_is_written_to_the_model_folder(model: Path) -> None:
    def state() -> list[tuple[str, str, int]]:
        return [
            (path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
            for path in sorted(model.iterdir())
        ]

    before = state()
    assert len(before) == 4
    fresh = Recognizer.load(model)
    fresh.transcribe([sound(0.5, 0)] * 2, entities=LISTS)
    fresh.report(LISTS)
    assert state() == before
