from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.classes import EntityCatalog
from lm.errors import ConfigError, DataError, VocativeError
from lm.tagged_text import parse
from recipes.corpora import contacts, contacts_synth, contacts_words
from recipes.corpora.contacts import ContactsConfig, contacts_stage, make_contacts, plan_split
from recipes.corpora.contacts_synth import (
    ACCENTS,
    SAMPLE_RATE,
    SPEAKERS,
    Engine,
    Studio,
    Utterance,
    add_noise,
    pinken,
    reverberate,
)
from recipes.corpora.contacts_text import CLASSES, entity_pools, sentence
from recipes.recipe import Recipe, is_disk_full

TINY = ContactsConfig(train=6, dev=2, test=4, distractors=5, train_distractors=3, lm_sentences=20, seed=7)
SPLITS = ("train", "dev", "test")
POOLS = entity_pools(0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("contacts") / "corpus"
    make_contacts(TINY, folder)
    return folder


def table(path: Path) -> dict[str, str]:
    rows = (line.partition(" ") for line in path.read_text().splitlines())
    return {key: value for key, _, value in rows}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, without the folder's own name in wav.scp."""
    return {
        str(path.relative_to(folder)): path.read_bytes().replace(str(folder.resolve()).encode(), b"")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Text and lists


@pytest.mark.parametrize("seed", [0, 1])
def test_a_thousand_of_each_class_and_no_entity_in_two_splits(seed: int) -> None:
    pools = entity_pools(seed)
    for class_name in CLASSES:
        lists = [set(pools[s].distinct(class_name, 1000, random.Random(3))) for s in SPLITS]
        assert [len(entries) for entries in lists] == [1000, 1000, 1000]
        train, dev, test = lists
        assert not train & dev
        assert not train & test
        assert not dev & test
        for entry in train | dev | test:
            assert re.fullmatch("[A-Z]+( [A-Z]+)*", entry)


def test_last_names_and_street_stems_are_disjoint() -> None:
    pools = entity_pools(0)

    def parts(class_name: str, position: int) -> list[set[str]]:
        chance = random.Random(5)
        return [{e.split()[position] for e in pools[s].distinct(class_name, 1000, chance)} for s in SPLITS]

    for train, dev, test in (parts("contact", -1), parts("street", 0)):
        assert min(len(train), len(dev), len(test)) > 10
        assert not (train & dev) | (train & test) | (dev & test)


def test_more_entities_than_there_are() -> None:
    with pytest.raises(ConfigError, match="more entities of class 'contact'"):
        replace(entity_pools(0)["dev"], last_names=("LOPEZ",)).distinct("contact", 500, random.Random(0))
    with pytest.raises(ConfigError, match="entity class 'app'"):
        entity_pools(0)["dev"].draw("app", random.Random(0))


@given(st.integers(0, 2**32), st.sampled_from(SPLITS))
@settings(max_examples=50)
def test_every_sentence_parses_and_is_plain_upper_case(seed: int, split: Any) -> None:
    tagged = parse(sentence(POOLS[split], random.Random(seed)))
    assert re.fullmatch("[A-Z]+( [A-Z]+)*", tagged.surface)
    assert {name for name, *_ in tagged.entities} <= set(CLASSES)


def test_a_quarter_hold_no_entity_and_every_class_occurs() -> None:
    chance = random.Random(0)
    found = [parse(sentence(POOLS["train"], chance)).entities for _ in range(1000)]
    assert 0.2 < sum(not entities for entities in found) / len(found) < 0.3
    counts = {name: sum(e[0] == name for entities in found for e in entities) for name in CLASSES}
    assert min(counts.values()) > 120


def test_voices_are_disjoint_and_plans_are_stable() -> None:
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not set(SPEAKERS[one]) & set(SPEAKERS[other])
    pool = entity_pools(0)["test"]
    assert plan_split(pool, 20, ContactsConfig()) == plan_split(entity_pools(0)["test"], 20, ContactsConfig())
    assert set(plan_split(pool, 5, ContactsConfig())) < set(plan_split(pool, 20, ContactsConfig()))
    plan = plan_split(pool, 200, ContactsConfig())
    assert {item.voice.partition("+")[2] for item in plan} == set(SPEAKERS["test"])
    assert plan_split(entity_pools(1)["test"], 5, ContactsConfig()) != plan_split(pool, 5, ContactsConfig())


def test_no_two_names_of_a_list_are_spelled_alike() -> None:
    for name, values in vars(contacts_words).items():
        if name.isupper():
            assert len(set(values)) == len(values), name


# Sound


@given(st.floats(-5, 30), st.integers(0, 1000))
@settings(max_examples=25)
def test_noise_has_the_asked_power(snr_db: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    voice, noise = generator.standard_normal(1000) * 0.1, generator.standard_normal(1000) * 3
    added = add_noise(voice, noise, snr_db) - voice
    assert 10 * np.log10(np.mean(voice**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=1e-6)


def test_pink_noise_falls_by_three_db_an_octave() -> None:
    pink = pinken(np.random.default_rng(0).standard_normal(1 << 17))
    power = np.abs(np.fft.rfft(pink)) ** 2
    hertz = np.fft.rfftfreq(len(pink), 1 / SAMPLE_RATE)
    bands = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in (100, 200, 400, 800, 1600, 3200)]
    assert 10 * np.log10(np.array(bands[:-1]) / np.array(bands[1:])) == pytest.approx([3.0] * 5, abs=0.7)


def test_the_room_decays_by_60_db() -> None:
    click = np.zeros(SAMPLE_RATE)
    click[0] = 1
    room = reverberate(click, 0.2, np.random.default_rng(0))
    assert room[0] == pytest.approx(1)
    assert np.sum(room[1:] ** 2) == pytest.approx(0.25, rel=1e-6)
    early, late = (np.mean(room[int(t * 16000) : int((t + 0.02) * 16000)] ** 2) for t in (0.02, 0.12))
    assert 10 * np.log10(early / late) == pytest.approx(30, abs=3)
    assert np.abs(room[int(0.2 * 16000) + 1 :]).max() < 1e-12


def test_every_listed_voice_speaks_without_clipping() -> None:
    pytest.importorskip("espeakng_loader")
    engine = Engine()
    plain = plan_split(entity_pools(0)["train"], 1, ContactsConfig())[0]
    speakers = [speaker for split in SPLITS for speaker in SPEAKERS[split]]
    sounds = set()
    for index, speaker in enumerate(speakers):
        voice = f"{ACCENTS[index % len(ACCENTS)]}+{speaker}"
        samples = engine.speak(replace(plain, voice=voice, text="WILL IT RAIN IN CHERGATE"))
        assert 0.5 < len(samples) / 22050 < 3, voice
        assert 0.02 < np.abs(samples).max() < 0.999, voice
        # Speech peaks 12 to 20 dB above its mean power; a voice that pops stands out.
        assert 20 * np.log10(np.abs(samples).max() / np.sqrt(np.mean(samples**2))) < 22, voice
        sounds.add(samples.tobytes())
    assert len(sounds) == len(speakers)
    with pytest.raises(DataError, match=r"voice 'en\+nobody'"):
        engine.speak(replace(plain, voice="en+nobody"))
    with pytest.raises(DataError, match="said nothing"):
        engine.speak(replace(plain, voice="xx-nowhere+m1"))


def test_a_recording_does_not_depend_on_the_ones_before() -> None:
    pytest.importorskip("espeakng_loader")
    plan = plan_split(entity_pools(0)["test"], 6, ContactsConfig())
    first = [Studio().record(plan[-1])]
    studio = Studio()
    later = [studio.record(item) for item in plan]
    assert np.array_equal(first[0], later[-1])
    for item, samples in zip(plan, later, strict=True):
        assert 20 * np.log10(np.abs(samples).max()) == pytest.approx(item.peak_db)


# The whole corpus


def test_tables_agree(corpus: Path) -> None:
    import soundfile

    for split, count in (("train", 6), ("dev", 2), ("test", 4)):
        text, tagged, voices = (table(corpus / split / name) for name in ("text", "tagged", "utt2spk"))
        wavs = table(corpus / split / "wav.scp")
        manifest = [json.loads(line) for line in (corpus / split / "manifest.jsonl").read_text().splitlines()]
        assert len(text) == count
        assert list(text) == sorted(text) == list(tagged) == list(voices) == list(wavs)
        assert [row["id"] for row in manifest] == list(text)
        for row in manifest:
            assert row["synthetic"] is True
            key = row["id"]
            assert parse(tagged[key]).surface == text[key] == row["text"]
            assert voices[key].partition("_")[2] in SPEAKERS[split]
            samples, rate = soundfile.read(wavs[key])
            assert rate == SAMPLE_RATE
            assert samples.ndim == 1
            assert len(samples) / rate == pytest.approx(row["duration_s"], abs=1e-3)
            assert 0.7 < row["duration_s"] < 8
            assert 0.1 < np.abs(samples).max() < 0.9
            assert np.sqrt(np.mean(samples**2)) > 0.005
    assert "synthetic" in (corpus / "SYNTHETIC.md").read_text()
    assert not (corpus / ".partial").exists()


def test_lists_hold_what_is_said_and_are_disjoint(corpus: Path) -> None:
    names = {"train": "train_entities.yaml", "dev": "dev_entities.yaml", "test": "entities.yaml"}
    lists = {split: yaml.safe_load((corpus / name).read_text()) for split, name in names.items()}
    for split, extra in (("train", 3), ("dev", 5), ("test", 5)):
        said: dict[str, set[str]] = {name: set() for name in CLASSES}
        for line in table(corpus / split / "tagged").values():
            for class_name, entity, _, _ in parse(line).entities:
                said[class_name].add(entity)
        for class_name in CLASSES:
            assert said[class_name] <= set(lists[split][class_name])
            assert len(lists[split][class_name]) == len(said[class_name]) + extra
        assert EntityCatalog.load(corpus / names[split]) is not None
    for class_name in CLASSES:
        test = set(lists["test"][class_name])
        assert not test & set(lists["train"][class_name])
        assert not test & set(lists["dev"][class_name])
    sentences = (corpus / "lm_text.txt").read_text().splitlines()
    assert len(sentences) == 20
    for class_name, entity, _, _ in (e for line in sentences for e in parse(line).entities):
        assert entity not in lists["test"][class_name]


def test_same_seed_same_bytes_with_any_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    make_contacts(TINY, tmp_path / "again", processes=1)
    assert contents(tmp_path / "again") == contents(corpus)


def test_a_second_call_keeps_whole_splits_and_mends_a_broken_one(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    make_contacts(TINY, folder)
    expected = contents(folder)
    kept = {p: p.stat().st_mtime_ns for p in (folder / "train" / "audio").iterdir()}
    next((folder / "test" / "audio").iterdir()).unlink()
    make_contacts(TINY, folder)
    assert contents(folder) == expected
    assert {p: p.stat().st_mtime_ns for p in (folder / "train" / "audio").iterdir()} == kept
    make_contacts(TINY.model_copy(update={"test": 5}), folder)
    assert len(table(folder / "test" / "text")) == 5
    assert len(list((folder / "test" / "audio").iterdir())) == 5


def test_as_a_stage_it_is_skipped_when_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("espeakng_loader")
    config = TINY.model_copy(update={"train": 1, "dev": 1, "test": 1})
    recipe = Recipe("contacts", tmp_path, (contacts_stage(config, tmp_path / "data"),))
    recipe.run()
    assert "[0] corpus: synthesise the contacts corpus" in capsys.readouterr().out
    recipe.run()
    assert "skipped: unchanged" in capsys.readouterr().out


def test_a_missing_engine_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(VocativeError, match=r"vocative\[contacts\]"):
        make_contacts(TINY, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("change", [{"train": 0}, {"distractors": 1001}, {"seeds": 1}])
def test_config_is_checked(change: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ContactsConfig.model_validate(change)


def test_a_full_disk_in_a_worker_reaches_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    (tmp_path / "jobs").write_text(
        json.dumps(vars(plan_split(entity_pools(0)["train"], 1, ContactsConfig())[0]))
    )

    def no_room(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", no_room)
    assert contacts_synth.main([str(tmp_path / "jobs"), str(tmp_path)]) == 1
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    with pytest.raises(OSError, match=r"train-00000\.tmp") as caught:
        contacts._raise_failure(answer)
    assert is_disk_full(caught.value)
    assert not list(tmp_path.glob("*.flac"))


BIG = """
import sys
from pathlib import Path
from recipes.corpora.contacts import ContactsConfig, contacts_stage
from recipes.recipe import Recipe

workdir = Path(sys.argv[1])
config = ContactsConfig(train=30, dev=1, test=1, distractors=1, train_distractors=1, lm_sentences=1)
Recipe("contacts", workdir, (contacts_stage(config, workdir / "data"),)).run()
"""


def workers_of(folder: Path) -> list[int]:
    """Ids of the processes whose command line names ``folder`` as a worker's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if b"contacts_synth" in command and str(folder).encode() in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_half_way_then_run_again(tmp_path: Path, how: signal.Signals) -> None:
    pytest.importorskip("espeakng_loader")
    command = [sys.executable, "-c", BIG, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    limit = time.monotonic() + 60
    while len(list(tmp_path.glob("data/.partial/train-*/audio/*.flac"))) < 5:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in out
    assert not (tmp_path / "data" / "train").exists()
    while workers_of(tmp_path):
        assert time.monotonic() < limit
        time.sleep(0.02)
    done = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("data/.partial/train-*/audio/*.flac")}
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "done in" in again.stdout
    audio = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "data" / "train" / "audio").iterdir()}
    assert len(audio) == 30
    assert done.items() <= audio.items()


DIES_LISTENING = """
import os, signal
from dataclasses import replace
from recipes.corpora.contacts import ContactsConfig, plan_split
from recipes.corpora.contacts_synth import Engine
from recipes.corpora.contacts_text import entity_pools

parent, fdopen = os.getpid(), os.fdopen

def die_in_the_parent(number, mode):
    if os.getpid() == parent:
        os.kill(parent, signal.SIGKILL)
    return fdopen(number, mode)

os.fdopen = die_in_the_parent
long = " ".join(["CALL MARIA LOPEZ"] * 10)
Engine().speak(replace(plan_split(entity_pools(0)["train"], 1, ContactsConfig())[0], text=long))
"""


def test_a_killed_worker_leaves_no_child_behind() -> None:
    pytest.importorskip("espeakng_loader")
    # More than a pipe holds is on its way: the child must see that nobody reads, and end. It shares the
    # output pipes, so they only close when it is gone.
    command = [sys.executable, "-c", DIES_LISTENING]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the speaking child outlived its parent")
    assert process.returncode == -signal.SIGKILL


def test_utterance_survives_json() -> None:
    item = plan_split(entity_pools(0)["train"], 1, ContactsConfig())[0]
    assert Utterance(**json.loads(json.dumps(vars(item)))) == item
