"""One entry of an entity list, and one class of entries."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lm.errors import EntityListError
from lm.patterns import REFERENCE, Part, parse_pattern, parse_template
from lm.spoken_numbers import number_class
from lm.tagged_text import CLASS_NAME

Kind = Literal["words", "pattern", "number"]
FIELDS = ("text", "spoken", "weight", "id", "pattern", "number")
Key = tuple[str, tuple[str, ...], bool, str, str]


@dataclass(frozen=True, slots=True)
class EntityEntry:
    r"""One entity, or with ``kind`` pattern or number a family of them.

    ``text`` is the written form; ``spoken`` how it may be said (``text`` if not given); ``weight`` its share
    of the class's probability relative to the other entries; ``id`` is handed back with results. Spoken forms
    may name other classes, ``<contact>'s <device>``; the same names in ``text`` are then filled in. Of a
    pattern (``flat \d{1,3}``, see ``lm.patterns``) or a built-in number class (``zip``) ``text`` is all.
    """

    text: str
    spoken: tuple[str, ...] = ()
    weight: float = 1.0
    id: str | None = None
    kind: Kind = "words"

    def __post_init__(self) -> None:
        if not (0.0 < self.weight < math.inf):
            problem = f"weight {self.weight!r} of entry {self.text!r}"
            raise EntityListError(problem, "a positive finite number", "correct the weight")
        text = " ".join(self.text.split())
        if not text:
            raise EntityListError("an entry without text", "a written form", "remove the entry or name it")
        if text != self.text:
            object.__setattr__(self, "text", text)
        if self.spoken:
            forms = dict.fromkeys(" ".join(form.split()) for form in self.spoken)
            object.__setattr__(self, "spoken", tuple(form for form in forms if form) or (text,))
        else:
            object.__setattr__(self, "spoken", (text,))
        if self.kind != "words":
            self._check_family()
        elif "<" in text or (self.spoken[0] is not text and "<" in "".join(self.spoken)):
            self._check_references()

    @property
    def key(self) -> Key:
        """What entries that are the same share, and what sorts them: text, spoken forms, id, kind."""
        spoken = self.spoken if len(self.spoken) == 1 else tuple(sorted(self.spoken))
        return self.text, spoken, self.id is not None, self.id or "", self.kind

    def part(self, form: str) -> Part | None:
        """What a spoken form stands for if it is more than its own words, else None."""
        if self.kind == "pattern":
            return parse_pattern(form)
        if self.kind == "number":
            return number_class(form)
        return parse_template(form) if "<" in form and REFERENCE.search(form) else None

    def _check_family(self) -> None:
        if self.spoken != (self.text,):
            given = f"spoken forms of the {self.kind} {self.text!r}"
            raise EntityListError(given, f"none, the {self.kind} says them", "remove them")
        self.part(self.text)

    def _check_references(self) -> None:
        """Each spoken form must say what the written form fills in."""
        wanted = sorted(REFERENCE.findall(self.text))
        for form in self.spoken:
            self.part(form)
            said = REFERENCE.findall(form)
            for name in set(wanted):
                if wanted.count(name) > said.count(name):
                    problem = f"spoken form {form!r} of {self.text!r} does not say <{name}>"
                    raise EntityListError(problem, "every class that the text names", "correct either")


@dataclass(frozen=True)
class EntityClass:
    """The entries of one class, none twice.

    ``cost`` in nats is taken off the log odds of the class wherever it may be entered.
    """

    name: str
    entries: tuple[EntityEntry, ...]
    cost: float = 0.0


def class_name(name: Any, where: str) -> str:
    """``name`` if a class may be called that; the error begins with ``where``."""
    if not isinstance(name, str) or not CLASS_NAME.fullmatch(name):
        raise EntityListError(f"{where}: class name {name!r}", "a name like 'contact'", "rename the class")
    return name


def class_cost(cost: Any, where: str) -> float:
    """A class's cost as a number; the error begins with ``where``."""
    number = _number(cost)
    if not math.isfinite(number):
        raise EntityListError(f"{where}: cost {cost!r}", "a finite number of nats", "correct it")
    return number


def entry_of(given: Any, where: str) -> EntityEntry:
    """An entry from a string or a mapping; every error begins with ``where``."""
    if isinstance(given, EntityEntry):
        return given
    if not isinstance(given, (str, Mapping)):
        raise EntityListError(f"{where}: {given!r}", "a string or a mapping with 'text'", "correct the entry")
    try:
        return EntityEntry(given) if isinstance(given, str) else _from_mapping(given)
    except EntityListError as error:
        raise EntityListError(f"{where}: {error.given}", error.expected, error.fix) from None


def _from_mapping(values: Mapping[Any, Any]) -> EntityEntry:
    check_fields(values, FIELDS)
    kinds: list[Kind] = [kind for kind in ("pattern", "number") if values.get(kind) is not None]
    kind: Kind = kinds[0] if kinds else "words"
    if kinds and (len(kinds) > 1 or values.get("text") is not None):
        raise EntityListError(f"{dict(values)}", "one of 'text', 'pattern' and 'number'", "correct the entry")
    spoken = values.get("spoken") or ()
    forms = (spoken,) if isinstance(spoken, str) else spoken
    text, id_ = values.get(kinds[0] if kinds else "text"), values.get("id")
    listed = isinstance(forms, (list, tuple)) and all(isinstance(form, str) for form in forms)
    if not isinstance(text, str) or not listed:
        wanted = f"{kind!r}" if kinds else "'text' and 'spoken'"
        raise EntityListError(f"{dict(values)}", f"{wanted} to be text", "correct the entry")
    weight = values.get("weight", 1.0)
    number = _number(weight)
    if math.isnan(number):
        raise EntityListError(f"weight {weight!r}", "a positive number", "correct it")
    return EntityEntry(text, tuple(forms), number, None if id_ is None else str(id_), kind)


def check_fields(given: Iterable[Any], known: Sequence[str], where: str = "") -> None:
    """Refuse a column or key that means nothing; the error begins with ``where``."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            fix = f"did you mean {near[0]!r}?" if near else "remove it"
            raise EntityListError(f"{where}unknown column {name!r}", f"some of {', '.join(known)}", fix)


def _number(given: Any) -> float:
    """A number, nan if it is none."""
    try:
        return math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        return math.nan
