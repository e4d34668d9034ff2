"""Configurations: typos are errors with the nearest key, overrides are checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.config import Config, apply_overrides, build_config, merge, read_yaml
from lm.errors import ConfigError


class Inner(Config):
    epochs: int = 3


class Outer(Config):
    training: Inner = Inner()
    name: str = "x"


def test_a_typo_names_the_nearest_key() -> None:
    with pytest.raises(ConfigError, match=r"conf: unknown key 'training.epoch'.*did you mean 'epochs'"):
        build_config(Outer, {"training": {"epoch": 4}}, "conf")
    with pytest.raises(ConfigError, match=r"unknown key 'nam'.*did you mean 'name'"):
        build_config(Outer, {"nam": 4}, "conf")


def test_a_wrong_value_is_named_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"conf: training.epochs = 'many'"):
        build_config(Outer, {"training": {"epochs": "many"}}, "conf")


def test_overrides_reach_into_sections_and_leave_the_original_alone() -> None:
    values = {"training": {"epochs": 1}}
    changed = apply_overrides(values, ["training.epochs=5", "name=y"])
    assert build_config(Outer, changed, "conf") == Outer(training=Inner(epochs=5), name="y")
    assert values == {"training": {"epochs": 1}}


@pytest.mark.parametrize("bad", ["training.epochs", "=3", "name.x=1", "training.epochs=["])
def test_overrides_that_cannot_be_read_are_one_line(bad: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"name": "x"}, [bad])


def test_merge_is_deep_and_the_second_wins() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}


@pytest.mark.parametrize(("content", "what"), [("a: [", "not valid YAML"), ("- 1", "holds a list")])
def test_files_that_are_no_mapping_are_named(tmp_path: Path, content: str, what: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=what):
        read_yaml(file)
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
