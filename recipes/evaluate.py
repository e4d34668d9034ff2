"""From trained weights to a model folder, transcripts, scores and a report."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from asr.decoding_config import DecodingConfig
from asr.recordings import AudioPart
from decoding.confidence import PLAIN
from decoding.result import Transcript
from lm.config import build_config, merge
from lm.errors import DataError, VocativeError
from recipes.config import RecipeConfig, SystemConfig
from recipes.console import progress, say
from recipes.corpora.lists import read_lists
from recipes.corpora.registry import find_corpus
from recipes.train import Layout


def tune_and_pack(config: RecipeConfig, folder: Layout) -> None:
    """Choose every system's settings on dev and write the model folder with the last system's.

    Where that had no use for lists, the folder has ``auto``: who hands over a list wants it used.
    """
    from asr.bundle import save_bundle
    from asr.training.checkpoint import load_tensors

    values = {
        "family": config.family,
        "model": config.model,
        "features": config.features.model_dump(mode="json"),
        "decoding": config.decoding.model_dump(mode="json"),
    }
    readme = f"# Vocative model\n\nTrained by the recipe `{config.corpus}`, seed {config.training.seed}.\n"
    tensors, tokenizer = load_tensors(folder.weights), folder.tokenizer.read_bytes()
    paths = {name: folder.language_model(name) for name in config.language_models}
    extra = {f"lm/{path.name}": path.read_bytes() for path in paths.values()}
    save_bundle(folder.model, values, tensors, tokenizer, readme, extra=extra)
    chosen = {system.name: _tune(system, config, folder) for system in config.systems}
    folder.tuned.write_text(json.dumps(chosen, indent=1))
    last = chosen[config.systems[-1].name]["decoding"]
    values["decoding"] = {**last, "biasing": "auto"} if last["biasing"] == "none" else last
    save_bundle(folder.model, values, tensors, tokenizer, readme, extra=extra)


def _tune(system: SystemConfig, config: RecipeConfig, folder: Layout) -> dict[str, Any]:
    """The settings with the lowest dev WER, and that of every combination tried; ties go to the first."""
    from asr.recognizer import Recognizer

    recognizer = Recognizer.load(folder.model)
    start = merge(config.decoding.model_dump(mode="json"), system.decoding)
    references = references_of(folder, "dev")
    lists = read_lists(find_corpus(config.corpus).of(config.data).lists, folder.data, "dev")
    names, grids = list(system.tune), list(system.tune.values())
    tried: list[tuple[float, dict[str, Any]]] = []
    best: dict[str, Transcript] = {}
    for combination in itertools.product(*grids):
        chosen = dict(zip(names, combination, strict=True))
        values = changed(start, chosen)
        values = merge(values, {"confidence": PLAIN.model_dump()})
        options = build_config(DecodingConfig, values, f"system {system.name!r}")
        found = dict(_transcribe(recognizer, folder, "dev", lists, options))
        rate = _word_error_rate(references, found)
        best = found if not tried or rate < min(before for before, _ in tried) else best
        tried.append((rate, chosen))
    best_rate, settings = min(tried, key=lambda pair: pair[0])
    say(f"    {system.name}: dev WER {100 * best_rate:.2f} % with {settings or 'no choice to make'}")
    decoding = merge(changed(start, settings), _confidence(best, references))
    return {"decoding": decoding, "dev": [{"wer": rate, **values} for rate, values in tried]}


def _confidence(found: dict[str, Transcript], references: dict[str, Any]) -> dict[str, Any]:
    """What the confidence of words is made of, fitted on dev; as it is where dev has no wrong words."""
    from asr.tuning import fit_confidence
    from decoding.confidence import DEFAULT

    try:
        fitted = fit_confidence(found, references, DEFAULT)
    except DataError as error:
        say(f"    confidence stays as it is: {error}")
        return {}
    say(
        f"    confidence of words: calibration error {100 * fitted.before:.1f} % by default, "
        f"{100 * fitted.after:.1f} % fitted (each half of dev by the other)"
    )
    return {"confidence": fitted.config.model_dump(mode="json")}


def changed(settings: dict[str, Any], values: dict[str, float]) -> dict[str, Any]:
    """``settings`` with values by dotted name."""
    for name, value in values.items():
        nested: Any = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        settings = merge(settings, nested)
    return settings


def decode(config: RecipeConfig, folder: Layout, split: str) -> None:
    """Transcribe ``split`` with every system, one JSON line a recording."""
    from asr.recognizer import Recognizer
    from lm.classes import EntityCatalog

    recognizer = Recognizer.load(folder.model)
    lists = read_lists(find_corpus(config.corpus).of(config.data).lists, folder.data, split)
    if lists is not None:
        whole = lists if isinstance(lists, EntityCatalog) else EntityCatalog.empty().merge(*lists.values())
        say(f"    entity lists: {recognizer.report(whole).summary()}")
    times: dict[str, dict[str, float]] = {}
    for name, tuned in json.loads(folder.tuned.read_text()).items():
        options = build_config(DecodingConfig, tuned["decoding"], f"system {name!r}")
        began, worked, audio_s = time.monotonic(), time.process_time(), 0.0
        target = folder.hypotheses(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for _, result in _transcribe(recognizer, folder, split, lists, options, name):
            audio_s += result.duration_s
            lines.append(_json_line(result))
        target.write_text("".join(lines))
        took_s = time.monotonic() - began
        times[name] = {"audio_s": audio_s, "seconds": took_s, "cpu_seconds": time.process_time() - worked}
        speed = f"{audio_s:.0f} s of audio in {took_s:.1f} s, {audio_s / took_s:.0f} x real time"
        say(f"    {name}: {len(lines)} recordings, {speed}")
    folder.times.write_text(json.dumps(times, indent=1))


def emits_spans(config: RecipeConfig, system: SystemConfig) -> bool:
    """Whether the system marks the entities that it takes from the lists."""
    from asr.families import knows_classes
    from asr.knowledge import resolve_biasing

    if find_corpus(config.corpus).of(config.data).lists == "none":
        return False
    values = merge(config.decoding.model_dump(mode="json"), system.decoding)
    options = build_config(DecodingConfig, values, f"system {system.name!r}")
    return resolve_biasing(options, knows_classes(config.family)) == "classes"


def score_systems(config: RecipeConfig, folder: Layout) -> None:
    """Score every system on the test set, print them side by side, write RESULTS.json and report.html."""
    from asr.scoring.report import write_report
    from asr.scoring.score import compare, score
    from asr.writers import from_dict

    corpus = find_corpus(config.corpus).of(config.data)
    references = references_of(folder, "test")
    lists = read_lists(corpus.lists, folder.data, "test")
    systems, reports = {}, {}
    for system in config.systems:
        rows = folder.hypotheses(system.name).read_text().splitlines()
        systems[system.name] = {t.id: t for t in (from_dict(json.loads(row)) for row in rows)}
        reports[system.name] = score(
            references, systems[system.name], lists, emits_spans=emits_spans(config, system)
        )
    say(
        f"\n{corpus.name} test{', SYNTHETIC speech' if corpus.synthetic else ''}: {len(references)} utterances\n"
    )
    say(compare(reports))
    figures = {name: json.loads(report.to_json()) for name, report in reports.items()}
    folder.results.write_text(json.dumps(figures, indent=1))
    write_report(
        folder.report,
        f"{config.corpus}: {', '.join(reports)}",
        reports,
        audio=audio_of(folder, "test"),
        curves=_curves(folder.training / "log.jsonl"),
        synthetic=corpus.synthetic,
    )
    say(f"\nreport: {folder.report}")


def _transcribe(
    recognizer: Any, folder: Layout, split: str, lists: Any, options: DecodingConfig, title: str = ""
) -> Iterable[tuple[str, Transcript]]:
    """Transcripts by utterance id; a recording that fails ends the stage, for a score would be wrong."""
    import torch

    torch.set_num_threads(1)
    paths = audio_of(folder, split)
    names = list(paths)
    own = {paths[name]: lists[name] for name in names} if isinstance(lists, dict) else lists
    many = recognizer.transcribe_many(list(paths.values()), entities=own, options=options)
    results = (result for _, result in many)
    with progress(f"    {title or split}", len(names)) as shown:
        for number, (name, result) in enumerate(zip(names, results, strict=True), start=1):
            if isinstance(result, VocativeError):
                raise result
            shown(number)
            yield name, _named(result, name)


def _named(result: Transcript, name: str) -> Transcript:
    from dataclasses import replace

    return replace(result, id=name)


def audio_of(folder: Layout, split: str) -> dict[str, AudioPart]:
    """Where each utterance is heard, by its id."""
    from asr.data.manifest import load_cuts

    return {cut.id: _part(cut) for cut in load_cuts(folder.cuts(split))}


def _part(cut: Any) -> AudioPart:
    path = Path(cut.recording.sources[0].source)
    whole = cut.start == 0.0 and cut.duration == cut.recording.duration
    return AudioPart(path) if whole else AudioPart(path, cut.start, cut.end)


def references_of(folder: Layout, split: str) -> dict[str, Any]:
    """What was said, by utterance id."""
    from asr.data.kaldi import read_table
    from lm.tagged_text import parse

    return {name: parse(text) for name, text in read_table(folder.data / split / "tagged").items()}


def _word_error_rate(references: dict[str, Any], found: dict[str, Transcript]) -> float:
    import jiwer

    names = list(references)
    rate: float = jiwer.wer([references[n].surface for n in names], [found[n].text for n in names])
    return rate


def _json_line(result: Transcript) -> str:
    from asr.writers import Jsonl

    return Jsonl().render(result)


def _curves(log: Path) -> list[Any]:
    """Training and validation loss by epoch."""
    from asr.scoring.report import Curve

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        Curve(
            f"{title} loss",
            [(row["epoch"] + 1, row[split]["total"]) for row in rows if "total" in row[split]],
        )
        for split, title in (("train", "training"), ("valid", "validation"))
    ]
