"""Many recordings in, one result each out; a batch killed at any moment goes on where it stopped.

A results folder holds one file for each recording and format, and ``results.jsonl``. A recording is done when
its line is there: the line is written last, in one piece, with the fingerprint of all that went into it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from asr.recordings import AudioPart, Recording
from asr.writers import to_dict
from decoding.result import Transcript
from lm.errors import ConfigError, DataError, VocativeError

RESULTS = "results.jsonl"
# Errors that concern one file name; every other error of writing would hit all recordings alike.
_BAD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)

Recognise = Callable[
    [Sequence[Path | AudioPart]], Iterator[tuple[Path | AudioPart, Transcript | VocativeError]]
]
"""Takes paths or parts of recordings, yields each with its transcript or its error, in any order, once it is
known."""
Write = Callable[[Transcript, str, Path], Path]
"""``write(transcript, format, folder)``: writes one file and returns its path."""


class OutputError(VocativeError):
    """Results that cannot be written, for example because the disk is full."""


@dataclass(frozen=True)
class Outcome:
    """What became of one recording: its transcript, or the error that says why there is none."""

    recording: Recording
    result: Transcript | VocativeError

    def record(self) -> dict[str, Any]:
        """The outcome as plain values: id, audio, and text, seconds, entities or error."""
        row: dict[str, Any] = {"id": self.recording.id, "audio": os.path.abspath(self.recording.path)}
        if self.recording.audio != self.recording.path:
            row |= {"start_s": self.recording.start_s, "end_s": self.recording.end_s}
        if isinstance(self.result, VocativeError):
            return {**row, "error": str(self.result)}
        values = to_dict(replace(self.result, hypotheses=()))
        return {
            **row,
            "text": values["text"],
            "seconds": values["duration_s"],
            "entities": values["entities"],
        }


@dataclass
class Tally:
    """Counts of a batch; ``audio_s`` is the length of what was recognised."""

    done: int = 0
    skipped: int = 0
    failed: int = 0
    audio_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        if isinstance(outcome.result, VocativeError):
            self.failed += 1
        else:
            self.done += 1
            self.audio_s += outcome.result.duration_s

    def summary(self, wall_s: float) -> str:
        """One line on the whole batch, which took ``wall_s`` seconds."""
        speed = f", {self.audio_s / wall_s:.1f} × real time" if self.done and wall_s > 0 else ""
        counts = f"{self.done} done, {self.skipped} skipped, {self.failed} failed"
        return f"{counts}; {self.audio_s / 3600:.2f} h of audio in {wall_s:.1f} s{speed}"


def run_batch(
    recognise: Recognise, recordings: Sequence[Recording], folder: ResultsFolder | None = None
) -> Iterator[Outcome]:
    """Recognise ``recordings`` and yield each outcome once it is saved in ``folder`` (if there is one).

    Raises:
        OutputError: results cannot be written; all that was yielded before is kept.
    """
    wanted: dict[Path | AudioPart, list[Recording]] = {}
    for recording in recordings:
        wanted.setdefault(recording.audio, []).append(recording)
    if not wanted:
        return
    for audio, result in recognise(list(wanted)):
        for recording in wanted.pop(audio):
            named = replace(result, id=recording.id) if isinstance(result, Transcript) else result
            outcome = Outcome(recording, named)
            yield folder.save(outcome) if folder else outcome
    if wanted:
        raise RuntimeError(
            f"the recogniser returned nothing for {len(wanted)} recordings: {next(iter(wanted))} …"
        )


class ResultsFolder:
    """The results of a batch on disk, to be used in a ``with`` statement; one process at a time.

    Args:
        path: the folder, made when it is missing.
        formats: a file of each is written for every recording.
        write: writes one such file, named ``<id>.<format>``.
        settings: fingerprints of all that decides a result besides the audio (model, entity list, options).
        notes: values added to every line of ``results.jsonl``.
        overwrite: do everything again.

    Raises:
        ConfigError: another process is writing here, or a result would replace that of another recording.
        DataError: the ``results.jsonl`` that is there was not written by this class.
        OutputError: the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        formats: Sequence[str],
        write: Write,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.notes = dict(notes or {})
        self._formats = formats
        self._write = write
        self._settings = json.dumps(settings, sort_keys=True)
        self._overwrite = overwrite
        self._log = path / RESULTS
        self._file: BinaryIO | None = None
        self._lines = 0
        self._last: dict[str, dict[str, Any]] = {}
        self._fingerprints: dict[str, str] = {}

    def __enter__(self) -> ResultsFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self._log.open("ab+", buffering=0)
        except OSError as error:
            raise _output_error(self.path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(file)
        except BlockingIOError:
            file.close()
            fix = "wait for it or choose another --out"
            raise ConfigError(f"another process is writing to {self.path}", "one at a time", fix) from None
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines > len(self._last):
            self._compact()
        if self._file is not None:
            self._file.close()

    def pending(self, recordings: Sequence[Recording]) -> list[Recording]:
        """Those of ``recordings`` to recognise: new, changed or failed before; all when overwriting."""
        if "jsonl" in self._formats and any(f"{r.id}.jsonl" == RESULTS for r in recordings):
            raise ConfigError(
                f"the result of a recording would replace {self._log}",
                "recordings of another name",
                "rename it or drop the format jsonl",
            )
        self._fingerprints = {r.id: self._fingerprint(r) for r in recordings}
        return [r for r in recordings if self._overwrite or not self._is_done(r)]

    def save(self, outcome: Outcome) -> Outcome:
        """Write one outcome; its line in ``results.jsonl`` comes last. Returns what was saved.

        A recording whose id cannot name a file, or that a format cannot hold, becomes a failed one.
        """
        if isinstance(outcome.result, Transcript):
            try:
                for name in self._formats:
                    self._write(outcome.result, name, self.path)
            except OSError as error:
                if error.errno not in _BAD_NAME:
                    raise _output_error(self.path, error) from error
                outcome = _unnameable(outcome, error)
            except UnicodeEncodeError as error:
                outcome = _unnameable(outcome, error)
            except VocativeError as error:
                outcome = replace(outcome, result=error)
        row = {**outcome.record(), **self.notes, "fingerprint": self._fingerprints[outcome.recording.id]}
        self._append(row)
        return outcome

    def _is_done(self, recording: Recording) -> bool:
        last = self._last.get(recording.id)
        if last is None:
            return False
        audio, before = os.path.abspath(recording.path), str(last.get("audio"))
        if audio != before and os.path.exists(before):
            raise ConfigError(
                f"{self.path} holds the result of {before} under the id {recording.id!r} of {recording.path}",
                "results of the same recordings",
                "choose another --out, list both in one call, or add --overwrite",
            )
        written = all((self.path / f"{recording.id}.{name}").is_file() for name in self._formats)
        same = last.get("fingerprint") == self._fingerprints[recording.id]
        return same and written and "error" not in last

    def _fingerprint(self, recording: Recording) -> str:
        audio = os.path.abspath(recording.path)
        try:
            stat = os.stat(audio)
            facts: list[Any] = [self._settings, audio, stat.st_size, stat.st_mtime_ns]
        except (OSError, ValueError):
            facts = [self._settings, audio]
        if recording.audio != recording.path:
            facts += [recording.start_s, recording.end_s]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _read(self, file: BinaryIO) -> None:
        """Read what is there; a last line that kill -9 cut short is removed."""
        file.seek(0)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                self._last[row["id"]] = {k: row[k] for k in ("audio", "fingerprint", "error") if k in row}
            except (ValueError, TypeError, KeyError):
                given = f"{self._log} line {number} is not a result"
                raise DataError(given, "the file of an earlier batch", "choose another --out") from None
            self._lines += 1

    def _append(self, row: dict[str, Any]) -> None:
        assert self._file is not None, "use the folder in a with statement"
        data = _json_line(row)
        start = self._file.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            self._file.truncate(start)
            raise _output_error(self._log, error) from error
        self._last[row["id"]] = {k: row[k] for k in ("audio", "fingerprint", "error") if k in row}
        self._lines += 1

    def _compact(self) -> None:
        """Keep the last line of each recording."""
        last: dict[str, bytes] = {}
        for line in self._log.read_bytes().splitlines(keepends=True):
            name = json.loads(line)["id"]
            last.pop(name, None)
            last[name] = line
        fresh = self._log.with_name(f".{RESULTS}.new")
        try:
            fresh.write_bytes(b"".join(last.values()))
            os.replace(fresh, self._log)
        except OSError:
            # Nothing is lost: the last line of a recording counts, with or without the older ones.
            fresh.unlink(missing_ok=True)


def _json_line(row: Mapping[str, Any]) -> bytes:
    # A file name that is not UTF-8 holds lone surrogates; "\udc80" is how JSON writes them.
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _unnameable(outcome: Outcome, error: Exception) -> Outcome:
    given = f"{outcome.recording.path}: its result cannot be written ({error})"
    return replace(outcome, result=DataError(given, "a name that results can have", "rename the recording"))


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some and run the same command again: what is done is kept"
        return OutputError(f"the disk of {path} is full", "space for the results", fix)
    fix = "mend that and run the same command again: what is done is kept"
    return OutputError(f"{path} cannot be written ({error})", "a writable folder", fix)
