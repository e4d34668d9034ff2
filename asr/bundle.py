"""A model is a folder, ``config.yaml model.safetensors tokenizer.model README.md``; nothing in it runs code.

Optional parts live in ``classes/`` and ``lm/``. ``config.yaml`` has ``format``, ``family`` and the SHA-256 of
the tensors and of the tokenizer, so a folder put together from two models is refused when it is loaded.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lm.errors import BundleError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
CONFIG, TENSORS, TOKENIZER, README = "config.yaml", "model.safetensors", "tokenizer.model", "README.md"
EXTRA_FOLDERS = ("classes", "lm")
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class Bundle:
    """A loaded model folder: its configuration, its tensors by name, and where the other parts are."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer_path: Path
    folder: Path


def families() -> list[str]:
    """Names of the model families this installation has (the folders of ``asr/families``)."""
    home = Path(__file__).parent / "families"
    return sorted(p.parent.name for p in home.glob("*/__init__.py"))


def save_bundle(
    folder: Path | str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    tokenizer_bytes: bytes,
    readme: str,
    *,
    extra: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a bundle so that ``folder`` holds either the old model or the new one, never a part of one.

    Args:
        folder: where the model goes; replaces a bundle, refuses any other folder with files.
        config: plain values; must name the ``family``. ``format`` and ``sha256`` are filled in.
        tensors: name to tensor, any device; each is stored on its own, tied ones twice.
        tokenizer_bytes: the SentencePiece model.
        readme: what the model is, in Markdown.
        extra: contents of further files by name, each under ``classes/`` or ``lm/``.

    Returns:
        The folder written.

    Raises:
        BundleError: unusable configuration, a folder that is no bundle, or a disk that is full.
    """
    from safetensors.torch import save

    folder = Path(folder).resolve()
    files: dict[str, bytes] = {name: data for name, data in (extra or {}).items() if _is_extra(name)}
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    files |= {TENSORS: save(plain), TOKENIZER: tokenizer_bytes, README: readme.encode()}
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in (TENSORS, TOKENIZER)}
    whole = {**config, "format": FORMAT, "sha256": digests}
    _check_config(whole, f"the configuration for {folder}")
    try:
        files[CONFIG] = yaml.safe_dump(whole, sort_keys=False, allow_unicode=True).encode()
    except yaml.YAMLError as error:
        raise BundleError(
            f"a bundle configuration with {error}", "numbers, strings, lists and mappings", "convert it first"
        ) from None
    check_target(folder)
    _write_and_swap(folder, files)
    return folder


def load_bundle(folder: Path | str) -> Bundle:
    """Read and verify a bundle without running anything in it.

    Raises:
        BundleError: a part is missing, a pickle, cut short, changed, of another format version, or misspelt.
    """
    folder = Path(folder)
    config = read_config(folder)
    _check_parts(folder)
    _refuse_pickles(folder)
    _check_whole(folder / TENSORS)
    _check_hashes(folder, config)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(str(folder / TENSORS))
    except SafetensorError as error:
        raise BundleError(f"{folder / TENSORS}: {error}", "a safetensors file", _EXPORT) from None
    return Bundle(config=config, tensors=tensors, tokenizer_path=folder / TOKENIZER, folder=folder)


def read_config(folder: Path | str) -> dict[str, Any]:
    """Read and check a bundle's ``config.yaml`` alone (no tensors, no torch)."""
    folder = Path(folder)
    _check_folder(folder)
    path = folder / CONFIG
    if not path.is_file():
        _refuse_pickles(folder)
        raise BundleError(f"{folder} has no {CONFIG}", "a model folder", _EXPORT)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise BundleError(
            f"{path} holds a tag that builds objects ({error.problem})",
            "plain YAML",
            "do not use this model unless you trust its author, and then remove the tag",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not valid YAML ({error})", "a YAML mapping", "copy it again") from None
    if not isinstance(config, dict):
        raise BundleError(f"{path} holds a {type(config).__name__}", "a YAML mapping", "copy it again")
    _check_config(config, str(path))
    return config


def bundle_fingerprint(folder: Path | str) -> str:
    """A digest that changes whenever anything in the bundle that can change a result does."""
    folder = Path(folder)
    read_config(folder)
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for name in EXTRA_FOLDERS:
        for path in sorted(p for p in (folder / name).rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder)}\0{_sha256(path)}\0".encode())
    return digest.hexdigest()


def check_tensors(
    expected: Mapping[str, Sequence[int]], given: Mapping[str, Tensor], source: Path | str
) -> None:
    """Refuse a checkpoint of another model in one line.

    Args:
        expected: name to shape of every tensor the model has.
        given: the tensors found.
        source: where they came from, for the message.

    Raises:
        BundleError: tensors are missing, unexpected, or of another shape.
    """
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    shaped = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name])}"
        for name in sorted(expected.keys() & given.keys())
        if tuple(given[name].shape) != tuple(expected[name])
    ]
    found = ((missing, "missing"), (unexpected, "unexpected"), (shaped, "of another shape"))
    problems = [f"{len(names)} {what} ({_some(names)})" for names, what in found if names]
    if problems:
        raise BundleError(
            f"{source} is a checkpoint of another model: tensors {', '.join(problems)}",
            f"the {len(expected)} tensors its configuration describes",
            "use the checkpoint and the configuration of one training run",
        )


