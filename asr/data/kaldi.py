"""Kaldi data directories: tables of ``id value`` lines, read without running anything, and written.

``wav.scp`` (audio), ``text``, ``utt2spk``; optionally ``segments``; ``tagged`` (class-tagged text) and any
other ``utt2NAME`` become ``extra["tagged"]`` and ``extra["NAME"]``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lm.errors import DataError

_KNOWN = {"utt2spk"}  # the one utt2... that is not extra


@dataclass(frozen=True)
class Utterance:
    """One utterance: a recording, or the part of it from ``start_s`` to ``end_s`` (None: to its end)."""

    id: str
    audio: Path
    text: str
    speaker: str
    start_s: float = 0.0
    end_s: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def read_data_dir(folder: Path, root: Path | None = None, need_text: bool = True) -> list[Utterance]:
    """Read a Kaldi data directory.

    Args:
        folder: holds ``wav.scp``, ``utt2spk`` and ``text``.
        root: where relative paths in ``wav.scp`` begin; by default where the program runs, as in Kaldi.
        need_text: whether there must be a ``text``; without one, texts are empty.

    Returns:
        Utterances in the order of ``wav.scp`` (of ``segments`` where there is one).

    Raises:
        DataError: a table is missing or malformed (file and line), an id is there twice, ids of the tables do
            not match, or ``wav.scp`` holds a command.
    """
    folder = Path(folder)
    audio = read_wav_scp(folder / "wav.scp", root)
    if (folder / "segments").exists():
        parts = read_segments(folder / "segments", audio)
    else:
        parts = {id: (path, 0.0, None) for id, path in audio.items()}
    has_text = need_text or (folder / "text").exists()
    text = read_table(folder / "text", empty=True) if has_text else dict.fromkeys(parts, "")
    speakers = read_table(folder / "utt2spk")
    for name, table in (("text", text), ("utt2spk", speakers)):
        _same_ids(folder, name, table, parts)
    extra: dict[str, dict[str, str]] = {id: {} for id in parts}
    for key, path in _extra_tables(folder):
        for id, value in read_table(path, empty=key == "tagged").items():
            if id not in extra:
                raise DataError(
                    f"{path} has {id!r}", "ids that have audio", f"remove it, or add it to {folder}"
                )
            extra[id][key] = value
    return [
        Utterance(id, path, text[id], speakers[id], start_s, end_s, extra[id])
        for id, (path, start_s, end_s) in parts.items()
    ]


def read_wav_scp(path: Path, root: Path | None = None) -> dict[str, Path]:
    """Read ``wav.scp``: paths by id; a command (``sox ... |``) is refused, never run."""
    paths = {}
    for id, value in read_table(path).items():
        if value.startswith("|") or value.endswith("|"):
            raise DataError(
                f"{path}: {id} is the command {value!r}",
                "the path of a file (commands are not run)",
                "write its output to a file and list that",
            )
        paths[id] = (root or Path()) / value
    return paths


def read_table(path: Path, empty: bool = False) -> dict[str, str]:
    """Read ``id value`` lines, in order; blank lines are skipped.

    Args:
        path: the table.
        empty: whether a line may hold an id alone (an empty transcript).

    Raises:
        DataError: missing, not UTF-8, without lines, a line without a value, or an id twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist", "a table of a Kaldi data directory", "check the path"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})", "a UTF-8 table", "check the file") from None
    table: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        id, *rest = re.split(r"[ \t]+", line.strip(" \t\r"), maxsplit=1)
        if not id:
            continue
        if not rest and not empty:
            raise DataError(
                f"{path}:{number}: {line.strip()!r}", "'id value'", "add the value, or remove the line"
            )
        if id in table:
            raise DataError(f"{path}:{number}: {id!r} a second time", "each id once", "remove or rename one")
        table[id] = rest[0] if rest else ""
    if not table:
        raise DataError(f"{path} is empty", "'id value' lines", "check how it was made")
    return table


