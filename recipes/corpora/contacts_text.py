"""Sentences and entity lists of the synthetic ``contacts`` corpus: assistant commands with tagged names."""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from lm.errors import ConfigError
from recipes.corpora import contacts_words as words

Split = Literal["train", "dev", "test"]

CLASSES = ("contact", "city", "street", "song")

# Tenths of every word list that go to train, dev and test.
_SHARES: tuple[tuple[Split, int], ...] = (("train", 6), ("dev", 1), ("test", 3))
_FREE_SHARE = 0.25

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "contact": (
        "CALL {contact}",
        "CALL {contact} ON SPEAKER",
        "PLEASE CALL {contact} AT WORK",
        "SEND A MESSAGE TO {contact}",
        "TEXT {contact} THAT I AM RUNNING LATE",
        "TELL {contact} I WILL BE THERE SOON",
        "DID {contact} REPLY TO MY MESSAGE",
        "READ MY LAST MESSAGE FROM {contact}",
        "ADD {contact} TO THE MEETING",
        "REMIND ME TO CALL {contact} TOMORROW",
        "START A VIDEO CALL WITH {contact}",
        "CANCEL LUNCH WITH {contact}",
        "WHEN IS {contact} FREE THIS WEEK",
        "INVITE {contact} AND {contact} TO DINNER",
    ),
    "city": (
        "WHAT IS THE WEATHER IN {city}",
        "HOW FAR IS IT TO {city}",
        "FIND A FLIGHT TO {city}",
        "BOOK A HOTEL IN {city} FOR TWO NIGHTS",
        "WHAT TIME IS IT IN {city}",
        "SHOW ME THE NEWS FROM {city}",
        "WILL IT RAIN IN {city} TOMORROW",
        "WHEN IS THE NEXT TRAIN FROM {city} TO {city}",
        "DRIVE TO {city}",
    ),
    "street": (
        "DRIVE TO {street}",
        "TAKE ME TO {street}",
        "HOW IS THE TRAFFIC ON {street}",
        "FIND PARKING NEAR {street}",
        "AVOID {street} ON THE WAY HOME",
        "WHERE IS {street}",
        "TURN LEFT ON {street}",
        "IS THERE A PHARMACY ON {street}",
    ),
    "song": (
        "PLAY {song}",
        "PLAY {song} AGAIN",
        "PLAY {song} IN THE KITCHEN",
        "ADD {song} TO MY PLAYLIST",
        "WHO SINGS {song}",
        "I WANT TO HEAR {song}",
        "SKIP {song}",
        "TURN UP THE VOLUME AND PLAY {song}",
    ),
    "mixed": (
        "DRIVE TO {street} IN {city}",
        "NAVIGATE TO {street} IN {city}",
        "TELL {contact} I AM ON {street}",
        "SEND {song} TO {contact}",
        "CALL {contact} IN {city}",
        "ASK {contact} ABOUT THE FLIGHT TO {city}",
    ),
}

# Some share words with the templates above, so that 'play' or 'call' alone promises no entity.
_FREE_TEMPLATES = (
    "SET A TIMER FOR {number} MINUTES",
    "SET A TIMER FOR {number} SECONDS",
    "WAKE ME UP AT {hour}",
    "SET AN ALARM FOR {hour} IN THE {daytime}",
    "CANCEL MY ALARM FOR {hour}",
    "TURN {onoff} THE {room} LIGHTS",
    "TURN {onoff} THE HEATING IN THE {room}",
    "DIM THE {room} LIGHTS TO {number} PERCENT",
    "WHAT IS THE WEATHER {day}",
    "WILL IT RAIN {day}",
    "DO I NEED A COAT {day}",
    "WHAT IS ON MY CALENDAR {day}",
    "SET THE VOLUME TO {number}",
    "PLAY SOME MUSIC IN THE {room}",
    "PLAY THE NEXT SONG",
    "STOP THE MUSIC",
    "CALL ME A TAXI FOR {hour}",
    "READ MY MESSAGES",
    "DRIVE HOME",
    "HOW LONG IS MY DRIVE TO WORK {day}",
    "ADD {item} TO MY SHOPPING LIST",
    "WHAT TIME IS IT",
    "HOW MANY {item} ARE LEFT",
    "REMIND ME TO BUY {item} {day}",
)

_TENS = ("TWENTY", "THIRTY", "FORTY", "FIFTY")
_ONES = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
_TEENS = (
    *("TEN", "ELEVEN", "TWELVE", "THIRTEEN", "FOURTEEN", "FIFTEEN", "SIXTEEN"),
    *("SEVENTEEN", "EIGHTEEN", "NINETEEN"),
)
_NUMBERS = (*_ONES[1:], *_TEENS, *_TENS, *(f"{tens} {one}" for tens in _TENS for one in _ONES))
_HOURS = (*_ONES, *_TEENS[:3])
_FILLERS: dict[str, tuple[str, ...]] = {
    "number": _NUMBERS,
    "hour": (*_HOURS, *(f"{hour} {part}" for hour in _HOURS for part in ("THIRTY", "FIFTEEN", "FORTY FIVE"))),
    "daytime": ("MORNING", "AFTERNOON", "EVENING"),
    "onoff": ("ON", "OFF"),
    "room": ("KITCHEN", "BEDROOM", "BATHROOM", "GARAGE", "LIVING ROOM", "OFFICE", "HALLWAY", "GARDEN"),
    "day": (
        "TODAY",
        "TOMORROW",
        "TONIGHT",
        "THIS WEEKEND",
        "ON MONDAY",
        "ON FRIDAY",
        "NEXT WEEK",
        "THIS MORNING",
    ),
    "item": ("EGGS", "APPLES", "ONIONS", "BATTERIES", "TOMATOES", "CANDLES", "NAPKINS", "COOKIES", "LEMONS"),
}