_EXPORT = "copy the whole model folder again or export it anew with asr train"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _is_extra(name: str) -> bool:
    parts = Path(name).parts
    if len(parts) < 2 or parts[0] not in EXTRA_FOLDERS or ".." in parts:
        raise BundleError(f"extra file {name!r}", "a name under classes/ or lm/", "rename it")
    return True


def _check_config(config: Mapping[str, Any], source: str) -> None:
    known = {"format", "family", "sha256"}
    for key in known - config.keys():
        near = difflib.get_close_matches(key, [str(k) for k in config], n=1)
        fix = f"rename {near[0]!r} to {key!r}" if near else _EXPORT
        raise BundleError(f"{source} has no {key!r}", "a bundle's configuration", fix)
    if config["format"] != FORMAT or isinstance(config["format"], bool):
        fix = "install the Vocative that wrote it or export the model anew"
        raise BundleError(f"{source}: format {config['format']!r}", f"format {FORMAT}", fix)
    family = config["family"]
    if family not in families():
        near = difflib.get_close_matches(str(family), families(), n=1, cutoff=0.0)
        fix = f"did you mean {near[0]!r}?" if near else "reinstall Vocative"
        raise BundleError(f"{source}: unknown family {family!r}", f"one of {', '.join(families())}", fix)
    digests = config["sha256"]
    if not isinstance(digests, dict) or not {TENSORS, TOKENIZER} <= digests.keys():
        raise BundleError(
            f"{source}: sha256 = {digests!r}", f"the digests of {TENSORS} and {TOKENIZER}", _EXPORT
        )


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.is_file():
        kind = "a pickle, which can run code," if _is_pickle(folder) else "a file"
        raise BundleError(f"{folder} is {kind}", "a model folder", "name the folder that holds config.yaml")
    previous = _sibling(folder, "previous")
    if previous.is_dir():
        fix = f"a save was interrupted while replacing it: run mv {previous} {folder}"
    else:
        fix = "check the path"
    raise BundleError(f"{folder} does not exist", "a model folder", fix)


def _check_parts(folder: Path) -> None:
    missing = [name for name in (TENSORS, TOKENIZER) if not (folder / name).is_file()]
    if TENSORS in missing:
        _refuse_pickles(folder)
    if missing:
        raise BundleError(f"{folder} lacks {' and '.join(missing)}", "a whole model folder", _EXPORT)


def _refuse_pickles(folder: Path) -> None:
    """Refuse pickles by name and by content."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        # KenLM binaries end in .bin too, so in the folders of parts only the content decides.
        by_name = path.suffix.lower() in PICKLES or (path.suffix.lower() == ".bin" and path.parent == folder)
        if by_name or _is_pickle(path):
            raise BundleError(
                f"{path} is a pickle, which can run code when it is opened",
                f"tensors in {TENSORS} and nothing else that can run code",
                "convert it where you trust it (safetensors.torch.save_file) or delete it from the folder",
            )


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    # The length that opens a safetensors file may begin like a pickle; its ninth byte tells them apart.
    if path.suffix == ".safetensors" and head[8:] == b"{":
        return False
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def _check_whole(path: Path) -> None:
    """Compare the size of a safetensors file with what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if head == b"version ":
            raise BundleError(f"{path} is a Git LFS pointer", "the tensors themselves", "run git lfs pull")
        if len(head) < 8 or length > size - 8:
            if len(head) == 8 and file.read(1) not in (b"{", b""):
                raise BundleError(f"{path} is not a safetensors file", "a safetensors file", _EXPORT)
            needed = f"more than {length + 8} bytes" if len(head) == 8 else "a safetensors file"
            raise BundleError(f"{path} is cut short at {size} bytes", needed, _EXPORT)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise BundleError(f"{path} has a broken header", "a safetensors file", _EXPORT) from None
    if size < whole:
        raise BundleError(f"{path} is cut short at {size} bytes", f"{whole} bytes", _EXPORT)


def _check_hashes(folder: Path, config: Mapping[str, Any]) -> None:
    for name in (TENSORS, TOKENIZER):
        found, expected = _sha256(folder / name), config["sha256"][name]
        if found != expected:
            raise BundleError(
                f"{folder / name} is not the file {CONFIG} was saved with (sha256 {found[:12]}…)",
                f"sha256 {str(expected)[:12]}…",
                _EXPORT,
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sibling(folder: Path, what: str) -> Path:
    return folder.parent / f".{folder.name}.{what}"


def check_target(folder: Path) -> None:
    """Make sure that a bundle may be written to ``folder``.

    Raises:
        BundleError: it is a file, or holds other files.
    """
    if not folder.exists() or (folder / CONFIG).is_file() or (folder.is_dir() and not any(folder.iterdir())):
        return
    kind = "a folder with other files" if folder.is_dir() else "a file"
    raise BundleError(f"{folder} is {kind}", "a new folder or a model to replace", "choose another folder")


def _write_and_swap(folder: Path, files: Mapping[str, bytes]) -> None:
    fresh, previous = _sibling(folder, "saving"), _sibling(folder, "previous")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove(fresh)
        for name, data in files.items():
            _write_durably(fresh / name, data)
        if folder.exists():
            _remove(previous)
            folder.rename(previous)
        fresh.rename(folder)
        _sync(folder.parent)
    except BaseException as error:
        _remove(fresh)
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            given = f"the disk of {folder} is full" if full else f"{folder} cannot be written ({error})"
            needed = f"{sum(map(len, files.values())) / 1e6:.1f} MB of space" if full else "a writable folder"
            raise BundleError(given, needed, "free some space or choose another folder") from error
        raise
    _remove(previous)


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
