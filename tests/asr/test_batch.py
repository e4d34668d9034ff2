from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.batch import OutputError, ResultsFolder, Tally, run_batch
from asr.recordings import AudioPart, Recording, list_recordings
from asr.writers import write
from decoding.result import EntitySpan, Transcript
from lm.errors import AudioError, ConfigError, DataError, VocativeError

SPAN = EntitySpan("contact", "maja", "Maja", "c1", 0, 1, 0.1, 0.4, float("nan"))


def fake(paths: Sequence[Path]) -> Iterator[tuple[Path, Transcript | VocativeError]]:
    """Deterministic on content; fails for files that are missing or empty."""
    for path in paths:
        data = path.read_bytes() if path.exists() else b""
        if not data:
            yield path, AudioError(f"{path} is missing or empty", "a recording", "check it")
        else:
            text = "maja " + hashlib.sha256(data).hexdigest()[:8]
            yield path, Transcript("x", text, float(len(data)), entities=(SPAN,))


def make(folder: Path, *names: str) -> list[Recording]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return list_recordings([str(folder / name) for name in names])


def rows(out: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    by_id = {row["id"]: row for row in found}
    assert len(by_id) == len(found), "one line a recording"
    return by_id


def batch(
    out: Path, recordings: Sequence[Recording], recognise: Any = fake, model: str = "m1", **more: Any
) -> tuple[list[str], Tally]:
    """Ids recognised in this run, and the counts."""
    formats = more.pop("formats", ["txt"])
    notes = more.pop("notes", None)
    with ResultsFolder(out, formats, more.pop("write", write), {"model": model}, notes, **more) as folder:
        pending = folder.pending(recordings)
        tally = Tally(skipped=len(recordings) - len(pending))
        for outcome in run_batch(recognise, pending, folder):
            tally.add(outcome)
    return [r.id for r in pending], tally


def test_every_recording_has_its_files_and_its_line(tmp_path: Path) -> None:
    recordings = make(tmp_path / "in", "a.wav", "ünïcödé 東京.wav", "b c.wav")
    _, tally = batch(tmp_path / "out", recordings, formats=["txt", "json"], notes={"entity_list": {"ok": 3}})
    assert (tally.done, tally.skipped, tally.failed) == (3, 0, 0)
    found = rows(tmp_path / "out")
    assert set(found) == {"a", "ünïcödé 東京", "b c"}
    for recording in recordings:
        text = next(iter(fake([recording.path])))[1].text  # type: ignore[union-attr]
        row = found[recording.id]
        assert row["text"] == text
        assert row["audio"] == str(recording.path)
        assert row["seconds"] == len(recording.path.read_bytes())
        assert row["entities"][0]["written"] == "Maja"
        assert row["entities"][0]["confidence"] is None
        assert row["entity_list"] == {"ok": 3}
        assert (tmp_path / "out" / f"{recording.id}.txt").read_text() == text + "\n"
        assert json.loads((tmp_path / "out" / f"{recording.id}.json").read_text())["id"] == recording.id


def test_bad_files_fail_alone_and_are_tried_again(tmp_path: Path) -> None:
    recordings = make(tmp_path / "in", "a.wav", "empty.wav", "gone.wav", "z.wav")
    (tmp_path / "in" / "empty.wav").write_bytes(b"")
    (tmp_path / "in" / "gone.wav").unlink()
    _, tally = batch(tmp_path / "out", recordings)
    assert (tally.done, tally.failed) == (2, 2)
    found = rows(tmp_path / "out")
    assert "gone.wav is missing" in found["gone"]["error"]
    assert "text" not in found["gone"]
    assert "text" in found["z"]
    make(tmp_path / "in", "gone.wav")
    done, tally = batch(tmp_path / "out", recordings)
    assert done == ["empty", "gone"]
    assert (tally.done, tally.skipped, tally.failed) == (1, 2, 1)
    assert "error" not in rows(tmp_path / "out")["gone"]


def test_what_is_done_is_skipped_until_something_that_counts_changes(tmp_path: Path) -> None:
    recordings = make(tmp_path / "in", "a.wav", "b.wav")
    out = tmp_path / "out"

    def again(**more: Any) -> list[str]:
        return batch(out, recordings, **more)[0]

    assert again() == ["a", "b"]
    before = (out / "results.jsonl").read_bytes()
    assert again() == []
    assert (out / "results.jsonl").read_bytes() == before
    assert again(overwrite=True) == ["a", "b"]
    assert again(model="m2") == ["a", "b"]
    assert again(model="m2") == []
    (tmp_path / "in" / "a.wav").write_bytes(b"other content")
    assert again(model="m2") == ["a"]
    os.utime(tmp_path / "in" / "b.wav", ns=(1, 1))
    assert again(model="m2") == ["b"]
    (out / "a.txt").unlink()
    assert again(model="m2") == ["a"]
    assert again(model="m2", formats=["txt", "json"]) == ["a", "b"]
    assert again(model="m2", formats=["json"]) == []
    assert set(rows(out)) == {"a", "b"}


@given(cut=st.integers(0, 2000))
def test_a_line_cut_anywhere_is_repaired(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")
    recordings = make(tmp_path / "in", "a.wav", "b.wav", "ü.wav")
    batch(tmp_path / "out", recordings)
    whole = (tmp_path / "out" / "results.jsonl").read_bytes()
    left = whole[: min(cut, len(whole))]
    (tmp_path / "out" / "results.jsonl").write_bytes(left)
    done, _ = batch(tmp_path / "out", recordings)
    assert len(done) == 3 - left.count(b"\n")
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == whole


def test_another_file_of_the_name_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("my notes\nmore\n")
    with pytest.raises(DataError, match="line 1 is not a result"):
        batch(tmp_path, make(tmp_path / "in", "a.wav"))
    assert (tmp_path / "results.jsonl").read_text() == "my notes\nmore\n"
    assert not (tmp_path / "a.txt").exists()


def test_results_of_other_recordings_are_not_replaced(tmp_path: Path) -> None:
    first = make(tmp_path / "in", "one/x.wav")
    second = make(tmp_path / "in", "two/x.wav")
    batch(tmp_path / "out", first)
    with pytest.raises(ConfigError, match="under the id 'x'"):
        batch(tmp_path / "out", second)
    both = make(tmp_path / "in", "one/x.wav", "two/x.wav")
    assert batch(tmp_path / "out", both)[0] == ["one/x", "two/x"]
    assert (tmp_path / "out" / "one" / "x.txt").exists()
    # A recording that was moved is no other recording.
    (tmp_path / "in" / "one").rename(tmp_path / "in" / "moved")
    assert batch(tmp_path / "out", list_recordings([str(tmp_path / "in" / "moved" / "x.wav")]))[0] == ["x"]


def test_a_recording_called_results_does_not_replace_the_log(tmp_path: Path) -> None:
    recordings = make(tmp_path / "in", "results.wav")
    with pytest.raises(ConfigError, match=r"would replace .*results.jsonl"):
        batch(tmp_path / "out", recordings, formats=["jsonl"])
    assert batch(tmp_path / "out", recordings, formats=["txt", "json"])[1].done == 1


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folders = [ResultsFolder(tmp_path, ["txt"], write, {}) for _ in range(2)]
    with folders[0], pytest.raises(ConfigError, match="another process is writing"):
        folders[1].__enter__()
    with folders[1]:
        pass


def test_one_file_under_two_ids_is_recognised_once(tmp_path: Path) -> None:
    make(tmp_path / "in", "a.wav")
    path = tmp_path / "in" / "a.wav"
    seen: list[Path] = []

    def counting(paths: Sequence[Path]) -> Any:
        seen.extend(paths)
        return fake(paths)

    batch(tmp_path / "out", [Recording("u1", path), Recording("u2", path)], counting)
    assert seen == [path]
    assert set(rows(tmp_path / "out")) == {"u1", "u2"}


def test_a_recogniser_that_leaves_one_out_is_a_bug_not_silence(tmp_path: Path) -> None:
    recordings = make(tmp_path / "in", "a.wav", "b.wav")
    with pytest.raises(RuntimeError, match="returned nothing for 1"):
        batch(tmp_path / "out", recordings, lambda paths: fake(paths[:1]))
    assert set(rows(tmp_path / "out")) == {"a"}


def test_a_full_disk_keeps_what_was_done(tmp_path: Path) -> None:
    recordings = make(tmp_path / "in", "a.wav", "b.wav", "c.wav")

    def full_at_c(transcript: Transcript, name: str, folder: Path) -> Path:
        if transcript.id == "c":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(transcript, name, folder)

    with pytest.raises(OutputError, match=r"is full.*what is done is kept"):
        batch(tmp_path / "out", recordings, write=full_at_c)
    assert set(rows(tmp_path / "out")) == {"a", "b"}
    assert batch(tmp_path / "out", recordings)[0] == ["c"]


def test_a_log_that_the_system_cuts_short_stays_whole(tmp_path: Path) -> None:
    """A file size limit makes the system write a part of a line and then fail, as a full disk does."""
    recordings = make(tmp_path / "in", *(f"{i}.wav" for i in range(9)))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(OutputError, match="run the same command again"):
            batch(tmp_path / "out", recordings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (tmp_path / "out" / "results.jsonl").read_bytes().endswith(b"}\n")
    kept = len(rows(tmp_path / "out"))
    assert 0 < kept < 9
    assert len(batch(tmp_path / "out", recordings)[0]) == 9 - kept


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a writable folder"):
        batch(tmp_path / "file" / "out", make(tmp_path / "in", "a.wav"))


def test_results_that_cannot_be_written_fail_alone(tmp_path: Path) -> None:
    long = "l" * 254
    recordings = [*make(tmp_path / "in", "a.wav", "b.wav")]
    recordings[0] = Recording(long, recordings[0].path)
    _, tally = batch(tmp_path / "out", recordings)
    assert (tally.done, tally.failed) == (1, 1)
    assert "rename the recording" in rows(tmp_path / "out")[long]["error"]
    # The fake gives no word times, so there is nothing to put in a CTM.
    _, tally = batch(tmp_path / "ctm", recordings[1:], formats=["ctm"])
    assert tally.failed == 1
    assert "choose txt or json" in rows(tmp_path / "ctm")["b"]["error"]


def test_a_format_that_cannot_hold_a_result_fails_that_recording_alone(tmp_path: Path) -> None:
    def refuse(transcript: Transcript, name: str, folder: Path) -> Path:
        if transcript.id == "b" and refusing:
            raise DataError("b has no word times", "a transcript with times", "choose txt")
        return write(transcript, name, folder)

    refusing = True
    recordings = make(tmp_path / "in", "a.wav", "b.wav", "c.wav")
    out = tmp_path / "out"
    _, tally = batch(out, recordings, write=refuse)
    assert (tally.done, tally.failed, tally.audio_s) == (2, 1, 10.0)
    found = rows(out)
    assert found["b"]["error"] == "b has no word times; expected a transcript with times; choose txt"
    assert "text" not in found["b"]
    assert "error" not in found["a"]
    assert "error" not in found["c"]
    refusing = False
    recognised, tally = batch(out, recordings, write=refuse)
    assert recognised == ["b"], "what failed is tried again, the rest is kept"
    assert (tally.done, tally.skipped, tally.failed) == (1, 2, 0)
    assert "error" not in rows(out)["b"]


def test_file_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    recordings = make(tmp_path / "in", "a.wav")
    (tmp_path / "in" / name).write_bytes(b"data")
    recordings += list_recordings([str(tmp_path / "in" / name)])
    _, tally = batch(tmp_path / "out", recordings)
    assert tally.done == 2
    assert rows(tmp_path / "out")[name[:-4]]["audio"].endswith(name)
    assert batch(tmp_path / "out", recordings)[0] == []


SLOW = """
import signal, sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_batch import batch, fake
from asr.recordings import list_recordings

signal.signal(signal.SIGINT, signal.default_int_handler)
def slow(paths):
    for path, result in fake(paths):
        time.sleep(0.02)
        yield path, result
batch(Path({out!r}), list_recordings([{folder!r}]), slow)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_batch_killed_at_any_moment_goes_on(tmp_path: Path, number: int) -> None:
    recordings = make(tmp_path / "in", *(f"{i:03}.wav" for i in range(60)))
    out = tmp_path / "out"
    script = SLOW.format(tests=str(Path(__file__).parent), out=str(out), folder=str(tmp_path / "in"))
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.DEVNULL)
    log = out / "results.jsonl"
    deadline = time.monotonic() + 60
    while (log.read_bytes().count(b"\n") if log.exists() else 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) != 0
    before = log.read_bytes()
    kept = before.count(b"\n")
    assert 3 <= kept < 60
    _, tally = batch(out, recordings)
    assert (tally.done, tally.skipped) == (60 - kept, kept)
    assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    batch(tmp_path / "straight", recordings)
    assert rows(out) == rows(tmp_path / "straight")
    assert {p.name: p.read_bytes() for p in out.glob("*.txt")} == {
        p.name: p.read_bytes() for p in (tmp_path / "straight").glob("*.txt")
    }


def test_the_summary_counts_hours_and_speed() -> None:
    tally = Tally(done=2, skipped=1, failed=3, audio_s=7200.0)
    assert tally.summary(100.0) == "2 done, 1 skipped, 3 failed; 2.00 h of audio in 100.0 s, 72.0 × real time"
    assert "real time" not in Tally(skipped=4).summary(0.0)


def ids(inputs: Sequence[str | Path], stdin: Sequence[str] = ()) -> list[str]:
    return [r.id for r in list_recordings([str(i) for i in inputs], stdin)]


def test_folders_patterns_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "b.wav", "a.FLAC", "deep/er/c.ogg", ".hidden.wav", "[x].wav", "notes.txt")
    monkeypatch.chdir(tmp_path)
    assert ids([tmp_path]) == ["[x]", "a", "b", "c"]
    assert ids(["*.wav"]) == ["[x]", "b"]
    assert ids(["**/*.ogg", "b.wav"]) == ["c", "b"]
    assert ids(["[x].wav"]) == ["[x]"]
    assert ids(["-", "a.FLAC"], ["b.wav\n", "\n", "missing.wav\r\n"]) == ["b", "missing", "a"]
    assert ids(["b.wav", "./b.wav", tmp_path / "b.wav"]) == ["b"]
    assert ids(["missing.wav"]) == ["missing"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["none*.wav"], "matches no file"),
        (["sub"], "holds no audio"),
        (["-"], "no recordings on standard input"),
        (["gone.scp"], "cannot be read"),
    ],
)
def test_inputs_that_name_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(DataError, match=says):
        list_recordings(inputs)


def test_stems_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    names = ["s1/a/x.wav", "s2/a/x.wav", "s1/y.wav", "s1/z.wav", "s1/z.flac", "q/z.wav"]
    make(tmp_path, *names)
    found = ids([tmp_path / name for name in names])
    assert found == ["s1/a/x", "s2/a/x", "y", "z.wav", "z.flac", "z"]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4).map("/".join),
        min_size=1,
        unique=True,
    ),
    st.sampled_from([".wav", ".flac"]),
    st.randoms(use_true_random=False),
)
def test_ids_are_unique_tails_whatever_the_order(stems: list[str], suffix: str, random: Any) -> None:
    paths = [f"/nowhere/{stem}{suffix}" for stem in stems]
    named = {r.id: str(r.path) for r in list_recordings(paths)}
    assert len(named) == len(paths)
    assert all(path.endswith(f"/{name}{suffix}") for name, path in named.items())
    random.shuffle(paths)
    assert {r.id: str(r.path) for r in list_recordings(paths)} == named


def test_names_that_would_break_a_line(tmp_path: Path) -> None:
    assert ids(["/x/a\tb\nc.wav"]) == ["a_b_c"]
    with pytest.raises(DataError, match="two recordings with the id 'a_b'"):
        ids(["/x/a\tb.wav", "/x/a_b.wav"])


def test_kaldi_lists(tmp_path: Path) -> None:
    scp = tmp_path / "wav.scp"
    scp.write_text("utt2 /data/two words.wav\n\nspk/utt1\t/data/1.flac\n")
    found = list_recordings([str(scp)])
    assert found == [
        Recording("utt2", Path("/data/two words.wav")),
        Recording("spk/utt1", Path("/data/1.flac")),
    ]


def test_utterances_of_a_segments_table(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("call-1 /data/1.wav\n")
    table = tmp_path / "segments"
    table.write_text("b call-1 1.5 -1\na call-1 0.25 1.5\n")
    first, second = found = list_recordings([str(table)])
    assert found == [Recording("b", Path("/data/1.wav"), 1.5), Recording("a", Path("/data/1.wav"), 0.25, 1.5)]
    assert first.audio == AudioPart(Path("/data/1.wav"), 1.5)
    assert second.audio == AudioPart(Path("/data/1.wav"), 0.25, 1.5)
    assert Recording("c", Path("/data/1.wav")).audio == Path("/data/1.wav")
    for line, says in (
        ("a call-2 0 1", "'call-2'; expected one in wav.scp"),
        ("a call-1 2 1", "0 <= start < end"),
        ("../a call-1 0 1", "an id that can name a result file"),
    ):
        table.write_text(f"{line}\n")
        with pytest.raises(DataError, match=says):
            list_recordings([str(table)])


def test_a_folder_of_tables_names_them(tmp_path: Path) -> None:
    for name in ("wav.scp", "segments"):
        (tmp_path / name).write_text("a b 0 1\n")
        with pytest.raises(DataError, match=f"holds no audio.*name its table: .*/{name}$"):
            list_recordings([str(tmp_path)])


def test_parts_of_one_file_are_recordings_of_their_own(tmp_path: Path) -> None:
    (whole,) = make(tmp_path / "in", "a.wav")
    asked: list[Any] = []

    def recognise(audio: Any) -> Iterator[tuple[Any, Transcript]]:
        asked.append(list(audio))
        for part in audio:
            yield part, Transcript("a", f"from {part.start_s}", 1.0)

    def run(*parts: Recording) -> None:
        with ResultsFolder(tmp_path / "out", ["txt"], write, {}) as folder:
            list(run_batch(recognise, folder.pending(parts), folder))

    one, other = Recording("1", whole.path, 0.0, 1.0), Recording("2", whole.path, 1.0)
    run(one, other)
    found = rows(tmp_path / "out")
    assert [found["1"]["text"], found["2"]["text"]] == ["from 0.0", "from 1.0"]
    assert (found["1"]["start_s"], found["1"]["end_s"], found["2"]["end_s"]) == (0.0, 1.0, None)
    run(one, Recording("2", whole.path, 0.5))
    assert asked == [[one.audio, other.audio], [AudioPart(whole.path, 0.5)]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("utt1 sph2pipe -f wav x.sph |", "a command or an archive"),
        ("utt1 /data/x.ark:123", "a command or an archive"),
        ("utt1", "add the path"),
        ("../../etc/x /data/x.wav", "an id that can name a result file"),
        ("/etc/x /data/x.wav", "an id that can name a result file"),
        ("", "is empty"),
        ("u a.wav\nu b.wav", "two recordings with the id 'u'"),
    ],
)
def test_kaldi_lists_that_cannot_be_used(tmp_path: Path, line: str, says: str) -> None:
    scp = tmp_path / "wav.scp"
    scp.write_text(f"{line}\n")
    with pytest.raises(DataError, match=says):
        list_recordings([str(scp)])