_SONG_PATTERNS = (
    "{adjective} {noun}",
    "{adjective} {nouns}",
    "THE {adjective} {noun}",
    "{noun} OF {place}",
    "{noun} AND {other}",
    "{gerund} IN {place}",
    "{gerund} THE {noun}",
    "{gerund} WITHOUT YOU",
    "MY {adjective} {noun}",
    "NO MORE {nouns}",
    "{adjective} IN {place}",
    "{noun} FOR {nouns}",
)


@dataclass(frozen=True)
class EntityPool:
    """The parts that one split composes its names from.

    Last names, towns and street stems belong to one split each, and so does every song title: no entity of
    one split can be composed in another.
    """

    split: Split
    seed: int
    last_names: tuple[str, ...]
    real_cities: tuple[str, ...]
    made_up_cities: tuple[str, ...]
    street_stems: tuple[str, ...]

    def draw(self, class_name: str, chance: random.Random) -> str:
        """One entity of a class, upper case."""
        if class_name == "contact":
            return f"{chance.choice(words.FIRST_NAMES)} {chance.choice(self.last_names)}"
        if class_name == "city":
            return self._city(chance)
        if class_name == "street":
            middle = f"{chance.choice(words.STREET_MIDDLES)} " if chance.random() < 0.5 else ""
            return f"{chance.choice(self.street_stems)} {middle}{chance.choice(words.STREET_ENDINGS)}"
        if class_name == "song":
            return self._song(chance)
        raise ConfigError(f"entity class {class_name!r}", f"one of {', '.join(CLASSES)}", "correct the name")

    def distinct(
        self, class_name: str, count: int, chance: random.Random, without: Collection[str] = ()
    ) -> list[str]:
        """``count`` different entities of a class, none of them in ``without``."""
        found: dict[str, None] = {}
        for _ in range(100 * count + 1000):
            if len(found) == count:
                return list(found)
            entity = self.draw(class_name, chance)
            if entity not in without:
                found[entity] = None
        raise ConfigError(
            f"{count} more entities of class {class_name!r} for {self.split}",
            f"at most {len(found)}",
            "ask for fewer distractors",
        )

    def _city(self, chance: random.Random) -> str:
        base = chance.choice(self.real_cities if chance.random() < 0.5 else self.made_up_cities)
        if chance.random() < 0.2 and " " not in base:
            return f"{chance.choice(words.CITY_PREFIXES)} {base}"
        return base

    def _song(self, chance: random.Random) -> str:
        while True:
            noun, other = chance.sample(words.NOUNS, 2)
            title = chance.choice(_SONG_PATTERNS).format_map(
                {
                    "adjective": chance.choice(words.ADJECTIVES),
                    "noun": noun,
                    "other": other,
                    "nouns": _plural(other),
                    "gerund": chance.choice(words.GERUNDS),
                    "place": chance.choice(words.PLACES),
                }
            )
            if _song_split(title, self.seed) == self.split:
                return title


def entity_pools(seed: int) -> dict[Split, EntityPool]:
    """The pools of the three splits, disjoint by construction."""
    made_up = [stem + end for stem in words.CITY_STEMS for end in words.CITY_ENDINGS if stem[-1] != end[0]]
    taken = set(words.REAL_CITIES)
    parts = {
        "last_names": _divide(words.LAST_NAMES, f"{seed}/last_names"),
        "real_cities": _divide(words.REAL_CITIES, f"{seed}/real_cities"),
        "made_up_cities": _divide([town for town in made_up if town not in taken], f"{seed}/made_up"),
        "street_stems": _divide(words.STREET_STEMS, f"{seed}/streets"),
    }
    return {
        split: EntityPool(split, seed, **{name: part[split] for name, part in parts.items()})
        for split, _ in _SHARES
    }


def sentence(pool: EntityPool, chance: random.Random) -> str:
    """One command as tagged text, upper case; about a quarter hold no entity."""
    if chance.random() < _FREE_SHARE:
        template = chance.choice(_FREE_TEMPLATES)
        return template.format_map({name: chance.choice(values) for name, values in _FILLERS.items()})
    template = chance.choice(_TEMPLATES[chance.choice(tuple(_TEMPLATES))])
    # Slot by slot, so that a template with the same class twice gets two entities.
    for class_name in CLASSES:
        slot = f"{{{class_name}}}"
        while slot in template:
            entity = pool.draw(class_name, chance)
            template = template.replace(slot, f"<{class_name}>{entity}</{class_name}>", 1)
    return template


def _plural(noun: str) -> str:
    if noun.endswith("Y") and noun[-2] not in "AEIOU":
        return f"{noun[:-1]}IES"
    return f"{noun}ES" if noun.endswith(("S", "CH", "SH", "X")) else f"{noun}S"


def _divide(items: Sequence[str], seed: str) -> dict[Split, tuple[str, ...]]:
    shuffled = sorted(items)
    random.Random(seed).shuffle(shuffled)
    divided: dict[Split, tuple[str, ...]] = {}
    begin = 0
    for split, tenths in _SHARES:
        end = begin + len(shuffled) * tenths // 10 if split != "test" else len(shuffled)
        divided[split] = tuple(shuffled[begin:end])
        begin = end
    return divided


def _song_split(title: str, seed: int) -> Split:
    tenth = zlib.crc32(f"{seed}/{title}".encode()) % 10
    for split, tenths in _SHARES:
        if tenth < tenths:
            return split
        tenth -= tenths
    raise AssertionError("the shares add up to ten")
