"""Your own recordings: Kaldi-style folders or lhotse manifests, with lists of names and text if you have them.

A split is a folder with ``wav.scp``, ``text`` and ``utt2spk`` (``segments`` and ``tagged`` if there are), or a
manifest of lhotse cuts, ``NAME.jsonl.gz``. Class-tagged text stands in ``tagged``, or in a supervision's
``custom["tagged"]``. Relative paths of recordings begin in the corpus folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from asr.data.kaldi import Utterance
from asr.leaks import overlap, refuse_known_text
from lm.classes import EntityCatalog
from lm.config import Config
from lm.errors import DataError
from lm.tagged_text import TaggedText, parse
from lm.text_files import read_lines
from recipes.console import say
from recipes.corpora.corpus import Corpus, Lists
from recipes.corpora.kaldi_source import read_split, write_lm_text, write_splits
from recipes.corpora.lists import list_files, read_lists

ClassName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]


class OwnConfig(Config):
    """What the corpus folder holds."""

    train: str = "train"
    """Folder or manifest to train on."""
    dev: str = "dev"
    """Folder or manifest to choose settings with."""
    test: str = "test"
    """Folder or manifest to report results on."""
    held_out: float = Field(0.0, ge=0, le=0.5)
    """Share of train that becomes dev, for a corpus without one: of the speakers, or of the utterances of a single
    speaker."""
    classes: tuple[ClassName, ...] = ()
    """Entity classes of the tagged text, in the order of their ids."""
    lists: Lists = "none"
    """Lists of names: one for all recordings (``entities.yaml``; for dev ``dev_entities.yaml``, or the same), or
    one for each (``utterance_entities.jsonl`` and ``dev_utterance_entities.jsonl``)."""
    lm_text: Path | None = None
    """Sentences for language models and tokenizer besides the transcripts, one a line, tagged or not, plain, gz
    or xz; a path in the corpus folder."""


def prepare(source: Path, data: Path, config: OwnConfig) -> None:
    """Write train, dev and test, the lists, and the text for language models.

    Raises:
        DataError: something is missing or does not fit together.
        EntityListError: a list that cannot be used.
    """
    splits = {"train": _split(source, config.train, config), "test": _split(source, config.test, config)}
    if config.held_out:
        splits["train"], splits["dev"] = hold_out(splits["train"], config.held_out)
    else:
        splits["dev"] = _split(source, config.dev, config)
    _check_ids(splits)
    write_splits({name: splits[name] for name in ("train", "dev", "test")}, data, shared=True)
    if config.lists != "none":
        _copy_lists(source, data, config)
    transcripts = (u.extra["tagged"] for u in splits["train"])
    if config.lm_text is None:
        write_lm_text(transcripts, data)
        return
    text = source / config.lm_text
    test = {u.id: parse(u.extra["tagged"]) for u in splits["test"]}
    known = refuse_known_text(test, [text]).known
    if known:
        say(f"    {known} test sentences stand in {text.name}: figures with it may flatter", "yellow")
    write_lm_text(chain(transcripts, _sentences(text, config.classes)), data)


def hold_out(utterances: Sequence[Utterance], share: float) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances to train on and those held out: ``share`` of the speakers, evenly over their sorted ids.

    Raises:
        DataError: there are too few to cut.
    """
    keys = {u.id: u.speaker for u in utterances}
    if len(set(keys.values())) == 1:
        keys = {u.id: u.id for u in utterances}
    names = sorted(set(keys.values()))
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise DataError(f"{len(names)} utterances to train on", "two or more", "add recordings, or a dev set")
    chosen = {names[(2 * place + 1) * len(names) // (2 * count)] for place in range(count)}
    kept = [u for u in utterances if keys[u.id] not in chosen]
    return kept, [u for u in utterances if keys[u.id] in chosen]


def _split(source: Path, name: str, config: OwnConfig) -> list[Utterance]:
    """Utterances by id, with ``tagged`` checked."""
    places = [source / name, source / f"{name}.jsonl.gz"]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise DataError(
            f"{source} has no {name}",
            f"a folder {name} with wav.scp, text and utt2spk, or a manifest {name}.jsonl.gz of lhotse cuts",
            "say its name with data.train, data.dev or data.test; without a dev set, data.held_out=0.1",
        )
    if found.is_dir():
        return read_split(source, name, lambda u: _tagged(u, config.classes))
    return [
        replace(u, extra={"tagged": _tagged(u, config.classes)}) for u in _from_cuts(found, source.resolve())
    ]


def _tagged(utterance: Utterance, classes: Sequence[str]) -> str:
    """The tagged text of an utterance, or its text where it has none."""
    tagged = utterance.extra.get("tagged", utterance.text)
    found = _parsed(tagged, utterance.id, classes)
    if found.surface.upper().split() != utterance.text.upper().split():
        raise DataError(
            f"{utterance.id}: tagged text {found.surface!r}, text {utterance.text!r}",
            "the same words",
            "correct one of them",
        )
    return tagged


def _sentences(path: Path, classes: Sequence[str]) -> Iterator[str]:
    """Sentences of a text file, one by one."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            _parsed(line, f"{path.name}:{number}", classes)
            yield line


def _parsed(tagged: str, where: str, classes: Sequence[str]) -> TaggedText:
    try:
        found = parse(tagged)
    except DataError as error:
        raise DataError(f"{where}: {error.given}", error.expected, error.fix) from None
    if unknown := {name for name, *_ in found.entities} - set(classes):
        raise DataError(
            f"{where} has class {min(unknown)!r}",
            f"one of data.classes: {', '.join(classes) or 'there is none'}",
            "add it to data.classes, or correct the text",
        )
    return found


def _from_cuts(path: Path, root: Path) -> list[Utterance]:
    """Utterances of a manifest of cuts, sorted by id."""
    from asr.data.manifest import load_cuts

    return sorted((_from_cut(cut, path, root) for cut in load_cuts(path)), key=lambda u: u.id)


def _from_cut(cut: Any, path: Path, root: Path) -> Utterance:
    from lhotse import MonoCut, MultiCut

    kind = isinstance(cut, (MonoCut, MultiCut)) and len(cut.supervisions) == 1 and cut.has_recording
    sources: Any = cut.recording.sources if kind else ()
    if len(sources) != 1 or sources[0].type != "file" or cut.recording.transforms:
        raise DataError(
            f"{path}: cut {cut.id}",
            "one supervision and one recording in a file, not mixed, padded or transformed",
            "cut with trim_to_supervisions(), and save the audio of cuts that are made on the fly",
        )
    supervision = cut.supervisions[0]
    whole = not cut.start and abs(cut.duration - cut.recording.duration) < 1e-3
    tagged = (supervision.custom or {}).get("tagged")
    audio = root / sources[0].source
    if not audio.is_file():
        raise DataError(f"{path}: {audio} is missing", "every recording of the manifest", "restore it")
    return Utterance(
        id=cut.id,
        audio=audio,
        text=supervision.text or "",
        speaker=supervision.speaker or cut.id,
        start_s=0.0 if whole else cut.start,
        end_s=None if whole else cut.end,
        extra={} if tagged is None else {"tagged": tagged},
    )


def _check_ids(splits: dict[str, list[Utterance]]) -> None:
    owner: dict[str, str] = {}
    for name, utterances in splits.items():
        for utterance in utterances:
            if owner.setdefault(utterance.id, name) != name:
                raise DataError(
                    f"{utterance.id} is in {owner[utterance.id]} and in {name}",
                    "utterances of their own in each split",
                    "take it out of one: figures on what was trained on say nothing",
                )
    known = overlap(
        [parse(u.extra["tagged"]) for u in splits["test"]], (u.extra["tagged"] for u in splits["train"])
    )
    if known.known:
        say(f"    {known.known} of {known.sentences} longer test sentences are said in train too", "yellow")


def _copy_lists(source: Path, data: Path, config: OwnConfig) -> None:
    """Check the lists of dev and test, and copy them."""
    for split in ("test", "dev"):
        (name,) = [file.name for file in list_files(config.lists, Path(), split)]
        place = source / name
        if split == "dev" and config.lists == "corpus" and not place.is_file():
            place = source / list_files(config.lists, Path(), "test")[0]
        if not place.is_file():
            raise DataError(
                f"{source} has no {name}", f"the lists of {split}", "add it, or set data.lists=none"
            )
        shutil.copyfile(place, data / name)
        found = read_lists(config.lists, data, split)
        catalogs = [found] if isinstance(found, EntityCatalog) else list((found or {}).values())
        classes = {name for catalog in catalogs for name in catalog.classes}
        if config.classes and (unknown := classes - set(config.classes)):
            raise DataError(
                f"{place} has class {min(unknown)!r}",
                f"one of data.classes: {', '.join(config.classes)}",
                "add it to data.classes, or take it out",
            )


def _inputs(source: Path, config: OwnConfig) -> tuple[Path, ...]:
    names = [config.train, config.test, *(() if config.held_out else (config.dev,))]
    places = [source / f"{name}{end}" for name in names for end in ("", ".jsonl.gz")]
    places += [
        source / file.name for split in ("test", "dev") for file in list_files(config.lists, source, split)
    ]
    text = [] if config.lm_text is None else [source / config.lm_text]
    return tuple(place for place in (*places, *text) if place.exists())


CORPUS = Corpus(
    name="own",
    config=OwnConfig,
    prepare=prepare,
    description="prepare your recordings in {source}",
    inputs=_inputs,
    fits=lambda config: (config.classes, config.lists),
)
