from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file

from asr.bundle import (
    Bundle,
    bundle_fingerprint,
    check_tensors,
    families,
    load_bundle,
    read_config,
    save_bundle,
)
from lm.errors import BundleError

TENSORS = {"encoder.weight": torch.arange(12.0).reshape(3, 4), "blank.bias": torch.ones(2).bfloat16()}


def save(folder: Path, tensors: dict[str, torch.Tensor] = TENSORS, **more: Any) -> Path:
    return save_bundle(
        folder, {"family": "factorized", "model": {"width": 4}}, tensors, b"\x0atok", "# M\n", **more
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


def change_config(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.update(changes)
    (folder / "config.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))


def refused(model: Path, *says: str) -> None:
    with pytest.raises(BundleError) as caught:
        load_bundle(model)
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert words in message, message


def test_what_is_saved_is_loaded(model: Path) -> None:
    bundle = load_bundle(model)
    assert isinstance(bundle, Bundle)
    assert bundle.folder == model
    assert bundle.tokenizer_path.read_bytes() == b"\x0atok"
    assert (model / "README.md").read_text() == "# M\n"
    assert bundle.config["format"] == 1
    assert bundle.config["model"] == {"width": 4}
    assert bundle.config["sha256"]["tokenizer.model"] == hashlib.sha256(b"\x0atok").hexdigest()
    assert bundle.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert bundle.tensors[name].dtype == tensor.dtype
        assert torch.equal(bundle.tensors[name], tensor)


def test_tied_and_strided_tensors_are_stored(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": whole, "b": whole, "c": whole.T, "d": torch.nn.Parameter(whole)}
    found = load_bundle(save(tmp_path / "m", tensors)).tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_extra_files_live_under_classes_and_lm(tmp_path: Path) -> None:
    model = save(tmp_path / "m", extra={"classes/contact.txt": b"maja novak\n"})
    assert (model / "classes" / "contact.txt").read_bytes() == b"maja novak\n"
    for name in ("other/x.txt", "x.txt", "lm/../x.txt"):
        with pytest.raises(BundleError, match="classes/ or lm/"):
            save(tmp_path / "n", extra={name: b""})
    assert not (tmp_path / "n").exists()


def test_replacing_leaves_only_the_new_model(model: Path) -> None:
    save(model, extra={"classes/old.txt": b"old"})
    save(model, {"other": torch.zeros(1)})
    assert set(load_bundle(model).tensors) == {"other"}
    assert not (model / "classes").exists()
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_a_folder_that_is_no_model_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    with pytest.raises(BundleError, match="choose another folder"):
        save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    load_bundle(save(tmp_path / "empty"))


@pytest.mark.parametrize("step", range(11))
def test_a_failure_at_any_step_leaves_the_old_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    before = bundle_fingerprint(model)
    calls = iter(range(1000))

    def failing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", failing(os.fsync))
    monkeypatch.setattr(Path, "rename", failing(Path.rename))
    with pytest.raises(BundleError, match=r"the disk of .* is full.*free some space"):
        save(model, {"other": torch.zeros(1)})
    monkeypatch.undo()
    load_bundle(model)
    # Steps 0 to 7 sync four files and their folder, 8 and 9 rename; the new model is in place before step 10.
    assert (bundle_fingerprint(model) == before) == (step < 10)
    assert [p for p in model.parent.iterdir() if "saving" in p.name] == []


def test_a_save_killed_between_the_renames_says_how_to_get_the_old_model_back(model: Path) -> None:
    previous = model.with_name(".model.previous")
    model.rename(previous)
    refused(model, "does not exist", f"mv {previous} {model}")
    save(model)
    load_bundle(model)
    assert not previous.exists()


def test_leftovers_of_a_killed_save_are_no_part_of_the_next(model: Path) -> None:
    leftover = model.with_name(".model.saving")
    leftover.mkdir()
    (leftover / "junk.pkl").write_bytes(b"junk")
    save(model)
    load_bundle(model)
    assert not leftover.exists()


@pytest.mark.parametrize("part", ["config.yaml", "model.safetensors", "tokenizer.model"])
def test_missing_parts_are_named(model: Path, part: str) -> None:
    (model / part).unlink()
    refused(model, part, "copy the whole model folder again")


def test_no_folder_and_a_file_in_its_place(tmp_path: Path) -> None:
    refused(tmp_path / "none", "does not exist", "check the path")
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "pickle", "run code")
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    refused(tmp_path / "x.wav", "is a file", "a model folder")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt", "x.pkl", "lm/lm.txt", "classes/a.joblib"],
)
@pytest.mark.parametrize("instead", [True, False])
def test_pickles_are_refused_and_never_opened(model: Path, tmp_path: Path, name: str, instead: bool) -> None:
    fired = tmp_path / "fired"
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_bytes(pickle.dumps(Bomb(fired)))
    if instead:
        (model / "model.safetensors").unlink()
    refused(model, str(model / name), "pickle", "safetensors.torch.save_file")
    assert not fired.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_the_right_name_is_refused(model: Path, zipped: bool) -> None:
    data = io.BytesIO()
    torch.save(TENSORS, data, _use_new_zipfile_serialization=zipped)
    (model / "model.safetensors").write_bytes(data.getvalue())
    refused(model, "model.safetensors is a pickle", "convert it")


def test_a_safetensors_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    # A header of 640 bytes: the file starts with 80 02, which opens a pickle of protocol 2.
    tensors = [{"x" * length: torch.zeros(1)} for length in range(500, 640)]
    path = save(tmp_path / "m", next(t for t in tensors if to_bytes(t)[:2] == b"\x80\x02"))
    assert len(load_bundle(path).tensors) == 1


def test_kenlm_binaries_may_end_in_bin(tmp_path: Path) -> None:
    load_bundle(save(tmp_path / "m", extra={"lm/3gram.bin": b"mmap lm http://kheafield.com/code format"}))


@pytest.mark.parametrize("keep", [0, 5, 8, 60, -1])
def test_cut_short_tensors_say_both_sizes(model: Path, keep: int) -> None:
    path = model / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    size = len(data[:keep])
    refused(model, f"cut short at {size} bytes", *([f"{len(data)} bytes"] if keep == -1 else []))


def test_other_content_under_the_name_of_tensors(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(b"<html>not found</html>")
    refused(model, "is not a safetensors file")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    refused(model, "git lfs pull")
    path.write_bytes((2).to_bytes(8, "little") + b"{]")
    refused(model, "broken header")


def test_parts_of_two_models_are_refused(model: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "other", {name: t + 1 for name, t in TENSORS.items()})
    shutil.copy(other / "model.safetensors", model)
    refused(model, "model.safetensors is not the file config.yaml was saved with", "sha256")
    save(model)
    (model / "tokenizer.model").write_bytes(b"other")
    refused(model, "tokenizer.model is not the file")


@pytest.mark.parametrize("given", [2, "1", True, 0])
def test_other_format_versions_are_refused(model: Path, given: Any) -> None:
    change_config(model, format=given)
    refused(model, f"format {given!r}", "expected format 1", "install the Vocative that wrote it")


def test_config_typos_name_the_nearest(model: Path) -> None:
    change_config(model, family="factorised")
    refused(model, "unknown family 'factorised'", "did you mean 'factorized'?")
    change_config(model, family=None, famly="factorized")
    refused(model, "no 'family'", "rename 'famly' to 'family'")
    change_config(model, family="factorized", sha256="abc")
    refused(model, "sha256 = 'abc'")


def test_families_are_the_folders() -> None:
    assert "factorized" in families()


def test_yaml_that_builds_objects_is_refused(model: Path, tmp_path: Path) -> None:
    fired = tmp_path / "fired"
    with (model / "config.yaml").open("a") as file:
        file.write(f"x: !!python/object/apply:os.system ['touch {fired}']\n")
    refused(model, "config.yaml", "tag that builds objects")
    assert not fired.exists()


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words", "", "\xff\xfe"])
def test_config_that_is_no_mapping(model: Path, text: str) -> None:
    (model / "config.yaml").write_bytes(text.encode("latin-1"))
    refused(model, "config.yaml", "YAML mapping")


def test_a_configuration_of_objects_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="numbers, strings, lists and mappings"):
        save_bundle(tmp_path / "m", {"family": "factorized", "x": tmp_path}, {}, b"", "")
    with pytest.raises(BundleError, match="unknown family"):
        save_bundle(tmp_path / "m", {"family": "ctc2"}, {}, b"", "")
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_follows_everything_that_counts(model: Path) -> None:
    seen = {bundle_fingerprint(model)}
    assert bundle_fingerprint(save(model)) in seen
    save(model, {"encoder.weight": torch.zeros(3, 4)})
    seen.add(bundle_fingerprint(model))
    save(model, extra={"classes/c.txt": b"maja"})
    seen.add(bundle_fingerprint(model))
    save(model, extra={"classes/c.txt": b"maia"})
    seen.add(bundle_fingerprint(model))
    change_config(model, model={"width": 5})
    seen.add(bundle_fingerprint(model))
    assert len(seen) == 5


def test_read_config_needs_no_tensors(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert read_config(model)["family"] == "factorized"


def test_tensors_of_another_model() -> None:
    expected = {"a": (2, 3), "b": (4,), "c": (1,)}
    check_tensors(expected, {"a": torch.zeros(2, 3), "b": torch.zeros(4), "c": torch.zeros(1)}, "here")
    given = {"a": torch.zeros(2, 4), "b": torch.zeros(4), "d1": torch.zeros(1), "d2": torch.zeros(1)}
    with pytest.raises(BundleError) as caught:
        check_tensors(expected, given, "exp/model")
    message = str(caught.value)
    assert "exp/model is a checkpoint of another model" in message
    assert "1 missing (c)" in message
    assert "2 unexpected (d1, d2)" in message
    assert "1 of another shape (a (2, 4) instead of (2, 3))" in message
    many = {f"x{i}": torch.zeros(1) for i in range(500)}
    with pytest.raises(BundleError) as caught:
        check_tensors({}, many, "exp/model")
    assert len(str(caught.value)) < 300


def test_the_tensor_file_is_plain_safetensors(model: Path, tmp_path: Path) -> None:
    """A file written by safetensors itself, with metadata, is accepted when its digest is right."""
    save_file(TENSORS, str(model / "model.safetensors"), metadata={"note": "x"})
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    config = yaml.safe_load((model / "config.yaml").read_text())
    change_config(model, sha256={**config["sha256"], "model.safetensors": digest})
    assert json.dumps(sorted(load_bundle(model).tensors)) == json.dumps(sorted(TENSORS))
