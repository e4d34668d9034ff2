"""The ``contacts`` corpus: synthetic assistant commands with contacts, cities, streets and songs.

Nothing in it was ever said by a person. Names are composed from word lists, espeak-ng speaks them, noise and
a light room are added. The entities of train, dev and test are disjoint, and so are their voices.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Annotated, Any

import yaml
from pydantic import Field

from lm.config import Config
from lm.errors import DataError
from lm.tagged_text import parse
from recipes.console import progress, say
from recipes.corpora.contacts_synth import (
    ACCENTS,
    NOISES,
    SPEAKERS,
    Accent,
    Utterance,
    espeak_loader,
)
from recipes.corpora.contacts_text import CLASSES, EntityPool, Split, entity_pools, sentence
from recipes.corpora.corpus import Corpus
from recipes.stage import Stage

VERSION = 1
"""Raised whenever the same configuration would give another corpus."""

_NOTE = """# SYNTHETIC speech

Everything in this folder is synthetic. No person said any of it and no name in it belongs to anybody.
Commands and names are composed from word lists, espeak-ng speaks them in {speakers} voices, and white, pink
or babble noise ({low:g} to {high:g} dB) and, in three of ten, a light room are added.
`recipes/corpora/contacts.py` of Vocative made it, version {version}, with the settings {settings}.

- `train` `dev` `test`: `wav.scp`, `text`, `tagged` (entities in tags), `utt2spk` (voice), `manifest.jsonl`
- `entities.yaml`: the values of the test set among distractors; `dev_entities.yaml` the same for dev
- `train_entities.yaml`: the values of the train set and more like them
- `lm_text.txt`: more tagged sentences with train entities, for language models

No entity of one split occurs in another, nor does a last name or a street stem, and the voices are disjoint.
Numbers measured here say nothing about real speakers.
"""


Rate = Annotated[int, Field(ge=80, le=450)]


class ContactsConfig(Config):
    """How much of the synthetic corpus to make."""

    train: int = Field(2000, ge=1)
    """Utterances to train on."""
    dev: int = Field(100, ge=1)
    """Utterances to choose settings with."""
    test: int = Field(200, ge=1)
    """Utterances to report results on."""
    distractors: int = Field(200, ge=0, le=1000)
    """Entries per class of the test and dev lists that nobody says."""
    train_distractors: int = Field(800, ge=0, le=1000)
    """Entries per class of the train list beyond those that are said."""
    lm_sentences: int = Field(20000, ge=0)
    """Tagged sentences without speech, with train entities, for language models."""
    accents: tuple[Accent, ...] = Field(ACCENTS, min_length=1)
    """espeak-ng's English voices; each is combined with every speaker of a split."""
    rate_wpm: tuple[Rate, Rate] = (135, 205)
    """Words a minute, slowest and fastest."""
    snr_db: tuple[float, float] = (10.0, 30.0)
    """Level of speech above noise, lowest and highest."""
    seed: int = Field(0, ge=0)
    """The same seed gives the same corpus."""


def contacts_stage(config: ContactsConfig, folder: Path, processes: int = 2) -> Stage:
    """The recipe stage that makes the corpus in ``folder``."""
    return Stage(
        name="corpus",
        description="synthesise the contacts corpus",
        inputs=(),
        outputs=(folder,),
        params=config.model_dump(mode="json"),
        run=lambda: make_contacts(config, folder, processes),
        version=VERSION,
    )


