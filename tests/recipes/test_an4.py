"""AN4 on the real corpus, and its rules on a small made-up copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.classes import EntityCatalog
from lm.errors import ConfigError, DataError
from lm.tagged_text import parse, render, strip
from recipes.corpora.an4 import CLASSES, An4Config, prepare, tag, written_form

LISTS = {"train": "train_entities.yaml", "dev": "dev_entities.yaml", "test": "entities.yaml"}
SAID = {  # one speaker's census answers, none of them real
    "surname": "Q U O X",
    "given_name": "Z E L D I N A",
    "street_number": "FIFTY TWO",
    "street": "FIVE ONE ONE FIVE E L F W A Y",
    "city": "O APOSTROPHE M A R",
    "zip": "ONE FIVE OH OH {}",
    "phone": "AREA CODE FIVE FIVE FIVE FIVE FIVE FIVE OH ONE OH {}",
    "birth_date": "MAY FIRST NINETEEN SIXTY {}",
    "other": "RUBOUT X SEVEN",
}
ONES = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX")
SPEAKERS = {"train": {"fa": "f", "fb": "f", "ma": "m", "mb": "m"}, "test": {"fc": "f", "mc": "m"}}


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A corpus of six speakers, each with a zip, phone and date of their own and names that all share."""
    root, ones = tmp_path / "an4", iter(ONES)
    for split, speakers in SPEAKERS.items():
        (root / split).mkdir(parents=True)
        (root / "audio").mkdir(exist_ok=True)
        rows: dict[str, list[str]] = {name: [] for name in ("wav.scp", "text", "utt2spk", "utt2field")}
        for speaker in speakers:
            one = next(ones)
            for field, text in SAID.items():
                id_ = f"{field}-{speaker}"
                (root / "audio" / f"{id_}.flac").touch()
                values = (f"audio/{id_}.flac", text.format(one), speaker, field)
                for name, value in zip(rows, values, strict=True):
                    rows[name].append(f"{id_} {value}\n")
        for name, lines in rows.items():
            (root / split / name).write_text("".join(sorted(lines)))
        genders = "".join(f"{speaker} {gender}\n" for speaker, gender in speakers.items())
        (root / split / "spk2gender").write_text(genders)
    return root


def table(path: Path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in path.read_text().splitlines())


def speakers_of(out: Path, split: str) -> set[str]:
    return set(table(out / split / "utt2spk").values())


def said_in(out: Path, split: str) -> Iterator[tuple[str, str]]:
    for tagged in table(out / split / "tagged").values():
        for name, spoken, _, _ in parse(tagged).entities:
            yield name, spoken


def listed_in(out: Path, split: str) -> list[tuple[str, str]]:
    catalog = EntityCatalog.load(out / LISTS[split])
    return [(name, form) for name, kind in catalog.classes.items() for e in kind.entries for form in e.spoken]


def written(values: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(name, written_form(name, spoken)) for name, spoken in values}


def check_lists(out: Path, distractors: int) -> None:
    said = {split: set(said_in(out, split)) for split in LISTS}
    known = {"train": set(), "dev": said["train"], "test": said["train"] | said["dev"]}
    for split in LISTS:
        listed = set(listed_in(out, split))
        assert said[split] <= listed
        made_up = written(listed) - written(said[split]) - written(known[split])
        assert not made_up & written(said["train"] | said["dev"] | said["test"])
        catalog = EntityCatalog.load(out / LISTS[split])
        for name in CLASSES:
            own = {value for value in written(said[split]) if value[0] == name}
            texts = [entry.text for entry in catalog.classes[name].entries]
            assert len(texts) == len(set(texts)) == len(own) + distractors
            assert texts == sorted(texts)


def same_files(one: Path, other: Path) -> bool:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    return bool(files) and all((one / f).read_bytes() == (other / f).read_bytes() for f in files)