def write_data_dir(utterances: Iterable[Utterance], folder: Path, root: Path | None = None) -> None:
    """Write a Kaldi data directory, sorted by id, that `read_data_dir` reads back with the same ``root``.

    Paths under ``root`` are written relative to it. Parts of recordings get a ``segments`` table.

    Raises:
        DataError: an id twice, or something a table cannot hold (white space in an id, a line break, an empty
            value, an extra that cannot name a file).
    """
    utterances = sorted(utterances, key=lambda utterance: utterance.id)
    tables: dict[str, dict[str, str]] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    cut = any(utterance.start_s or utterance.end_s is not None for utterance in utterances)
    names = _recording_ids(utterances) if cut else {}
    for item in utterances:
        path = str(item.audio.relative_to(root) if root and item.audio.is_relative_to(root) else item.audio)
        if item.id in tables["text"]:
            raise DataError(f"utterance {item.id!r} a second time", "each id once", "rename one of them")
        if cut:
            end_s = -1 if item.end_s is None else item.end_s
            tables.setdefault("segments", {})[item.id] = f"{names[item.audio]} {item.start_s!r} {end_s!r}"
        tables["wav.scp"][names.get(item.audio, item.id)] = path
        tables["text"][item.id] = item.text
        tables["utt2spk"][item.id] = item.speaker
        for key, value in item.extra.items():
            if key == "spk" or not re.fullmatch(r"\w+", key):
                raise DataError(f"extra {key!r} of {item.id}", "letters and digits, not 'spk'", "rename it")
            tables.setdefault(key if key == "tagged" else f"utt2{key}", {})[item.id] = value
    written = {name: _table_lines(name, table) for name, table in tables.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for stale in [folder / "segments", *(path for _, path in _extra_tables(folder))]:
        stale.unlink(missing_ok=True)
    for name, lines in written.items():
        (folder / name).write_text(lines, encoding="utf-8", newline="\n")


def read_segments(path: Path, audio: Mapping[str, Path]) -> dict[str, tuple[Path, float, float | None]]:
    """Read a ``segments`` table, ``utterance recording start end`` lines; an end of -1 is the recording's.

    Args:
        path: the table.
        audio: paths by id of the recording.

    Returns:
        Path, start and end (None: that of the recording) in seconds, by utterance id, in order.

    Raises:
        DataError: a malformed line, or one of a recording that is not in ``audio``.
    """
    parts: dict[str, tuple[Path, float, float | None]] = {}
    for id, value in read_table(path).items():
        fields = value.split()
        try:
            recording, start_s, end_s = fields[0], float(fields[1]), float(fields[2])
            valid = len(fields) == 3 and start_s >= 0 and (end_s == -1 or start_s < end_s < float("inf"))
        except (IndexError, ValueError):
            recording, start_s, end_s, valid = "", 0.0, 0.0, False
        if not valid:
            expected = "'utterance recording start end' with 0 <= start < end in seconds"
            raise DataError(f"{path}:{_line_of(path, id)}: '{id} {value}'", expected, "correct the line")
        if recording not in audio:
            raise DataError(
                f"{path}: {id} is of recording {recording!r}", "one in wav.scp", "add it to wav.scp"
            )
        parts[id] = (audio[recording], start_s, None if end_s == -1 else end_s)
    return parts


def _line_of(path: Path, id: str) -> int:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return next(number for number, line in enumerate(lines, 1) if line.split()[:1] == [id])


def _same_ids(folder: Path, name: str, table: Mapping[str, str], parts: Mapping[str, object]) -> None:
    """Raise unless ``table`` names just the utterances that have audio."""
    source = folder / ("segments" if (folder / "segments").exists() else "wav.scp")
    without_audio = [id for id in table if id not in parts]
    if without_audio:
        given = f"{folder / name} has {len(without_audio)} ids without audio, as {without_audio[0]!r}"
        raise DataError(given, f"ids of {source}", "remove them, or add their audio")
    missing = [id for id in parts if id not in table]
    if missing:
        given = f"{source} has {len(missing)} ids not in {folder / name}, as {missing[0]!r}"
        raise DataError(given, "the same ids in both", f"add them to {name}, or remove their audio")


def _extra_tables(folder: Path) -> list[tuple[str, Path]]:
    found = [(path.name[4:], path) for path in sorted(folder.glob("utt2?*")) if path.name not in _KNOWN]
    return found + ([("tagged", folder / "tagged")] if (folder / "tagged").exists() else [])


def _recording_ids(utterances: Iterable[Utterance]) -> dict[Path, str]:
    """Name each audio file by its stem, and number stems that are there twice."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in sorted({utterance.audio for utterance in utterances}):
        name, number = path.stem, 2
        while name in taken:
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name)
        names[path] = name
    return names


def _table_lines(name: str, table: Mapping[str, str]) -> str:
    lines = []
    for id, value in sorted(table.items()):
        blank = not value and name not in ("text", "tagged")
        if not id or re.search(r"\s", id) or re.search(r"[\r\n]", value) or value != value.strip() or blank:
            expected = "an id without white space and a value of one line"
            raise DataError(f"{name}: {id!r} {value!r}", expected, "clean it before it is written")
        lines.append(f"{id} {value}".rstrip(" ") + "\n")
    return "".join(lines)