def make_contacts(config: ContactsConfig, folder: Path, processes: int = 2) -> None:
    """Write the corpus: three Kaldi data folders, three entity lists and text for language models.

    What an interrupted call has finished is kept and a call with the same configuration goes on from there.

    Args:
        config: sizes and seed.
        folder: where to write; what belongs to another configuration is replaced.
        processes: how many speak at once.

    Raises:
        VocativeError: if espeakng_loader is missing.
        OSError: for example when the disk is full.
    """
    espeak_loader()  # said here, before any work, and not by each worker
    folder.mkdir(parents=True, exist_ok=True)
    note = _NOTE.format(
        speakers=len(config.accents) * sum(map(len, SPEAKERS.values())),
        low=min(config.snr_db),
        high=max(config.snr_db),
        version=VERSION,
        settings=json.dumps(config.model_dump(mode="json"), sort_keys=True),
    )
    _write(folder / "SYNTHETIC.md", [note.rstrip("\n")])
    pools = entity_pools(config.seed)
    counts: dict[Split, int] = {"train": config.train, "dev": config.dev, "test": config.test}
    for split, count in counts.items():
        plan = plan_split(pools[split], count, config)
        _write_split(plan, folder, split, processes)
        extra = config.train_distractors if split == "train" else config.distractors
        catalog = _catalog(plan, pools[split], extra)
        name = "entities.yaml" if split == "test" else f"{split}_entities.yaml"
        _write(folder / name, [yaml.safe_dump(catalog, sort_keys=False, width=1000).rstrip("\n")])
    chance = random.Random(f"{config.seed}/lm")
    _write(folder / "lm_text.txt", (sentence(pools["train"], chance) for _ in range(config.lm_sentences)))
    shutil.rmtree(folder / ".partial", ignore_errors=True)


def plan_split(pool: EntityPool, count: int, config: ContactsConfig) -> list[Utterance]:
    """Everything about each utterance but its samples; a longer plan holds all of a shorter one."""
    plan = []
    for index in range(count):
        chance = random.Random(f"{pool.seed}/{pool.split}/{index}")
        tagged = sentence(pool, chance)
        voice = f"{chance.choice(config.accents)}+{chance.choice(SPEAKERS[pool.split])}"
        plan.append(
            Utterance(
                id=f"{speaker_id(voice)}-{pool.split}-{index:05d}",
                text=parse(tagged).surface,
                tagged=tagged,
                voice=voice,
                rate=chance.randint(*sorted(config.rate_wpm)),
                pitch=chance.randint(25, 75),
                pitch_range=chance.randint(25, 80),
                word_gap=chance.randint(0, 4),
                noise=chance.choice(NOISES),
                snr_db=round(chance.uniform(*config.snr_db), 1),
                rt60_s=round(chance.uniform(0.1, 0.35), 2) if chance.random() < 0.3 else None,
                peak_db=round(chance.uniform(-14, -2), 1),
                seed=chance.getrandbits(31),
            )
        )
    return sorted(plan, key=lambda item: item.id)


def speaker_id(voice: str) -> str:
    """The voice as a Kaldi speaker id."""
    return voice.replace("+", "_")


def _catalog(plan: list[Utterance], pool: EntityPool, extra: int) -> dict[str, list[str]]:
    """Class -> entries in alphabetical order: everything the plan says and ``extra`` more."""
    said: dict[str, set[str]] = {name: set() for name in CLASSES}
    for item in plan:
        for class_name, text, _, _ in parse(item.tagged).entities:
            said[class_name].add(text)
    chance = random.Random(f"{pool.seed}/{pool.split}/distractors")
    return {
        name: sorted(said[name] | set(pool.distinct(name, extra, chance, said[name]))) for name in CLASSES
    }


def _write_split(plan: list[Utterance], folder: Path, split: Split, processes: int) -> None:
    """Speak a split in a folder named after its plan, and move it into place when it is whole."""
    lines = [json.dumps(asdict(item), sort_keys=True) for item in plan]
    key = hashlib.sha256("\n".join([str(VERSION), *lines]).encode()).hexdigest()[:16]
    done = folder / split
    audio = done / "audio"
    if (done / "plan.sha256").is_file() and (done / "plan.sha256").read_text().strip() == key:
        present = {path.stem for path in audio.glob("*.flac")}
        if present == {item.id for item in plan}:
            say(f"    {split}: {len(plan)} utterances are there")
            return
    partial = folder / ".partial" / f"{split}-{key}"
    (partial / "audio").mkdir(parents=True, exist_ok=True)
    _speak(lines, partial, split, processes)
    _write_tables(plan, partial, audio)
    _write(partial / "plan.sha256", [key])
    for leftover in [*partial.glob("jobs-*"), *partial.glob("audio/*.tmp")]:
        leftover.unlink()
    shutil.rmtree(done, ignore_errors=True)
    os.replace(partial, done)


