"""AN4 (CMU, about 1991): spelled names, streets and cities, numbers and dates, cut into train, dev and test.

The census fields of an utterance are its entities, so the corpus comes with class-tagged transcripts and with
entity lists in which the true values hide among distractors.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path

from pydantic import Field

from asr.data.kaldi import Utterance, read_data_dir, read_table, write_data_dir
from lm.config import Config
from lm.errors import ConfigError, DataError
from lm.tagged_text import Segment, TaggedText, parse, render
from recipes.console import say
from recipes.corpora.an4_values import DIGITS, MAKERS, TEENS, TENS
from recipes.corpora.corpus import Corpus

CLASSES = ("surname", "given_name", "street", "city", "zip", "phone", "birth_date")
PLAIN_FIELDS = ("street_number", "other")
FILES = ("wav.scp", "text", "utt2spk", "utt2field", "spk2gender")
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
    gender = read_table(corpus_dir / "train" / "spk2gender")
    held_out = choose_dev_speakers({u.speaker: gender.get(u.speaker, "") for u in train}, config)
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
        write_data_dir(utterances, out_dir / name)
        file = "entities.yaml" if name == "test" else f"{name}_entities.yaml"
        _write_entities(out_dir / file, lists[name])
    lm_text = "".join(f"{u.extra['tagged']}\n" for u in splits["train"])
    (out_dir / "lm_text.txt").write_text(lm_text, encoding="utf-8")
    for line in statistics(splits, values):
        say(line)


def read_split(corpus_dir: Path, split: str) -> list[Utterance]:
    """Utterances of the original ``train`` or ``test``, by id, with ``field`` and ``tagged`` in ``extra``.

    Raises:
        DataError: a file is missing or damaged, or an utterance has no known field.
    """
    folder = corpus_dir / split
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} has no {missing[0]}",
            f"the AN4 folder, with {', '.join(FILES)} in train and in test",
            "point to the folder that holds train, test and audio",
        )
    utterances = sorted(read_data_dir(folder, root=corpus_dir.resolve()), key=lambda u: u.id)
    for utterance in utterances:
        if utterance.extra.get("field") not in CLASSES + PLAIN_FIELDS:
            raise DataError(
                f"{folder / 'utt2field'}: {utterance.id} holds {utterance.extra.get('field')!r}",
                f"one of {', '.join(CLASSES + PLAIN_FIELDS)}",
                "restore the corpus",
            )
    if len(utterances) != UTTERANCES[split]:
        say(f"warning: {folder} has {len(utterances)} utterances, the published set has {UTTERANCES[split]}")
    lost = [u.audio for u in utterances if not u.audio.is_file()]
    if lost:
        raise DataError(
            f"{lost[0]} and {len(lost) - 1} other recordings are missing",
            "every recording of wav.scp",
            "restore the corpus",
        )
    return [
        replace(u, extra={**u.extra, "tagged": render(tag(u.extra["field"], u.text))}) for u in utterances
    ]


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


def choose_dev_speakers(gender: Mapping[str, str], config: An4Config) -> set[str]:
    """Speakers for dev out of those with a ``gender`` ('' if unknown), alternating while all genders last.

    Raises:
        ConfigError: no speaker would be left for training.
    """
    if config.dev_speakers >= len(gender):
        raise ConfigError(
            f"dev_speakers = {config.dev_speakers}",
            f"fewer than the {len(gender)} training speakers",
            "lower dev_speakers",
        )
    rng = random.Random(config.seed)
    groups = [sorted(s for s, g in gender.items() if g == kind) for kind in sorted(set(gender.values()))]
    shuffled = [rng.sample(group, len(group)) for group in groups]
    turns = [speaker for turn in zip_longest(*shuffled) for speaker in turn if speaker is not None]
    return set(turns[: config.dev_speakers])


def entity_values(utterances: Iterable[Utterance]) -> Values:
    """The values said in some utterances."""
    found: dict[str, dict[str, set[str]]] = {name: {} for name in CLASSES}
    for utterance in utterances:
        for name, spoken, _, _ in parse(utterance.extra["tagged"]).entities:
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


def statistics(splits: Mapping[str, Sequence[Utterance]], values: Mapping[str, Values]) -> list[str]:
    """What is in the splits, and how many test values the training set holds too, as lines to print."""
    lines = []
    for name, utterances in splits.items():
        entities = [entity for u in utterances for entity in parse(u.extra["tagged"]).entities]
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
            for name, spoken, _, _ in parse(u.extra["tagged"]).entities
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


CORPUS = Corpus(
    name="an4",
    config=An4Config,
    prepare=prepare,
    description="prepare an4 from {source}",
    inputs=lambda source, config: (source / "train", source / "test"),
    classes=CLASSES,
    lists="corpus",
)
