"""``asr transcribe`` on a scripted recognizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_cli import Report, call, save, transcribe, unusable

import asr.cli.transcribe
from lm.errors import VocativeError


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