def _write_tables(plan: list[Utterance], partial: Path, audio: Path) -> None:
    """Kaldi tables and the manifest; paths are absolute and name the final place of the audio."""
    import soundfile

    final = audio.resolve()
    _write(partial / "wav.scp", (f"{item.id} {final / item.id}.flac" for item in plan))
    _write(partial / "text", (f"{item.id} {item.text}" for item in plan))
    _write(partial / "tagged", (f"{item.id} {item.tagged}" for item in plan))
    _write(partial / "utt2spk", (f"{item.id} {speaker_id(item.voice)}" for item in plan))
    manifest = []
    for item in plan:
        path = f"audio/{item.id}.flac"
        duration_s = round(soundfile.info(partial / path).duration, 4)
        record = {"synthetic": True, "audio": path, "duration_s": duration_s, **asdict(item)}
        manifest.append(json.dumps(record, sort_keys=True))
    _write(partial / "manifest.jsonl", manifest)


def _speak(lines: list[str], partial: Path, split: Split, processes: int) -> None:
    """Share the utterances among worker processes: the engine is not thread safe."""
    count = max(1, min(processes, len(lines)))
    answers: SimpleQueue[tuple[int, str]] = SimpleQueue()
    with progress(f"    {split}", len(lines)) as update, _workers(lines, partial, count) as workers:
        for number, worker in enumerate(workers):
            assert worker.stdout is not None
            threading.Thread(target=_listen, args=(number, worker.stdout, answers), daemon=True).start()
        done, open_pipes = 0, count
        while open_pipes:
            number, answer = answers.get()
            if not answer:
                open_pipes -= 1
                if workers[number].wait():
                    raise DataError(
                        f"a speaking process ended with code {workers[number].returncode}",
                        "speech for every utterance",
                        "read its messages above and run the same command again",
                    )
                continue
            _raise_failure(json.loads(answer))
            done += 1
            update(done)


@contextmanager
def _workers(lines: list[str], partial: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the workers; stop them however the body ends."""
    workers: list[subprocess.Popen[str]] = []
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        for number in range(count):
            jobs = partial / f"jobs-{number}.jsonl"
            _write(jobs, lines[number::count])
            command = [
                sys.executable,
                "-m",
                "recipes.corpora.contacts_synth",
                str(jobs),
                str(partial / "audio"),
            ]
            # A session of its own keeps Ctrl-C away from the worker: this process stops it.
            workers.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, text=True, env=one_thread, start_new_session=True
                )
            )
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _listen(number: int, pipe: IO[str], answers: SimpleQueue[tuple[int, str]]) -> None:
    """Pass on what a worker prints, then an empty answer."""
    with suppress(ValueError), pipe:
        for line in pipe:
            answers.put((number, line))
    answers.put((number, ""))


def _raise_failure(answer: dict[str, Any]) -> None:
    if "errno" in answer:
        raise OSError(answer["errno"], answer["message"], answer["file"])
    if "given" in answer:
        raise DataError(answer["given"], answer["expected"], answer["fix"])


def _write(path: Path, lines: Iterable[str]) -> None:
    """Write lines so that ``path`` is complete or as it was."""
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    os.replace(partial, path)


CORPUS = Corpus(
    name="contacts",
    config=ContactsConfig,
    prepare=lambda source, data, config: make_contacts(config, data),
    description="synthesise the contacts corpus (synthetic speech)",
    inputs=lambda source, config: (),
    needs_source=False,
    classes=CLASSES,
    lists="corpus",
    synthetic=True,
    version=VERSION,
)
