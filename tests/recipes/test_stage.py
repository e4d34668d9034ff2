from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import ConfigError
from recipes.fingerprint import ContentHasher, canonical, read_json, signature, write_json
from recipes.stage import Records, Stage, describe, fingerprint


def nothing() -> None:
    """A stage body for tests that never run one."""


def make_stage(tmp_path: Path) -> Stage:
    source, made = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("in")
    made.write_text("out")
    return Stage("one", "a stage", (source,), (made,), {"rate": 1, "net": {"width": 8}}, nothing)


def finished(stage: Stage, tmp_path: Path) -> Records:
    records = Records(tmp_path)
    records.write(stage, describe(stage, tmp_path, ContentHasher(tmp_path / "cache.json")), 1.0)
    return records


def reasons(records: Records, stage: Stage, tmp_path: Path) -> list[str]:
    return records.reasons(stage, describe(stage, tmp_path, ContentHasher(tmp_path / "cache.json")))


def test_each_reason_is_named(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    assert reasons(Records(tmp_path), stage, tmp_path) == ["no record of a finished run"]
    records = finished(stage, tmp_path)
    assert reasons(records, stage, tmp_path) == []
    assert reasons(records, replace(stage, version=2), tmp_path) == ["stage version 1 -> 2"]
    wider = replace(stage, params={"rate": 1, "net": {"width": 16}, "new": "x"})
    assert reasons(records, wider, tmp_path) == ["param net.width 8 -> 16", 'param new unset -> "x"']
    assert reasons(records, replace(stage, inputs=()), tmp_path) == ["in.txt is no longer an input"]
    more = replace(stage, outputs=(*stage.outputs, tmp_path / "more"))
    assert reasons(records, more, tmp_path) == ["output more is new"]
    stage.inputs[0].write_text("new")
    assert reasons(records, stage, tmp_path) == ["input in.txt changed"]
    stage.inputs[0].write_text("in")
    assert reasons(records, stage, tmp_path) == []
    stage.outputs[0].write_text("touched")
    assert reasons(records, stage, tmp_path) == ["output out.txt was changed"]
    stage.outputs[0].unlink()
    assert reasons(records, stage, tmp_path) == ["output out.txt is missing"]


def test_a_copied_workdir_is_unchanged(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    finished(make_stage(old), old)
    shutil.copytree(old, new, copy_function=shutil.copyfile)
    os.utime(new / "out.txt", (1, 1))
    copied = Stage(
        "one", "", (new / "in.txt",), (new / "out.txt",), {"rate": 1, "net": {"width": 8}}, nothing
    )
    assert reasons(Records(new), copied, new) == []
    (new / "out.txt").write_text("new")
    assert reasons(Records(new), copied, new) == ["output out.txt was changed"]


def test_a_record_of_times_alone_is_still_read(tmp_path: Path) -> None:
    stage = make_stage(tmp_path)
    records = finished(stage, tmp_path)
    record = read_json(records.path(stage))
    assert record is not None
    write_json(records.path(stage), {**record, "outputs": {"out.txt": record["outputs"]["out.txt"][0]}})
    assert reasons(records, stage, tmp_path) == []
    os.utime(stage.outputs[0], (1, 1))
    assert reasons(records, stage, tmp_path) == ["output out.txt was changed"]


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"params": {}, "inputs": {}}', "\x00"])
def test_a_damaged_record_means_run(tmp_path: Path, damage: str) -> None:
    stage = make_stage(tmp_path)
    records = finished(stage, tmp_path)
    records.path(stage).write_text(damage)
    assert reasons(records, stage, tmp_path) == ["no record of a finished run"]


def test_a_moved_workdir_stays_valid(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    finished(make_stage(old), old)
    old.rename(new)
    moved = Stage("one", "", (new / "in.txt",), (new / "out.txt",), {"rate": 1, "net": {"width": 8}}, nothing)
    assert reasons(Records(new), moved, new) == []


def test_params_that_are_not_json_are_refused(tmp_path: Path) -> None:
    for value in (Path("x"), float("nan"), {1, 2}):
        stage = replace(make_stage(tmp_path), params={"bad": value})
        with pytest.raises(ConfigError, match="stage 'one' has params that are not JSON"):
            describe(stage, tmp_path, ContentHasher(tmp_path / "cache.json"))


@given(
    st.dictionaries(st.text(), st.integers() | st.lists(st.booleans())),
    st.randoms(use_true_random=False),
)
def test_fingerprint_ignores_the_order_of_keys(params: dict[str, object], chance: object) -> None:
    keys = list(params)
    chance.shuffle(keys)  # type: ignore[attr-defined]
    one = {"version": 1, "params": params, "inputs": {}}
    other = {"inputs": {}, "params": {key: params[key] for key in keys}, "version": 1}
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint({**one, "version": 2})


def test_folder_hash_sees_names_and_bytes_but_not_times(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    (folder / "b").write_text("2")

    def fresh() -> str:
        return ContentHasher(tmp_path / "none.json").hash(folder)

    before = fresh()
    os.utime(folder / "b", (1, 1))
    assert fresh() == before
    (folder / "b").write_text("3")
    changed = fresh()
    assert changed != before
    (folder / "b").rename(folder / "c")
    assert fresh() not in (before, changed)
    (folder / "c").rename(folder / "b")
    (folder / "b").write_text("2")
    assert fresh() == before


def test_an_old_unchanged_file_is_read_once(tmp_path: Path) -> None:
    file, cache = tmp_path / "file", tmp_path / "cache.json"
    file.write_text("same size A")
    os.utime(file, ns=(10**18, 10**18))
    hasher = ContentHasher(cache)
    first = hasher.hash(file)
    hasher.save()
    # Other bytes behind the same size and mtime: only a hasher that trusts its cache gives the old answer.
    file.write_text("same size B")
    os.utime(file, ns=(10**18, 10**18))
    assert ContentHasher(cache).hash(file) == first
    assert ContentHasher(tmp_path / "other.json").hash(file) != first


def test_a_file_changed_a_moment_ago_is_not_believed(tmp_path: Path) -> None:
    file, cache = tmp_path / "file", tmp_path / "cache.json"
    file.write_text("A")
    now = time.time_ns()
    os.utime(file, ns=(now, now))
    hasher = ContentHasher(cache)
    first = hasher.hash(file)
    hasher.save()
    file.write_text("B")
    os.utime(file, ns=(now, now))
    assert ContentHasher(cache).hash(file) != first


def test_signature_of_a_folder_sees_a_touched_file(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").write_text("1")
    before = signature(tmp_path / "f")
    os.utime(tmp_path / "f" / "a", (1, 1))
    assert signature(tmp_path / "f") != before
    assert signature(tmp_path / "absent") == "missing"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": 2, "b": object()})
    assert read_json(path) == {"a": 1}
    assert [item.name for item in path.parent.iterdir()] == ["x.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("inf"))
