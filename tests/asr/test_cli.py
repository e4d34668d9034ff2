from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import asr.cli.transcribe
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


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", 1.0)


def save(folder: Path, value: float, tokenizer: bytes = b"") -> Path:
    import torch

    config = {"family": "factorized", "model": {"width": 8}}
    return save_bundle(folder, config, {"a": torch.full((3, 2), value)}, tokenizer, "#")


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("c", "a", "b"):
        (tmp_path / "in" / f"{name}.wav").write_text(name.upper())
    return tmp_path / "in"


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "contacts.yaml"
    path.write_text("contact:\n  - maja novak\n")
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, str]]:
    """Models that were loaded, with their device."""
    from asr.decoding_config import DecodingConfig

    calls: list[tuple[Path, str]] = []

    def load(model: Path, device: str) -> Any:
        calls.append((model, device))
        return Fake(DecodingConfig())

    monkeypatch.setattr(asr.cli.transcribe, "load_recognizer", load)
    return calls


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


def test_text_in_the_order_given(model: Path, audio: Path, loaded: list[Any]) -> None:
    result = transcribe(audio / "b.wav", audio / "c.wav", audio / "a.wav", "--model", model)
    assert result.exit_code == 0
    tail = "beam 8 list False batch 60.0"
    assert result.stdout.splitlines() == [f"b\tB {tail}", f"c\tC {tail}", f"a\tA {tail}"]
    assert "3 done, 0 skipped, 0 failed" in result.stderr
    assert "× real time" in result.stderr
    assert loaded == [(model, "cpu")]


def test_options_reach_the_recognizer(model: Path, audio: Path, names: Path, loaded: list[Any]) -> None:
    result = transcribe(
        audio / "a.wav", "-m", model, "-e", names, "--beam", 3, "--batch-s", 7, "--device", "cuda:1"
    )
    assert result.stdout == "a\tA beam 3 list True batch 7.0\n"
    assert loaded == [(model, "cuda:1")]
    assert "warning: 3 entries in 1 classes: 2 ok, 1 partly" in result.stderr


def test_lists_without_a_part_in_the_search_are_told(
    model: Path, audio: Path, names: Path, loaded: list[Any]
) -> None:
    said = "warning: biasing is none, so the lists are not used"
    words = (audio / "a.wav", "-m", model, "-e", names)
    assert said in transcribe(*words, "--set", "biasing=none").stderr
    assert said not in transcribe(*words).stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("fusion.how=mix", "--lm FILE"),
        ("fusion.weight=0.4", "--lm FILE"),
        ("fusion.internal_weight=0.4", "fusion.internal=ilme"),
        ("rescoring.over=lattice", "--rescore-lm FILE"),
        ("search.beam=.nan", "search.beam"),
        ("class_bonus=.inf", "finite number"),
        ("segment_s=.inf", "finite number"),
    ],
)
def test_settings_that_would_do_nothing(
    model: Path, audio: Path, loaded: list[Any], setting: str, says: str
) -> None:
    unusable(transcribe(audio / "a.wav", "-m", model, "--set", setting), says, setting.split("=")[0])


def test_errors_of_a_settings_file_name_it(
    model: Path, audio: Path, tmp_path: Path, loaded: list[Any]
) -> None:
    wav, file = audio / "a.wav", tmp_path / "tuned.yaml"
    file.write_text("class_bonsu: 2\n")
    unusable(transcribe(wav, "-m", model, "--settings", file), "tuned.yaml: unknown key 'class_bonsu'")
    unusable(transcribe(wav, "-m", model, "--settings", tmp_path), "a YAML file")


def test_json_lines_hold_errors_and_the_counts_of_the_list(
    model: Path, audio: Path, names: Path, loaded: list[Any]
) -> None:
    result = transcribe(audio / "no.wav", audio / "a.wav", "-m", model, "-e", names, "--format", "json")
    assert result.exit_code == 1
    bad, good = map(json.loads, result.stdout.splitlines())
    assert "does not exist" in bad["error"]
    assert good["text"].startswith("A")
    assert good["seconds"] == 2.0
    assert good["entity_list"] == {"ok": 2, "partly": 1, "failed": 0}


def test_bad_files_are_a_line_each_and_the_rest_goes_on(model: Path, audio: Path, loaded: list[Any]) -> None:
    result = transcribe(audio / "no.wav", audio / "a.wav", audio / "gone.wav", "-m", model)
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == ["a"]
    failed = [line for line in result.stderr.splitlines() if line.startswith("asr: failed: ")]
    assert len(failed) == 2
    assert "1 done, 0 skipped, 2 failed" in result.stderr


