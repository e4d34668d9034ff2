"""Typed configurations: a docstring under every field, YAML holds only differences, typos are errors."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lm.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: immutable, unknown keys and NaN rejected, docstrings are help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "a YAML file", "check the path") from None
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
    parts, owner = _walk(kind, [str(part) for part in first["loc"]])
    where = ".".join(parts)
    if first["type"] == "extra_forbidden":
        keys = list(owner.model_fields) if owner else []
        near = difflib.get_close_matches(parts[-1], keys, n=1, cutoff=0.0)
        expected = f"one of {', '.join(sorted(keys))}" if 0 < len(keys) <= 12 else "a known key"
        fix = f"did you mean {near[0]!r}?" if near else "remove it"
        return ConfigError(f"{source}: unknown key {where!r}", expected, fix)
    return ConfigError(
        f"{source}: {where} = {first.get('input')!r}", first["msg"].lower(), "correct the value"
    )


def _walk(kind: type[BaseModel], parts: list[str]) -> tuple[list[str], type[BaseModel] | None]:
    """The path without pydantic's names for members of a union, and the section that the last key is in."""
    shown: list[str] = []
    here: Any = kind
    owner: type[BaseModel] | None = None
    for part in parts:
        members = {name: m for m in _members(here) for name in _tags(m)}
        if len(members) > 1 and part in members:
            here = members[part]
            continue
        shown.append(part)
        sections = [m for m in _members(here) if isinstance(m, type) and issubclass(m, BaseModel)]
        here = sections[0] if len(sections) == 1 else here
        if isinstance(here, type) and issubclass(here, BaseModel):
            owner = here
            field = here.model_fields.get(part)
            here = field.annotation if field else None
        else:  # a list or a mapping: its values follow
            owner = None
            arguments = get_args(here)
            here = arguments[-1] if arguments else None
    return shown, owner


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type; itself where there are none."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    return [annotation]


def _tags(member: Any) -> tuple[str, ...]:
    """What ``kind`` may be in a section that is one of several."""
    fields = member.model_fields if isinstance(member, type) and issubclass(member, BaseModel) else {}
    return get_args(fields["kind"].annotation) if "kind" in fields else ()
