"""Typed configurations: a docstring under every field, YAML holds only differences, typos are errors."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lm.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: immutable, unknown keys rejected, field docstrings kept as help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


C = TypeVar("C", bound=Config)


def build_config(kind: type[C], values: dict[str, Any], source: str) -> C:
    """Validate ``values`` as a ``kind``; ``source`` names where they came from in the error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _explain(kind, error, source) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; errors name the file and line."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist", "a YAML file", "check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML ({error})", "a YAML mapping", "mend the file") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(
            f"{path} holds a {type(loaded).__name__}", "a YAML mapping", "write 'key: value' lines"
        )
    return loaded


def apply_overrides(values: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Return ``values`` with each ``dotted.key=value`` applied (the value is read as YAML)."""
    result: dict[str, Any] = _copy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(
                f"--set {assignment!r}", "key=value", "write for example --set training.epochs=10"
            )
        node = result
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ConfigError(
                    f"--set {assignment!r}: {parent!r} is a value", "a section", "check the key"
                )
            node = child
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"--set {assignment!r}", "a value in YAML", "quote or correct the value"
            ) from None
    return result


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Deep-merge two mappings; ``changes`` wins."""
    result = _copy(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in values.items()}


def _explain(kind: type[Config], error: ValidationError, source: str) -> ConfigError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        keys = _keys(kind, [str(part) for part in first["loc"][:-1]])
        near = difflib.get_close_matches(str(first["loc"][-1]), keys, n=1, cutoff=0.0)
        expected = f"one of {', '.join(sorted(keys))}" if len(keys) <= 12 else "a known key"
        fix = f"did you mean {near[0]!r}?" if near else "remove it"
        return ConfigError(f"{source}: unknown key {where!r}", expected, fix)
    return ConfigError(
        f"{source}: {where} = {first.get('input')!r}", first["msg"].lower(), "correct the value"
    )


def _keys(kind: type[Config], parents: list[str]) -> list[str]:
    model: type[BaseModel] = kind
    for part in parents:
        field = model.model_fields.get(part)
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