def test_a_folder_of_results_is_continued(
    model: Path, audio: Path, tmp_path: Path, names: Path, loaded: list[Any]
) -> None:
    out = tmp_path / "out"
    words = [audio, "-m", model, "--out", out, "--format", "txt,json"]
    result = transcribe(*words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [f"{name}.{kind}" for name in "abc" for kind in ("txt", "json")] + ["results.jsonl"]
    )
    assert "0 done, 3 skipped" in transcribe(*words).stderr
    assert len(loaded) == 1, "the model is not loaded for nothing"
    assert "3 done, 0 skipped" in transcribe(*words, "--overwrite").stderr
    assert "3 done, 0 skipped" in transcribe(*words, "--beam", 2).stderr
    assert "3 done, 0 skipped" in transcribe(*words, "--beam", 2, "-e", names).stderr
    (audio / "a.wav").write_text("NEW")
    assert "1 done, 2 skipped" in transcribe(*words, "--beam", 2, "-e", names).stderr
    save(model, 2.0)
    assert "3 done, 0 skipped" in transcribe(*words, "--beam", 2, "-e", names).stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["a", "b", "c"]
    assert all(row["entity_list"]["partly"] == 1 for row in rows)


def test_lists_on_standard_input_and_from_kaldi(model: Path, audio: Path, loaded: list[Any]) -> None:
    result = transcribe("-", "-m", model, stdin=f"{audio}/b.wav\n{audio}/a.wav\n")
    assert [line[:3] for line in result.stdout.splitlines()] == ["b\tB", "a\tA"]
    (audio / "wav.scp").write_text(f"utt7 {audio}/b.wav\n")
    assert transcribe(audio / "wav.scp", "-m", model).stdout.startswith("utt7\tB")


def test_contexts_go_to_recordings_by_id(model: Path, audio: Path, tmp_path: Path, loaded: list[Any]) -> None:
    lines = tmp_path / "when.jsonl"
    lines.write_text('{"id": "a", "context": {"hour": 7}, "text": "x"}\n\n{"id": "z", "context": {}}\n')
    words = [audio, "-m", model, "--context", lines]
    result = transcribe(*words)
    assert [line.partition("context ")[2] for line in result.stdout.splitlines()] == ['{"hour": 7}', "", ""]
    assert "contexts of 1 of 3 recordings" in result.stderr
    table = tmp_path / "when.yaml"
    table.write_text("utt7: {hour: 8}\n7: {hour: 9}\n")
    (audio / "wav.scp").write_text(f"utt7 {audio}/b.wav\n7 {audio}/c.wav\n")
    result = transcribe(audio / "wav.scp", "-m", model, "--context", table)
    assert [line[-11:] for line in result.stdout.splitlines()] == ['{"hour": 8}', '{"hour": 9}']
    assert "contexts of" not in result.stderr
    out = ["--out", tmp_path / "out"]
    assert "3 done, 0 skipped" in transcribe(audio, "-m", model, *out).stderr
    assert "3 done, 0 skipped" in transcribe(*words, *out).stderr
    assert "0 done, 3 skipped" in transcribe(*words, *out).stderr
    lines.write_text('{"id": "a", "context": {"hour": 8}}\n')
    assert "3 done, 0 skipped" in transcribe(*words, *out).stderr


def test_lists_go_to_recordings_by_id(
    model: Path, audio: Path, names: Path, tmp_path: Path, loaded: list[Any]
) -> None:
    lists = tmp_path / "own.jsonl"
    lists.write_text('{"id": "b", "entities": "contacts.yaml"}\n{"id": "a", "entities": {}}\n')
    out = ["--out", tmp_path / "out"]
    words = [audio, "-m", model, "-e", lists, "-f", "txt,json"]
    result = transcribe(*words, *out)
    assert result.exit_code == 0, result.output
    texts = {name: (tmp_path / "out" / f"{name}.txt").read_text() for name in "abc"}
    assert [f"list {name == 'b'}" in text for name, text in texts.items()] == [True] * 3
    assert "lists of 2 of 3 recordings" in result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert all(row["entity_list"] == Report().counts() for row in rows)
    assert "0 done, 3 skipped" in transcribe(*words, *out).stderr
    names.write_text("contact:\n  - ann lee\n")
    assert "3 done, 0 skipped" in transcribe(*words, *out).stderr


