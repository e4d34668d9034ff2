"""Built-in number classes: how English speakers say them, and how they are written.

Each is a tree of choices (``lm.patterns``) whose words carry their written form: ``three`` ``3``, ``thirty``
``:30``. At each place the choices are equally likely, but that digits are said one by one (``one five``) is
taken to be four times as likely as in pairs (``fifteen``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from lm.errors import EntityListError
from lm.patterns import DIGITS, Alt, Cat, Part, Repeat, Word, digit, one_of

TEENS = (
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
    "twentieth",
)
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
ONE_BY_ONE, IN_PAIRS = 4.0, 1.0


def number_class(name: str) -> Part:
    """The built-in class of a name: zip, phone, time, date, year, cardinal, ordinal.

    Raises:
        EntityListError: there is no such class.
    """
    if name not in _CLASSES:
        raise EntityListError(f"number {name!r}", f"one of {', '.join(sorted(_CLASSES))}", "correct the name")
    return _build(name)


@lru_cache(maxsize=16)
def _build(name: str) -> Part:
    return _CLASSES[name]()


def _said(number: int) -> str:
    """A number below 100 in words."""
    if number < 20:
        return (*DIGITS, *TEENS)[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f" {DIGITS[ones]}" if ones else "")


def _between(low: int, high: int, form: str = "{}") -> Part:
    """The numbers from low to high, all below 100; ``form`` writes them."""
    return one_of(*(Word(_said(n), form.format(n), True) for n in range(low, high + 1)))


def _silent(said: str) -> Word:
    return Word(said, "", True)


def _optional(part: Part) -> Part:
    return Repeat(part, 0, 1)


def _digits(count: int, dashes: tuple[int, ...] = ()) -> Part:
    """``count`` digits, said one by one or in pairs; dashes are written before those positions."""
    behind: list[Part] = []  # from each later position to the end, the nearest first
    for place in range(count - 1, -1, -1):
        way = _follow(digit("-" if place in dashes else ""), behind[:1])
        if place < count - 1:
            first, second = ("-" if at in dashes else "" for at in (place, place + 1))
            pairs = one_of(
                *(Word(_said(n), f"{first}{n // 10}{second}{n % 10}", True) for n in range(10, 100))
            )
            way = Alt((way, _follow(pairs, behind[1:2])), (ONE_BY_ONE, IN_PAIRS))
        behind.insert(0, way)
    return behind[0]


def _follow(part: Part, rest: list[Part]) -> Part:
    return Cat((part, *rest)) if rest else part


def _zip() -> Part:
    return _digits(5)


def _phone() -> Part:
    return one_of(_digits(7, (3,)), _digits(10, (3, 6)))


def _below_thousand(padded: bool) -> Part:
    """1 to 999, or with zeros before it as it stands behind ``thousand``."""
    and_ = _optional(_silent("and"))
    small = Cat((and_, _between(1, 99, "{:03}"))) if padded else _between(1, 99)
    hundred = one_of(Word("hundred", "00", True), Cat((_silent("hundred"), and_, _between(1, 99, "{:02}"))))
    return one_of(small, Cat((_between(1, 9), hundred)))


def _cardinal() -> Part:
    thousand = one_of(Word("thousand", "000", True), Cat((_silent("thousand"), _below_thousand(padded=True))))
    low = _below_thousand(padded=False)
    return one_of(Word("zero", "0"), low, Cat((low, thousand)))


def _ordinal_word(number: int) -> str:
    if number <= 20:
        return ORDINALS[number - 1]
    tens, ones = divmod(number, 10)
    return f"{TENS[tens - 2]} {ORDINALS[ones - 1]}" if ones else f"{TENS[tens - 2][:-1]}ieth"


def _ordinal() -> Part:
    def ending(n: int) -> str:
        return "th" if 10 < n < 14 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")

    return one_of(*(Word(_ordinal_word(n), f"{n}{ending(n)}") for n in range(1, 100)))


def _year(before: str = "") -> Part:
    """1000 to 2099; ``before`` is written in front."""
    rest = one_of(
        Word("hundred", "00", True),
        Cat((_silent("oh"), _between(1, 9, "{:02}"))),
        _between(10, 99),
    )
    century = Cat((_between(10, 20, before + "{}"), rest))
    late = Cat(
        (Word("two thousand", f"{before}20", True), _optional(_silent("and")), _between(1, 99, "{:02}"))
    )
    return one_of(century, one_of(Word("two thousand", f"{before}2000", True), late))


def _date() -> Part:
    months = one_of(*(Word(month, month) for month in MONTHS))
    days = one_of(*(Word(_ordinal_word(n), str(n)) for n in range(1, 32)))
    plain = one_of(*(Word(_said(n), str(n)) for n in range(1, 32)))
    month_first = Cat((months, _optional(_silent("the")), one_of(days, plain), _optional(_year(", "))))
    day_first = Cat((_optional(_silent("the")), days, _silent("of"), months, _optional(_year())))
    return one_of(month_first, day_first)


def _hour(form: str = "{}", shift: int = 0) -> Part:
    return one_of(*(Word(_said(n), form.format((n + shift - 1) % 12 + 1)) for n in range(1, 13)))


def _time() -> Part:
    day_half = one_of(Word("a m", "AM"), Word("am", "AM"), Word("p m", "PM"), Word("pm", "PM"))
    minutes = one_of(
        Word("o'clock", ":00", True),
        Cat((_silent("oh"), _between(1, 9, ":{:02}"))),
        _between(10, 59, ":{}"),
    )
    past = [
        Cat((Word(f"{said} {link}", ""), _hour("{}" + mark, shift)))
        for said, link, mark, shift in (
            ("half", "past", ":30", 0),
            ("quarter", "past", ":15", 0),
            ("quarter", "to", ":45", -1),
        )
    ]
    return one_of(
        Cat((_hour(), day_half)),
        Cat((_hour(), minutes, _optional(day_half))),
        *past,
        Word("noon", "12:00 PM"),
        Word("midnight", "12:00 AM"),
    )


_CLASSES: dict[str, Callable[[], Part]] = {
    "zip": _zip,
    "phone": _phone,
    "time": _time,
    "date": _date,
    "year": _year,
    "cardinal": _cardinal,
    "ordinal": _ordinal,
}