@pytest.mark.corpora
def test_the_real_corpus(corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(corpora / "an4", tmp_path / "a", An4Config())
    printed = capsys.readouterr().out
    prepare(corpora / "an4", tmp_path / "b", An4Config())
    out = tmp_path / "a"
    train, dev, test = (speakers_of(out, split) for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (66, 8, 10)
    assert len(train | dev | test) == 84
    assert sorted(speaker[0] for speaker in dev) == ["f"] * 4 + ["m"] * 4
    texts = {split: table(out / split / "text") for split in LISTS}
    assert len(texts["test"]) == 130
    assert len(texts["train"]) + len(texts["dev"]) == 948
    for split, lines in texts.items():
        assert {id_: strip(text) for id_, text in table(out / split / "tagged").items()} == lines
        assert all(Path(path).is_file() for path in table(out / split / "wav.scp").values())
    assert same_files(out, tmp_path / "b")
    check_lists(out, 200)
    lm_text = [parse(line) for line in (out / "lm_text.txt").read_text().splitlines()]
    assert [text.surface for text in lm_text] == list(texts["train"].values())
    assert {entity[:2] for text in lm_text for entity in text.entities} == set(said_in(out, "train"))
    assert "test: 130 utterances, 10 speakers, 773 words, 70 entities" in printed
    assert "test phone: 10 utterances, 0 with a value of train, 10 unseen" in printed
    assert "warning" not in printed


def test_made_up_corpus(fake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    prepare(fake, out, An4Config(dev_speakers=2, distractors=30))
    assert sorted(speaker[0] for speaker in speakers_of(out, "dev")) == ["f", "m"]
    assert speakers_of(out, "train") | speakers_of(out, "dev") == set(SPEAKERS["train"])
    check_lists(out, 30)
    tagged = table(out / "test" / "tagged")
    assert tagged["street-fc"] == "FIVE ONE ONE FIVE <street>E L F W A Y</street>"
    assert tagged["street_number-fc"] == "FIFTY TWO"
    assert tagged["other-mc"] == "RUBOUT X SEVEN"
    printed = capsys.readouterr().out
    assert f"warning: {fake / 'train'} has 36 utterances" in printed
    assert "test surname: 2 utterances, 2 with a value of train, 0 unseen" in printed
    assert "test zip: 2 utterances, 0 with a value of train, 2 unseen" in printed


def test_a_seed_is_a_choice(fake: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prepare(fake, tmp_path / name, An4Config(seed=seed, dev_speakers=2, distractors=20))
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert listed_in(tmp_path / "a", "test") != listed_in(tmp_path / "c", "test")


def test_a_zip_said_two_ways_is_one_entry(fake: Path, tmp_path: Path) -> None:
    text = fake / "test" / "text"
    text.write_text(text.read_text().replace("ONE FIVE OH OH SIX", "ONE FIVE ZERO ZERO FIVE"))
    prepare(fake, tmp_path / "out", An4Config(dev_speakers=1, distractors=0))
    (entry,) = EntityCatalog.load(tmp_path / "out" / "entities.yaml").classes["zip"].entries
    assert (entry.text, entry.spoken) == ("15005", ("ONE FIVE OH OH FIVE", "ONE FIVE ZERO ZERO FIVE"))


@pytest.mark.parametrize(
    ("class_name", "spoken", "expected"),
    [
        ("surname", "Q U O X", "QUOX"),
        ("city", "O APOSTROPHE M A R A", "O'MARA"),
        ("street", "E A S T EIGHTY FIFTH S T R E E T", "EAST EIGHTY FIFTH STREET"),
        ("zip", "OH ONE ZERO OH NINE", "01009"),
        ("phone", "FIVE FIVE FIVE OH ONE TWO THREE", "555-0123"),
        ("phone", "TWO ONE TWO FIVE FIVE FIVE OH ONE TWO THREE", "212-555-0123"),
        ("phone", "FIVE FIVE FIVE SIXTY FIFTY FIVE", "555-6055"),
        ("phone", "FOUR OH TWELVE", "4012"),
        ("phone", "EXTENSION FOUR", "EXTENSION FOUR"),
        ("birth_date", "FIVE TWO SIXTY", "FIVE TWO SIXTY"),
    ],
)
def test_written_forms(class_name: str, spoken: str, expected: str) -> None:
    assert written_form(class_name, spoken) == expected


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("phone", "AREA CODE FIVE FIVE", "AREA CODE <phone>FIVE FIVE</phone>"),
        ("street", "FIVE T H A V E", "<street>FIVE T H A V E</street>"),
        ("street", "ONE OH ONE", "<street>ONE OH ONE</street>"),
        ("street_number", "ONE OH ONE", "ONE OH ONE"),
    ],
)
def test_tags(field: str, text: str, expected: str) -> None:
    assert render(tag(field, text)) == expected


def test_what_is_not_an4_is_named(fake: Path, tmp_path: Path) -> None:
    config = An4Config(dev_speakers=1, distractors=0)
    with pytest.raises(DataError, match=r"train has no wav\.scp"):
        prepare(tmp_path, tmp_path / "out", config)
    for file, old, new, message in (
        ("test/utt2field", "zip-fc zip", "zip-fc postcode", "zip-fc holds 'postcode'"),
        ("test/utt2spk", "zip-fc fc\n", "", "zip-fc"),
        ("test/utt2field", "zip-fc zip\n", "", "zip-fc holds None"),
        ("test/utt2spk", "zip-fc fc", "zip-fc fa", "fa speaks in train and test"),
        ("test/text", "zip-fc ONE", "zip-mc ONE", "zip-mc"),
        ("test/wav.scp", "audio/zip-fc", "audio/lost", r"lost\.flac and 0 other"),
    ):
        broken = tmp_path / "broken"
        shutil.copytree(fake, broken)
        assert old in (broken / file).read_text()
        (broken / file).write_text((broken / file).read_text().replace(old, new))
        with pytest.raises(DataError, match=message):
            prepare(broken, tmp_path / "out", config)
        shutil.rmtree(broken)


def test_too_much_asked(fake: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fewer than the 4 training speakers"):
        prepare(fake, tmp_path / "out", An4Config(dev_speakers=4))
    with pytest.raises(ConfigError, match=r"at most \d+, all there are of class"):
        prepare(fake, tmp_path / "out", An4Config(dev_speakers=1, distractors=5000))