def test_a_recordings_own_list_that_the_model_refuses_stops_no_other(
    model: Path, audio: Path, tmp_path: Path, loaded: list[Any]
) -> None:
    lists = tmp_path / "own.jsonl"
    lists.write_text(
        '{"id": "a", "entities": {"stranger": ["x"]}}\n{"id": "b", "entities": {"contact": ["ann"]}}\n'
    )
    result = transcribe(audio / "a.wav", audio / "b.wav", "-m", model, "-e", lists)
    assert [line[:3] for line in result.stdout.splitlines()] == ["a\tA", "b\tB"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.jsonl", '{"id": "a"}', "c.jsonl line 1"),
        ("c.jsonl", '{"id": "a", "context": {}}\n{"id": "a", "context": {}}', "a second context of 'a'"),
        ("c.jsonl", '{"id": "a", "context": [7]}', "the context [7]"),
        ("c.jsonl", "{", '"context": {"hour": 7}'),
        ("c.jsonl", "", "c.jsonl is empty"),
        ("c.yaml", "a: 7", "'a': the context 7"),
        ("c.yaml", "- a", "a YAML mapping"),
        ("c.yaml", "b: {hour: 7}", "none of 'a'"),
        ("c.csv", "a,7", ".jsonl or .yaml"),
        ("two.yaml", "one: {hour: 7}\ntwo: {hour: 8}", "under several ids"),
        ("two.yaml", "one: {hour: 7}", "under several ids"),
    ],
)
def test_contexts_that_cannot_be_used(
    model: Path, audio: Path, tmp_path: Path, loaded: list[Any], name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    (audio / "wav.scp").write_text(f"one {audio}/a.wav\ntwo {audio}/a.wav\n")
    wav = audio / ("wav.scp" if name == "two.yaml" else "a.wav")
    unusable(transcribe(wav, "-m", model, "--context", tmp_path / name), says)
    assert loaded == []


def test_unusable_calls_touch_no_model(model: Path, audio: Path, tmp_path: Path, loaded: list[Any]) -> None:
    wav = audio / "a.wav"
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    (tmp_path / "notes").mkdir()
    unusable(transcribe(wav, "-m", tmp_path / "none"), "does not exist", "a model folder")
    unusable(transcribe(wav, "-m", tmp_path / "notes"), "has no config.yaml")
    unusable(transcribe(wav, "-m", model, "-e", tmp_path / "no.yaml"), "no.yaml")
    unusable(transcribe(wav, "-m", model, "-e", empty), "empty.yaml")
    unusable(transcribe(wav, "-m", model, "-f", "txt,jsno", "-o", tmp_path / "o"), "jsno", "txt,json")
    unusable(transcribe(wav, "-m", model, "-f", "txt,json"), "add --out DIR")
    unusable(transcribe(wav, "-m", model, "-f", "ctm"), "add --out DIR")
    unusable(transcribe(tmp_path / "notes", "-m", model), "holds no audio")
    assert loaded == []
    assert not (tmp_path / "o").exists()


def test_a_list_the_model_refuses_stops_before_any_audio(
    model: Path, audio: Path, tmp_path: Path, loaded: list[Any]
) -> None:
    (tmp_path / "x.yaml").write_text("stranger:\n  - maja\n")
    unusable(transcribe(audio, "-m", model, "-e", tmp_path / "x.yaml"), "class 'stranger'")
    result = transcribe(audio, "-m", model, "-e", tmp_path / "x.yaml", "--out", tmp_path / "out")
    unusable(result, "class 'stranger'")
    assert (tmp_path / "out" / "results.jsonl").read_text() == ""


@pytest.mark.parametrize(
    "words",
    ["transcribe", "transcribe x.wav", "transcribe x.wav --model m --beam 0", "nosuch", "info", "--nosuch"],
)
def test_calls_that_do_not_parse(words: str) -> None:
    result = call(*words.split())
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_devices_that_are_not_there(tmp_path: Path) -> None:
    for device in ("cuda:99", "gpu", "cpu:x"):
        with pytest.raises(VocativeError, match="use --device cpu"):
            asr.cli.transcribe.load_recognizer(tmp_path, device)


def test_a_bug_is_said_to_be_one_and_keeps_what_was_done(
    model: Path, audio: Path, tmp_path: Path, loaded: list[Any]
) -> None:
    (audio / "a.wav").write_text("bug")
    words = [audio, "-m", model, "--out", tmp_path / "out"]
    result = transcribe(*words)
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert "this is a bug" in first
    assert "--debug" in first
    assert "KeyError" in second
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 2
    debug = call("--debug", "transcribe", *words)
    assert "Traceback" in debug.stderr
    assert "transcribe_many" in debug.stderr


DRIVER = """
import signal, sys
sys.path[:0] = [{tests!r}]
signal.signal(signal.SIGINT, signal.default_int_handler)
import asr.cli.transcribe
from asr.decoding_config import DecodingConfig
from test_cli import Fake
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


def test_ctrl_c_keeps_results_and_says_how_to_go_on(model: Path, audio: Path, tmp_path: Path) -> None:
    for number in range(40):
        (audio / f"{number:02}.wav").write_text("x")
    log = tmp_path / "out" / "results.jsonl"
    process = start(audio, "-m", model, "-o", log.parent, FAKE_S="0.05")
    wait_for_lines(log, 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "asr: interrupted; run the same command again to go on" in stderr
    assert "Traceback" not in stderr
    kept = log.read_bytes().count(b"\n")
    assert 2 <= kept < 43
    again = start(audio, "-m", model, "-o", log.parent)
    _, stderr = again.communicate(timeout=60)
    assert again.returncode == 0
    assert f"{43 - kept} done, {kept} skipped" in stderr


def test_ctrl_c_before_the_first_result(model: Path, audio: Path, tmp_path: Path) -> None:
    log = tmp_path / "out" / "results.jsonl"
    process = start(audio, "-m", model, "-o", log.parent, FAKE_LOAD_S="30")
    wait_for_lines(log, 0)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr


def test_ctrl_c_prints_what_was_known(model: Path, audio: Path, loaded: list[Any]) -> None:
    (audio / "a.wav").write_text("ctrl-c")
    result = transcribe(audio, "-m", model)
    assert result.exit_code == 130
    assert [line[:3] for line in result.stdout.splitlines()] == ["b\tB", "c\tC"]
    assert "asr: interrupted; add --out DIR" in result.stderr
    assert "2 done" in result.stderr


def test_a_full_standard_output_is_one_line(model: Path, audio: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start(audio, "-m", model, stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [line for line in stderr.splitlines() if "full" in line] == stderr.splitlines()
    assert len(stderr.splitlines()) == 1


def test_a_reader_that_leaves_is_no_bug(model: Path, audio: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    process = start(audio, "-m", model, stdout=written)
    os.close(written)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "bug" not in stderr
    assert "Traceback" not in stderr


def test_paths_that_cannot_be_written_are_no_bug(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a one\n")
    words = ["score", tmp_path / "text", tmp_path / "text", "--json", tmp_path / "text" / "x.json"]
    result = call(*words)
    assert result.exit_code == 2
    assert "bug" not in result.stderr
    assert str(tmp_path / "text") in result.stderr


def test_a_search_that_memory_cannot_hold_is_no_bug(
    model: Path, audio: Path, loaded: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ...")

    monkeypatch.setattr(Fake, "transcribe_many", full)
    result = transcribe(audio, "-m", model)
    assert result.exit_code == 1
    assert "not enough memory; lower --batch-s, search.beam" in result.stderr
    assert "bug" not in result.stderr


def test_closed_standard_streams(model: Path, audio: Path, tmp_path: Path) -> None:
    script = DRIVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(audio), "-m", str(model), "-o", str(tmp_path / "out")]
    done = subprocess.run(["sh", "-c", 'exec "$@" 1>&- 2>&-', "sh", *command], timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "out" / "a.txt").is_file()


def test_a_terminal_gets_a_bar_and_whole_lines(model: Path, audio: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    script = DRIVER.format(tests=str(Path(__file__).parent))
    words = [
        str(audio),
        str(tmp_path / ("gone" * 30 + ".wav")),
        "-m",
        str(model),
        "-o",
        str(tmp_path / "out"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side of a terminal is closed
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert process.wait(60) == 1
    text = shown.decode()
    assert "4/4" in text
    assert "left" in text
    line = next(line for line in text.split("\r\n") if "asr: failed: " in line)
    assert line.endswith("check the path"), "one line, however long"


def test_file_names_that_are_no_text_and_a_locale_that_is_no_utf8(model: Path, audio: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    (audio / name).write_text("X")
    (audio / "東京.wav").write_text("Y")
    script = DRIVER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(audio), "gone-é.wav", "-m", str(model)]
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=env, timeout=60, check=False)
    assert done.returncode == 1
    assert b"caf\xe9\tX" in done.stdout
    assert "東京\tY".encode() in done.stdout
    assert b"Traceback" not in done.stderr
