"""The runner: stages in order, each run only when something it depends on has changed."""

from __future__ import annotations

import errno
import os
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.errors import ConfigError, DataError, VocativeError
from recipes.console import say
from recipes.stage import Records, Stage, describe, label
from recipes.workdir import locked


@dataclass(frozen=True)
class Recipe:
    """Stages that turn a corpus into a result, kept in one work folder.

    Every finished stage leaves a record in ``<workdir>/.stages``. A stage runs when it has no record, when
    its params, version or the content of an input changed, or when an output is missing or was touched. As
    inputs are compared by content, a stage that ran again and made the same bytes sets off no later ones.

    Raises:
        ConfigError: if two stages share a name or an output.
    """

    name: str
    workdir: Path
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        for stage in self.stages:
            if not stage.name or stage.name.isdigit() or "/" in stage.name or stage.name.startswith("."):
                raise ConfigError(f"stage name {stage.name!r}", "a word", "rename the stage")
        for name, count in Counter(stage.name for stage in self.stages).items():
            if count > 1:
                raise ConfigError(f"{count} stages are named {name!r}", "one", "rename one of them")
        made = [(path, stage) for stage in self.stages for path in stage.outputs]
        for index, (path, stage) in enumerate(made):
            for other, owner in made[:index]:
                if owner is not stage and _overlap(path, other):
                    raise ConfigError(
                        f"stages {owner.name!r} and {stage.name!r} both make {path}",
                        "each output made by one stage",
                        "give them paths of their own",
                    )

    def run(
        self,
        start: int | str = 0,
        stop: int | str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> None:
        """Run the stages from ``start`` to ``stop`` (both included; a number from 0, or a name).

        Args:
            start: first stage; earlier ones are not even looked at.
            stop: last stage; None means the last there is.
            force: run them all, changed or not.
            dry_run: print what would run, and why; nothing is written.

        Raises:
            ConfigError: if ``start`` or ``stop`` is not a stage.
            VocativeError: if a stage fails (the message names it and how to go on), the disk is full, or
                another process uses the work folder.
            SystemExit: with code 130 after Ctrl-C.
        """
        first = self._number("--stage", start)
        last = len(self.stages) - 1 if stop is None else self._number("--stop-stage", stop)
        if last < first:
            raise ConfigError(
                f"--stage {start} comes after --stop-stage {stop}", "start before stop", "swap them"
            )
        if dry_run:
            self._plan(first, last, force)
            return
        try:
            with locked(self.workdir):
                self._run(first, last, force)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise self._disk_full("the recipe", error) from error

    def _number(self, option: str, given: int | str) -> int:
        names = [stage.name for stage in self.stages]
        if isinstance(given, str) and given in names:
            return names.index(given)
        number = int(given) if isinstance(given, int) or given.isdecimal() else -1
        if 0 <= number < len(names):
            return number
        listing = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        raise ConfigError(
            f"{option} {given!r} is no stage of recipe {self.name!r}", f"one of {listing}", "correct it"
        )

    def _run(self, first: int, last: int, force: bool) -> None:
        records = Records(self.workdir)
        hasher = records.hasher
        begun = time.monotonic()
        ran = 0
        for number in range(first, last + 1):
            stage = self.stages[number]
            self._head(number)
            try:
                description = describe(stage, self.workdir, hasher)
                hasher.save()
                reasons = ["forced"] if force else records.reasons(stage, description)
                if not reasons:
                    say("    skipped: unchanged", "green")
                    continue
                say(f"    runs: {'; '.join(reasons)}", "yellow")
                self._check_inputs(number)
                seconds = self._execute(stage, records, description)
            except KeyboardInterrupt:
                say(f"interrupted in stage {number} {stage.name!r}: run the same command again to go on")
                raise SystemExit(130) from None
            except Exception as error:
                raise self._explain(number, error, records.folder) from error
            ran += 1
            say(f"    done in {_duration(seconds)}", "green")
        total = _duration(time.monotonic() - begun)
        say(f"{self.name}: {ran} of {last - first + 1} stages ran, {total}", "bold")

    def _execute(self, stage: Stage, records: Records, description: dict[str, Any]) -> float:
        records.forget(stage)
        for path in stage.outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        stage.run()
        seconds = time.monotonic() - begun
        for path in stage.outputs:
            if not path.exists():
                raise DataError(f"it ended without making {path}", "every declared output", "mend the stage")
        records.write(stage, description, seconds)
        return seconds

    def _check_inputs(self, number: int) -> None:
        for path in self.stages[number].inputs:
            if path.exists():
                continue
            maker = next((n for n in range(number) if self._makes(n, path)), None)
            fix = "check the path" if maker is None else f"make it with --stage {maker}"
            raise DataError(f"input {path} does not exist", "a file or folder", fix)

    def _makes(self, number: int, path: Path) -> bool:
        return any(_overlap(path, output) for output in self.stages[number].outputs)

    def _plan(self, first: int, last: int, force: bool) -> None:
        """Print the plan. What a stage that would run leaves behind is not known yet, and said so."""
        records = Records(self.workdir)
        hasher = records.hasher
        pending: list[int] = []
        for number in range(first, last + 1):
            stage = self.stages[number]
            self._head(number)
            waits = [n for n in pending if any(self._makes(n, path) for path in stage.inputs)]
            reasons = ["forced"] if force else records.reasons(stage, describe(stage, self.workdir, hasher))
            if reasons:
                say(f"    would run: {'; '.join(reasons)}", "yellow")
            elif waits:
                names = ", ".join(repr(self.stages[n].name) for n in waits)
                say(f"    would run if {names} makes something new", "yellow")
            else:
                say("    would be skipped: unchanged", "green")
                continue
            pending.append(number)

    def _head(self, number: int) -> None:
        stage = self.stages[number]
        say(f"[{number}] {stage.name}: {stage.description}", "bold")
        say(f"    inputs: {self._paths(stage.inputs)}")
        say(f"    outputs: {self._paths(stage.outputs)}")

    def _paths(self, paths: Sequence[Path]) -> str:
        return ", ".join(label(path, self.workdir) for path in paths) or "none"

    def _explain(self, number: int, error: Exception, folder: Path) -> VocativeError:
        """The one line a user gets; an unforeseen error leaves its traceback beside the records."""
        where = f"stage {number} {self.stages[number].name!r}"
        again = f"then go on with --stage {number}"
        if is_disk_full(error):
            return self._disk_full(where, error)
        if isinstance(error, VocativeError):
            return type(error)(f"{where} failed: {error.given}", error.expected, f"{error.fix}, {again}")
        report = folder / f"{self.stages[number].name}.error.txt"
        with suppress(OSError):
            report.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        return VocativeError(
            f"{where} failed: {type(error).__name__}: {error}",
            "it to finish",
            f"read {report}, mend the cause, {again}",
        )

    def _disk_full(self, where: str, error: BaseException) -> VocativeError:
        name = getattr(error, "filename", None)
        left = ""
        with suppress(OSError):
            left = f" ({shutil.disk_usage(self.workdir).free // 2**20} MiB left)"
        return VocativeError(
            f"the disk is full: {where} could not write {name or 'its output'}",
            f"free space where {self.workdir} lies{left}",
            "free some and run the same command again, finished stages are kept",
        )


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or one that led to it, says that the disk (or the user's share of it) is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _overlap(one: Path, other: Path) -> bool:
    a, b = os.path.abspath(one), os.path.abspath(other)
    return a == b or a.startswith(b + os.sep) or b.startswith(a + os.sep)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
