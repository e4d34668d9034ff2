"""The command on a scripted recognizer, called here or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from asr.bundle import save_bundle
from asr.cli.main import build_app
from decoding.result import Transcript
from lm.errors import AudioError, EntityListError, VocativeError


class Report:
    """Shaped like the encoding report of a list of which one entry in three encodes in part."""

    def counts(self) -> dict[str, int]:
        return {"ok": 2, "partly": 1, "failed": 0}

    def summary(self) -> str:
        return "3 entries in 1 classes: 2 ok, 1 partly"


class Fake:
    """Shaped like a recognizer; the text tells the content, the beam and the list."""

    def __init__(self, decoding: Any) -> None:
        self.decoding = decoding

    def biasing(self, options: Any) -> str:
        return "none" if options.biasing == "none" else "classes"

    def report(self, catalog: Any, options: Any) -> Report:
        if "stranger" in catalog.classes:
            raise EntityListError("class 'stranger'", "a class of the model", "rename it")
        return Report()

    def transcribe_many(
        self, paths: Sequence[Path], *, entities: Any, contexts: Any, batch_s: float, options: Any
    ) -> Iterator[tuple[Path, Transcript | VocativeError]]:
        time.sleep(float(os.environ.get("FAKE_LOAD_S", "0")))
        # Out of order on purpose: the command puts results back in the order given.
        for path in reversed(list(paths)):
            time.sleep(float(os.environ.get("FAKE_S", "0")))
            if not path.exists():
                yield path, AudioError(f"{path} does not exist", "a recording", "check the path")
                continue
            if path.read_bytes() == b"ctrl-c":
                raise KeyboardInterrupt
            if path.read_bytes() == b"bug":
                raise KeyError("bug in the search")
            names = entities.get(path) if isinstance(entities, dict) else entities
            text = f"{path.read_text()} beam {options.search.beam} list {bool(names)} batch {batch_s}"
            text += f" context {json.dumps(contexts[path])}" if path in contexts else ""
            yield path, Transcript(path.stem, text, 2.0)


def save(folder: Path, value: float, tokenizer: bytes = b"") -> Path:
    import torch

    config = {"family": "factorized", "model": {"width": 8}}
    return save_bundle(folder, config, {"a": torch.full((3, 2), value)}, tokenizer, "#")


def call(*words: object, stdin: str | None = None) -> Result:
    argv = [str(word) for word in words]
    return CliRunner().invoke(build_app(argv), argv, input=stdin)


def transcribe(*words: object, stdin: str | None = None) -> Result:
    return call("transcribe", *words, stdin=stdin)


def unusable(result: Result, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("asr: error: ")
    for words in says:
        assert words in lines[0]


DRIVER = """
import signal, sys
sys.path[:0] = [{tests!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)
import asr.cli.transcribe
from asr.decoding_config import DecodingConfig
from scripted_cli import Fake
options = DecodingConfig()
asr.cli.transcribe.load_recognizer = lambda model, device: Fake(options)
sys.argv = ["asr", "transcribe", *sys.argv[1:]]
from asr.cli.main import main
main()
"""


def start(*words: object, stdout: Any = subprocess.PIPE, **env: str) -> subprocess.Popen[str]:
    script = DRIVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, *map(str, words)]
    everything = {**os.environ, **env}
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=everything)


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.01)
