"""From what a user names (files, folders, globs, Kaldi lists, standard input) to recordings with ids."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm.errors import DataError

EXTENSIONS = frozenset(
    [
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".m4a",
        ".aac",
        ".aif",
        ".aiff",
        ".au",
        ".sph",
        ".webm",
    ]
)


@dataclass(frozen=True)
class AudioPart:
    """A part of a recording, from ``start_s`` to ``end_s`` seconds (None: to its end)."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Recording:
    """One recording: ``id`` names its results (it may hold ``/``); ``path`` is as the user gave it.

    With ``start_s`` or ``end_s`` it is the part between them, an utterance of a Kaldi ``segments`` table.
    """

    id: str
    path: Path
    start_s: float = 0.0
    end_s: float | None = None

    @property
    def audio(self) -> Path | AudioPart:
        """What is to be recognised: the file, or the part of it."""
        whole = self.start_s == 0.0 and self.end_s is None
        return self.path if whole else AudioPart(self.path, self.start_s, self.end_s)


def list_recordings(inputs: Sequence[str], stdin: Iterable[str] = ()) -> list[Recording]:
    """Find the recordings that ``inputs`` name, in that order, each once.

    Args:
        inputs: files, folders (searched to the bottom, sorted), patterns, Kaldi ``.scp`` lists, Kaldi ``segments``
            tables (with ``wav.scp`` beside them), or ``-``.
        stdin: lines to read for ``-``, one path each.

    Returns:
        Recordings whose ids are unique: the stem of the file, with as many parent folders as tell files of
        one stem apart. A Kaldi list brings its own ids.

    Raises:
        DataError: an input names nothing, a list is malformed, or two recordings would share an id.
    """
    paths: list[Path] = []
    listed: list[Recording] = []
    for text in inputs:
        if text == "-":
            paths += [Path(line.rstrip("\r\n")) for line in stdin if line.strip()]
        elif text.lower().endswith(".scp"):
            listed += read_scp(Path(text))
        elif Path(text).name == "segments" and Path(text).is_file():
            listed += _read_segments(Path(text))
        else:
            paths += _expand(text)
    unique = list({os.path.abspath(path): path for path in reversed(paths)}.values())[::-1]
    recordings = [Recording(name, path) for name, path in zip(_name(unique), unique, strict=True)] + listed
    if not recordings:
        raise DataError(
            "no recordings on standard input", "one path a line", "check the command that lists them"
        )
    counts = Counter(recording.id for recording in recordings)
    twice = next((r for r in recordings if counts[r.id] > 1), None)
    if twice is not None:
        raise DataError(
            f"two recordings with the id {twice.id!r}", "ids that differ", "rename one of the two"
        )
    return recordings


def read_scp(path: Path) -> list[Recording]:
    """Read a Kaldi ``wav.scp``: ``id path`` a line; commands and archive offsets are refused."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})", "a Kaldi wav.scp", "check the path") from None
    recordings = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, *rest = line.strip().split(maxsplit=1)
        where = f"{path} line {number}"
        if not rest:
            raise DataError(f"{where}: {name!r}", "'id path'", "add the path")
        audio = rest[0]
        if audio.endswith("|") or re.search(r"\.ark:\d+$", audio):
            fix = "write the audio to files and list those"
            raise DataError(f"{where}: {audio!r} is a command or an archive", "the path of a file", fix)
        _check_id(name, where)
        recordings.append(Recording(name, Path(audio)))
    if not recordings:
        raise DataError(f"{path} is empty", "'id path' lines", "check the list")
    return recordings


def _read_segments(path: Path) -> list[Recording]:
    """The utterances of a Kaldi ``segments`` table; ``wav.scp`` beside it says where their recordings are."""
    from asr.data.kaldi import read_segments

    audio = {recording.id: recording.path for recording in read_scp(path.with_name("wav.scp"))}
    parts = read_segments(path, audio)
    for name in parts:
        _check_id(name, str(path))
    return [Recording(name, *part) for name, part in parts.items()]


def _check_id(name: str, where: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise DataError(f"{where}: id {name!r}", "an id that can name a result file", "rename it")


def _expand(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        found = _walk(path)
        if not found:
            known = " ".join(sorted(EXTENSIONS))
            tables = [name for name in ("segments", "wav.scp") if (path / name).is_file()]
            fix = f"name its table: {path / tables[0]}" if tables else "check the folder"
            raise DataError(f"folder {text} holds no audio", f"files ending in {known}", fix)
        return found
    if not path.exists() and glob.has_magic(text):
        found = sorted(Path(p) for p in glob.glob(text, recursive=True) if os.path.isfile(p))
        if not found:
            raise DataError(f"pattern {text!r} matches no file", "a pattern that matches", "check it")
        return found
    return [path]


def _walk(folder: Path) -> list[Path]:
    return sorted(
        Path(root, name)
        for root, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in EXTENSIONS and not name.startswith(".")
    )


def _name(paths: Sequence[Path]) -> list[str]:
    """The shortest tail of each path that is no other's; files of one folder and stem keep their suffix."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    stems = Counter((path.parent, path.stem) for path in whole)
    parts = [(*p.parts[1:-1], p.name if stems[p.parent, p.stem] > 1 else p.stem) for p in whole]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(tail[-d:]) for tail, d in zip(parts, depth, strict=True)]
        counts = Counter(names)
        clash = [i for i, name in enumerate(names) if counts[name] > 1 and depth[i] < len(parts[i])]
        if not clash:
            # A tab or a newline in a file name would break the line its result is printed on.
            return [re.sub(r"[\x00-\x1f\x7f]", "_", name) for name in names]
        for i in clash:
            depth[i] += 1
