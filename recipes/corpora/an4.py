"""AN4 (CMU, about 1991): spelled names, streets and cities, numbers and dates, cut into train, dev and test.

The census fields of an utterance are its entities, so the corpus comes with class-tagged transcripts and with
entity lists in which the true values hide among distractors.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from pydantic import Field

from lm.config import Config
from lm.errors import ConfigError, DataError
from lm.tagged_text import Segment, TaggedText, render
from recipes.console import say
from recipes.corpora.an4_values import DIGITS, MAKERS, TEENS, TENS

CLASSES = ("surname", "given_name", "street", "city", "zip", "phone", "birth_date")
PLAIN_FIELDS = ("street_number", "other")
FILES = ("wav.scp", "text", "utt2spk", "utt2field")
UTTERANCES = {"train": 948, "test": 130}
_NUMBERS = {word: str(value) for value, word in enumerate((*DIGITS, *TEENS))} | {"ZERO": "0"}
_TENS = {word: str(value) for value, word in enumerate(TENS, 2)}

Values = dict[str, dict[str, tuple[str, ...]]]
"""By class, the written form of each value and the ways it is spoken."""


class An4Config(Config):
    """How AN4 is cut and how its entity lists are filled."""

    seed: int = 0
    """Chooses the dev speakers and the distractors."""
    dev_speakers: int = Field(default=8, ge=1)
    """Speakers taken out of the original training set for dev, as evenly by gender as possible."""
    distractors: int = Field(default=200, ge=0)
    """Entries a class that an entity list has beyond the values said in its split."""


@dataclass(frozen=True)
class An4Utterance:
    """One line of AN4; ``field`` is what the utterance holds, ``gender`` is '' where unknown."""

    id: str
    speaker: str
    gender: str
    field: str
    text: str
    audio: Path

    @property
    def tagged(self) -> TaggedText:
        """The transcript with its census value as an entity."""
        return tag(self.field, self.text)


def prepare(corpus_dir: Path, out_dir: Path, config: An4Config) -> None:
    """Write train, dev and test folders, entity lists and LM text to ``out_dir``, and print what is in them.

    Each folder holds wav.scp (absolute paths), text, utt2spk, utt2field and tagged. ``entities.yaml`` is the
    test list, with train and dev values as first distractors; ``dev_entities.yaml`` takes them from train,
    and ``train_entities.yaml`` has made-up ones only. A made-up entry never equals a value of any split.
    ``lm_text.txt`` is the tagged train text.

    Raises:
        DataError: ``corpus_dir`` is not AN4.
        ConfigError: more dev speakers or distractors than there are.
    """
    train, test = read_split(corpus_dir, "train"), read_split(corpus_dir, "test")
    shared = {u.speaker for u in train} & {u.speaker for u in test}
    if shared:
        raise DataError(
            f"{corpus_dir}: {min(shared)} speaks in train and test",
            "other speakers in test",
            "restore the corpus",
        )
    held_out = choose_dev_speakers(train, config)
    splits = {
        "train": [u for u in train if u.speaker not in held_out],
        "dev": [u for u in train if u.speaker in held_out],
        "test": test,
    }
    values = {name: entity_values(utterances) for name, utterances in splits.items()}
    sources: dict[str, list[str]] = {"train": [], "dev": ["train"], "test": ["train", "dev"]}
    lists = {
        name: entity_list(
            values[name], [values[s] for s in sources[name]], list(values.values()), name, config
        )
        for name in splits
    }
    for name, utterances in splits.items():
        _write_split(out_dir / name, utterances)
        file = "entities.yaml" if name == "test" else f"{name}_entities.yaml"
        _write_entities(out_dir / file, lists[name])
    _write_lines(out_dir / "lm_text.txt", (render(u.tagged) for u in splits["train"]))
    for line in statistics(splits, values):
        say(line)


def read_split(corpus_dir: Path, split: str) -> list[An4Utterance]:
    """Utterances of the original ``train`` or ``test``, by id.

    Raises:
        DataError: a file is missing, the files list different utterances, or a field is unknown.
    """
    folder = corpus_dir / split
    audio, text, speaker, field = (_read_table(folder / name) for name in FILES)
    for name, table in zip(FILES[1:], (text, speaker, field), strict=True):
        differing = set(audio) ^ set(table)
        if differing:
            raise DataError(
                f"{folder}: {min(differing)} is in only one of wav.scp and {name}",
                "the same utterances in all files",
                "restore the corpus",
            )
    gender = _read_table(folder / "spk2gender")
    for id_, kind in field.items():
        if kind not in CLASSES + PLAIN_FIELDS:
            raise DataError(
                f"{folder / 'utt2field'}: {id_} holds {kind!r}",
                f"one of {', '.join(CLASSES + PLAIN_FIELDS)}",
                "restore the corpus",
            )
    if len(audio) != UTTERANCES[split]:
        say(f"warning: {folder} has {len(audio)} utterances, the published set has {UTTERANCES[split]}")
    root = corpus_dir.resolve()
    utterances = [
        An4Utterance(
            id_, speaker[id_], gender.get(speaker[id_], ""), field[id_], text[id_], root / audio[id_]
        )
        for id_ in sorted(audio)
    ]
    lost = [u.audio for u in utterances if not u.audio.is_file()]
    if lost:
        raise DataError(
            f"{lost[0]} and {len(lost) - 1} other recordings are missing",
            "every recording of wav.scp",
            "restore the corpus",
        )
    return utterances


def tag(field: str, text: str) -> TaggedText:
    """Mark the census value of an utterance.

    It is the whole utterance, except that a house number said before a street and AREA CODE before a phone
    number stay outside.
    """
    if field not in CLASSES:
        return TaggedText((Segment(text),))
    words = text.split()
    numbers = 0
    while numbers < len(words) - 1 and _is_number(words[numbers]):
        numbers += 1
    start = 0
    if field == "street" and numbers >= 3:  # fewer may be the street's own: FIVE T H A V E N U E
        start = numbers
    if field == "phone" and words[:2] == ["AREA", "CODE"] and len(words) > 2:
        start = 2
    value = Segment(" ".join(words[start:]), field)
    return TaggedText((Segment(" ".join(words[:start])), value) if start else (value,))


def written_form(class_name: str, spoken: str) -> str:
    """How a spoken value is written: zip and phone in digits, letters joined to names, dates as said."""
    words = spoken.split()
    if class_name == "birth_date":
        return spoken
    if class_name in ("zip", "phone"):
        if not all(map(_is_number, words)):
            return spoken
        digits = _digits(words)
        cuts = {7: (3,), 10: (3, 6)}.get(len(digits), ()) if class_name == "phone" else ()
        return "-".join(digits[a:b] for a, b in zip((0, *cuts), (*cuts, None), strict=True))
    parts: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        letter = "'" if word == "APOSTROPHE" else word
        if parts and len(letter) == 1 and (len(before) == 1 or before == "APOSTROPHE"):
            parts[-1] += letter
        else:
            parts.append(letter)
    return " ".join(parts).replace(" '", "'")


def choose_dev_speakers(train: Sequence[An4Utterance], config: An4Config) -> set[str]:
    """Speakers for dev, alternating between the genders while both last.

    Raises:
        ConfigError: no speaker would be left for training.
    """
    gender = {u.speaker: u.gender for u in train}
    if config.dev_speakers >= len(gender):
        raise ConfigError(
            f"dev_speakers = {config.dev_speakers}",
            f"fewer than the {len(gender)} training speakers",
            "lower dev_speakers",
        )
    rng = random.Random(config.seed)
    groups = [
        rng.sample(group, len(group))
        for kind in sorted(set(gender.values()))
        if (group := sorted(s for s, g in gender.items() if g == kind))
    ]
    turns = [speaker for turn in zip_longest(*groups) for speaker in turn if speaker is not None]
    return set(turns[: config.dev_speakers])


def entity_values(utterances: Iterable[An4Utterance]) -> Values:
    """The values said in some utterances."""
    found: dict[str, dict[str, set[str]]] = {name: {} for name in CLASSES}
    for utterance in utterances:
        for name, spoken, _, _ in utterance.tagged.entities:
            found[name].setdefault(written_form(name, spoken), set()).add(spoken)
    return {name: {w: tuple(sorted(s)) for w, s in sorted(kind.items())} for name, kind in found.items()}


def entity_list(
    own: Values, real: Sequence[Values], known: Sequence[Values], split: str, config: An4Config
) -> Values:
    """All of ``own`` among ``config.distractors`` others a class: those of ``real`` first, then made-up ones.

    Made-up ones equal none of ``known``. The same seed gives the same list.

    Raises:
        ConfigError: a class has not enough distractors.
    """
    return {name: _fill(name, own, real, known, split, config) for name in CLASSES}


def _fill(
    name: str, own: Values, real: Sequence[Values], known: Sequence[Values], split: str, config: An4Config
) -> dict[str, tuple[str, ...]]:
    rng = random.Random(f"{config.seed} {split} {name}")
    entries = dict(own[name])
    size = len(entries) + config.distractors
    others = {w: s for values in reversed(real) for w, s in values[name].items() if w not in entries}
    for written in rng.sample(sorted(others), min(config.distractors, len(others))):
        entries[written] = others[written]
    taken = set(chain.from_iterable(values[name] for values in known))
    makers = MAKERS[name](rng)
    while len(entries) < size:
        spoken = next(makers, None)
        if spoken is None:
            raise ConfigError(
                f"distractors = {config.distractors}",
                f"at most {config.distractors - size + len(entries)}, all there are of class {name}",
                "lower distractors",
            )
        written = written_form(name, spoken)
        if written not in taken:
            entries.setdefault(written, (spoken,))
    return dict(sorted(entries.items()))


def statistics(splits: Mapping[str, Sequence[An4Utterance]], values: Mapping[str, Values]) -> list[str]:
    """What is in the splits, and how many test values the training set holds too, as lines to print."""
    lines = []
    for name, utterances in splits.items():
        entities = [entity for u in utterances for entity in u.tagged.entities]
        words = sum(len(u.text.split()) for u in utterances)
        share = sum(end - start for _, _, start, end in entities) / max(words, 1)
        speakers = len({u.speaker for u in utterances})
        lines.append(
            f"{name}: {len(utterances)} utterances, {speakers} speakers, {words} words, "
            f"{len(entities)} entities with {share:.1%} of the words"
        )
    for kind in CLASSES:
        said = [
            written_form(kind, spoken)
            for u in splits["test"]
            for name, spoken, _, _ in u.tagged.entities
            if name == kind
        ]
        seen = sum(written in values["train"][kind] for written in said)
        lines.append(
            f"test {kind}: {len(said)} utterances, {seen} with a value of train, {len(said) - seen} unseen"
        )
    return lines


def _is_number(word: str) -> bool:
    return word in _NUMBERS or word in _TENS


def _digits(words: Sequence[str]) -> str:
    """Number words as digits: SIXTY FIFTY FIVE is 6055."""
    digits = ""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in _TENS:
            digits += _TENS[word] + ("" if after in DIGITS[1:] else "0")
        else:
            digits += _NUMBERS[word]
    return digits


def _read_table(path: Path) -> dict[str, str]:
    """``id value`` lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error})",
            f"the AN4 folder, with {', '.join(FILES)} and spk2gender in train and test",
            "point to the folder that holds train, test and audio",
        ) from None
    table: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        id_, _, value = line.partition(" ")
        if not id_ or not value.strip() or id_ in table:
            raise DataError(f"{path}:{number}: {line!r}", "'id value', every id once", "restore the corpus")
        table[id_] = " ".join(value.split())
    return table


def _write_split(folder: Path, utterances: Sequence[An4Utterance]) -> None:
    _write_lines(folder / "wav.scp", (f"{u.id} {u.audio}" for u in utterances))
    _write_lines(folder / "text", (f"{u.id} {u.text}" for u in utterances))
    _write_lines(folder / "utt2spk", (f"{u.id} {u.speaker}" for u in utterances))
    _write_lines(folder / "utt2field", (f"{u.id} {u.field}" for u in utterances))
    _write_lines(folder / "tagged", (f"{u.id} {render(u.tagged)}" for u in utterances))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_entities(path: Path, values: Values) -> None:
    """A list that ``EntityCatalog.load`` reads; classes without entries are left out."""
    import yaml

    content = {
        name: [w if s == (w,) else {"text": w, "spoken": list(s)} for w, s in kind.items()]
        for name, kind in values.items()
        if kind
    }
    path.write_text(
        yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=1000), encoding="utf-8"
    )
