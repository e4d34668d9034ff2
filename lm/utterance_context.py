"""What is known of an utterance before it is said: hour, weekday, app, place; as fields and as numbers.

A context is a mapping from names of fields to values, ``{"hour": 7, "app": "maps"}``. Fields that are missing,
None, or hold a value that the model has not met are unknown to it; a field that it does not have is an error.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lm.config import Config, read_yaml
from lm.errors import DataError
from lm.text_files import is_jsonl, read_lines

UtteranceContext: TypeAlias = Mapping[str, Any]
"""Values by name of their field."""
UNKNOWN = -1.0
"""The number of a value that is not known."""


class CategoricalField(Config):
    """A field whose values are names: an app, a place, the title of a book."""

    kind: Literal["categorical"]
    """What it is."""
    name: str = Field(min_length=1)
    """What contexts call it."""
    values: tuple[str, ...] = Field(min_length=1)
    """The values that the model knows; all others are unknown."""

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalField:
        if len(set(self.values)) < len(self.values):
            raise ValueError("values that differ")
        return self

    def number(self, value: Any) -> float:
        """Place of the value among those known."""
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            _refuse(self.name, value, "a name")
        return float(self.values.index(str(value))) if str(value) in self.values else UNKNOWN


class CyclicField(Config):
    """A field whose values go round: hours of the day, days of the week, weeks or months of the year."""

    kind: Literal["cyclic"]
    """What it is."""
    name: str = Field(min_length=1)
    """What contexts call it."""
    period: float = Field(gt=0)
    """The value that is as good as 0: 24 for hours, 7 for days."""

    def number(self, value: Any) -> float:
        """The value itself."""
        usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not usable or not 0 <= value <= self.period:
            _refuse(self.name, value, f"a number from 0 to {self.period:g}")
        return float(value)


ContextField: TypeAlias = Annotated[CategoricalField | CyclicField, Field(discriminator="kind")]


def encode_contexts(
    fields: Sequence[CategoricalField | CyclicField], contexts: Sequence[UtteranceContext | None]
) -> Tensor:
    """Contexts as numbers ``(B, N)``, a column for each of ``fields``: places of names, values of cyclic ones, or
    ``UNKNOWN``.

    Raises:
        DataError: a field that is not among ``fields``, or a value that it cannot have.
    """
    check_fields([field.name for field in fields], contexts)
    rows = [
        [
            UNKNOWN if (value := (said or {}).get(field.name)) is None else field.number(value)
            for field in fields
        ]
        for said in contexts
    ]
    return torch.tensor(rows, dtype=torch.float32).view(len(contexts), len(fields))


def check_fields(known: Sequence[str], contexts: Sequence[UtteranceContext | None]) -> None:
    """Refuse contexts with a field that is not ``known``.

    Raises:
        DataError: with the names that are.
    """
    for said in contexts:
        for name in said or ():
            if name not in known:
                near = difflib.get_close_matches(str(name), known, n=1)
                raise DataError(
                    f"context field {name!r}",
                    f"fields of the language model: {', '.join(known)}",
                    f"did you mean {near[0]!r}?" if near else "leave it out",
                )


def read_contexts(path: Path) -> dict[str, UtteranceContext]:
    """Contexts by utterance id: in ``.yaml`` ``a: {hour: 7}``; in ``.jsonl`` (also .gz, .xz) a line
    ``{"id": "a", "context": {"hour": 7}}``, whose further keys are passed over.

    Raises:
        ConfigError: a file that is no YAML.
        DataError: a file of another kind, without contexts, or with two of one id.
    """
    if path.suffix in (".yaml", ".yml"):
        rows = [(str(name), said, f"{path}: {name!r}") for name, said in read_yaml(path).items()]
    elif is_jsonl(path):
        lines = ((number, line) for number, line in enumerate(read_lines(path), 1) if line.strip())
        rows = [_named_line(line, f"{path} line {number}") for number, line in lines]
    else:
        raise DataError(f"contexts in {path}", ".jsonl or .yaml", "rename or convert the file")
    found: dict[str, UtteranceContext] = {}
    for name, said, where in rows:
        if not isinstance(said, dict) or name in found:
            given = f"a second context of {name!r}" if name in found else f"the context {said!r}"
            raise DataError(f"{where}: {given}", "fields and their values for each id once", "mend the line")
        found[name] = said
    if not found:
        raise DataError(f"{path} is empty", "contexts by utterance id", "check the file")
    return found


def _named_line(line: str, where: str) -> tuple[str, Any, str]:
    try:
        row = json.loads(line)
        return str(row["id"]), row["context"], where
    except (ValueError, TypeError, KeyError):
        raise DataError(
            f"{where}: {line!r}", '{"id": "a", "context": {"hour": 7}}', "mend the line"
        ) from None


def _refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise DataError(f"context field {name!r} = {value!r}", expected, "correct the value or leave it out")


def said_in(
    path: Path,
    lines: Iterable[str],
    text: str = "text",
    context: str | Sequence[str] = "context",
    first: int = 1,
) -> Iterator[tuple[str, UtteranceContext]]:
    """Sentences in JSON lines, each with what it was said in.

    Args:
        path: where they are from, for messages.
        lines: a JSON object each.
        text: the key of the sentence.
        context: the key of the context; or those of its fields, where they stand in the line itself.
        first: number of the first of the lines.

    Raises:
        DataError: a line without a sentence, or whose context is none.
    """
    for number, line in enumerate(lines, first):
        try:
            row = json.loads(line)
            said = row[text]
            if isinstance(context, str):
                around = row.get(context) or {}
            else:
                around = {name: row.get(name) for name in context}
        except (ValueError, KeyError, TypeError, AttributeError):
            said = around = None
        if not isinstance(said, str) or not isinstance(around, dict):
            raise DataError(
                f"{path} line {number}: {line[:60]!r}",
                f"a sentence as {text!r}, and fields with values as its context",
                "mend the line, or name the keys of sentence and context",
            )
        yield said, around
