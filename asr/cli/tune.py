"""``asr tune``: the weights of language models and lists, found on transcribed recordings."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from asr.cli.console import Bar, put, say
from asr.cli.entities import GivenEntities
from asr.cli.search_settings import search_changes, search_options
from asr.cli.transcribe import (
    LM,
    BatchS,
    Context,
    Device,
    Entities,
    Model,
    RescoreLM,
    Settings,
    add_models,
    file_digest,
    load_recognizer,
)
from lm.config import merge
from lm.errors import ConfigError, DataError, VocativeError

if TYPE_CHECKING:
    from asr.batch import Outcome
    from asr.decoding_config import DecodingConfig
    from asr.recognizer import Recognizer
    from asr.recordings import AudioPart, Recording
    from asr.tuning import Tuned
    from decoding.result import Transcript
    from lm.tagged_text import TaggedText
    from lm.utterance_context import UtteranceContext

SHOWN = 5

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILES", help="Recordings of the dev set, as for transcribe.", show_default=False),
]
Ref = Annotated[
    Path, typer.Option("--ref", metavar="TEXT", help="Lines of id and words said.", show_default=False)
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="For tuned.yaml and the searches.", show_default=False),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(
        "--tune",
        metavar="KEY=V1,V2…",
        help="A setting and its values; default: all that matter in this search. May be repeated.",
    ),
]
Test = Annotated[
    Path | None,
    typer.Option("--test", metavar="TEXT", help="References of the test set, to make sure it is another."),
]
LMText = Annotated[
    list[Path] | None,
    typer.Option(
        "--lm-text", metavar="TEXT", help="What the language model read; must not hold the test set."
    ),
]
NBest = Annotated[int, typer.Option(min=2, help="Hypotheses kept of each recording while tuning.")]


def tune(
    files: Files,
    ref: Ref,
    model: Model,
    out: Out,
    entities: Entities = None,
    lm: LM = None,
    rescore_lm: RescoreLM = None,
    context: Context = None,
    settings: Settings = None,
    grid: Grid = None,
    test: Test = None,
    lm_text: LMText = None,
    nbest: NBest = 32,
    device: Device = "cpu",
    batch_s: BatchS = 60.0,
) -> int:
    """Find the weights of language models and lists on transcribed recordings.

    Searches the recordings once with a wide beam, ranks what was found under every choice of weights, and
    searches again with the best to see what it is worth. The searches are kept: other values take no time.

    Also fits the confidence of words. Writes DIR/tuned.yaml, with what --set changed, for:
    asr transcribe --settings DIR/tuned.yaml

    Examples:

    \b
      asr tune dev/ --ref dev.txt -m exp/model --lm domain.arpa --test test.txt --lm-text domain.txt -o exp/tune
      asr tune dev/ --ref dev.txt -m exp/model -e names.yaml -o exp/tune
      asr tune dev/ --ref dev.txt -m exp/model -e names.yaml -o exp/tune --tune class_bonus=0,1,2,3

    Exit codes: 0 done, 1 some recordings failed and were left out, 2 the call cannot be used, 130 interrupted; run
    it again to go on.
    """
    from asr.recordings import list_recordings
    from asr.scoring.read import read_references

    wanted = _read_grid(grid or [])
    references = read_references(ref)
    _check_leaks(references, test, lm_text or [])
    recordings = _referenced(list_recordings(files, sys.stdin), references, ref)
    given = GivenEntities.read(entities, recordings)
    changes = search_changes(None, lm, None, settings or [], None, rescore_lm)
    models = [path for path in (lm, rescore_lm) if path]
    job = _Job.load(model, device, given, models, context, changes, recordings, out, batch_s)
    found = _run(job, references, wanted, nbest)
    handed = [(name, path) for name, path in (("--lm", lm), ("--rescore-lm", rescore_lm)) if path]
    _write(out / "tuned.yaml", merge(changes, found), handed)
    return 1 if job.failed else 0


@dataclass(frozen=True)
class _Job:
    """A dev set, and a model with its settings before they are tuned."""

    recognizer: Recognizer
    options: DecodingConfig
    entities: GivenEntities
    contexts: Mapping[Path | AudioPart, UtteranceContext]
    recordings: Sequence[Recording]
    out: Path
    batch_s: float
    fingerprint: Mapping[str, Any]
    failed: set[str] = field(default_factory=set)
    """Ids of recordings that could not be searched; they are left out."""

    @classmethod
    def load(
        cls,
        model: Path,
        device: str,
        entities: GivenEntities,
        models: Sequence[Path],
        context: Path | None,
        changes: dict[str, Any],
        recordings: Sequence[Recording],
        out: Path,
        batch_s: float,
    ) -> _Job:
        from asr.bundle import bundle_fingerprint
        from asr.cli.contexts import contexts_of

        contexts = contexts_of(context, recordings) if context else {}
        recognizer = load_recognizer(model, device)
        options = search_options(recognizer, changes)
        add_models(recognizer, models, options)
        entities.check(recognizer, options)
        marks = {
            "model": bundle_fingerprint(model),
            "entities": entities.mark,
            "lm": [file_digest(path) for path in models],
        }
        marks |= {"context": file_digest(context)} if context else {}
        return cls(recognizer, options, entities, contexts, recordings, out, batch_s, marks)

    @property
    def own_lm(self) -> bool:
        """Whether the model has a language model of its own."""
        return self.recognizer.family.knows_classes

    def search(self, name: str, options: DecodingConfig) -> dict[str, Transcript]:
        """Transcripts of all recordings, with n-best lists; those on disk from an earlier call are read."""
        from functools import partial

        from asr.batch import ResultsFolder, run_batch
        from asr.scoring.read import read_hypotheses
        from asr.writers import write

        settings = {**self.fingerprint, "search": options.model_dump(mode="json")}
        recognise = partial(
            self.recognizer.transcribe_many,
            entities=self.entities.lists,
            contexts=self.contexts,
            batch_s=self.batch_s,
            options=options,
        )
        folder = self.out / name
        with ResultsFolder(folder, ["jsonl"], write, settings) as results:
            pending = results.pending(self.recordings)
            say(
                f"{name}: {len(pending)} recordings to search, {len(self.recordings) - len(pending)} done before"
            )
            with Bar(len(pending), len(pending)) as bar:
                for outcome in run_batch(recognise, pending, results) if pending else ():
                    if isinstance(outcome.result, VocativeError):
                        self._leave_out(outcome, bar)
                    bar.advance(1)
        found: dict[str, Transcript] = {}
        for recording in self.recordings:
            if recording.id not in self.failed:
                found |= read_hypotheses(folder / f"{recording.id}.jsonl")
        if not found:
            raise DataError("no recording that can be recognised", "some", "see the lines above")
        return found

    def _leave_out(self, outcome: Outcome, bar: Bar) -> None:
        if outcome.recording.id not in self.failed:
            bar.say(f"left out: {outcome.recording.id}: {outcome.result}")
            self.failed.add(outcome.recording.id)


def _run(
    job: _Job, references: Mapping[str, TaggedText], wanted: dict[str, list[float]], nbest: int
) -> dict[str, Any]:
    """What is to be changed in the settings that were tuned."""
    from asr.tuning import applicable, centre, check_grid
    from asr.tuning import tune as rank
    from decoding.confidence import PLAIN

    biasing = job.recognizer.biasing(job.options)
    useful = applicable(job.options, bool(job.entities.lists), biasing, job.own_lm)
    grid = wanted or useful
    check_grid(grid, useful)
    plain = job.options.model_copy(update={"confidence": PLAIN})
    wide = plain.changed({"search": {"beam": max(nbest, plain.search.beam), "nbest": nbest}}, "--nbest")
    middle = wide.changed(_nested(centre(grid)), "--tune")
    fused = bool(job.options.fusion.lm) and job.options.fusion.how == "add"
    searched = job.search("search", middle)
    references = {name: text for name, text in references.items() if name not in job.failed}
    tuned = rank(searched, references, grid, middle, fused and not job.own_lm)
    _show(tuned)
    before = job.search("before", plain)
    chosen = job.search("chosen", plain.changed(_nested(tuned.best.settings), "--tune"))
    better = _compare(references, *(_calibrated(found, job.options) for found in (before, chosen)))
    result = dict(tuned.best.settings) if better else {}
    return _nested(result) | _confidence(references, chosen if better else before, job.options)


def _show(tuned: Tuned) -> None:
    put(
        f"n-best oracle {100 * tuned.oracle:.2f} % WER; in the middle of the grid {100 * tuned.searched.wer:.2f} %"
    )
    put(f"of {len(tuned.tried)} choices:")
    for choice in sorted(tuned.tried, key=lambda c: (c.wer, c != tuned.best))[:SHOWN]:
        values = " ".join(f"{name}={value:g}" for name, value in choice.settings.items())
        put(f"  {100 * choice.wer:6.2f} %  {values}")
    rates = {tuple(choice.settings.values()): choice.wer for choice in tuned.tried}
    for name, best in tuned.best.settings.items():
        tried = sorted({choice.settings[name] for choice in tuned.tried})
        if len(tried) > 1 and best == tried[-1]:
            lower = {**tuned.best.settings, name: tried[-2]}
            if rates[tuple(lower.values())] > tuned.best.wer:
                put(f"{name}: the best is the highest that was tried; try more with --tune {name}=…")


def _compare(
    references: Mapping[str, TaggedText], before: Mapping[str, Transcript], chosen: Mapping[str, Transcript]
) -> bool:
    """Print what the choice is worth in a search of its own; returns whether it is better."""
    from asr.scoring.score import compare, score

    reports = {"as it was": score(references, before), "tuned": score(references, chosen)}
    put("")
    put(compare(reports))
    better = reports["tuned"].wer.counts.errors < reports["as it was"].wer.counts.errors
    if not better:
        put("\nno better than before: the weights stay as they were")
    return better


def _calibrated(found: Mapping[str, Transcript], options: DecodingConfig) -> dict[str, Transcript]:
    """Transcripts with the confidences that they have under ``options``; the searches here keep the plain ones."""
    from dataclasses import replace

    from decoding.confidence import calibrate

    def one(transcript: Transcript) -> Transcript:
        nbest = calibrate(transcript.hypotheses, options.confidence)
        return replace(transcript, words=nbest[0].words, hypotheses=nbest)

    return {name: one(transcript) for name, transcript in found.items()}


def _confidence(
    references: Mapping[str, TaggedText], found: Mapping[str, Transcript], options: DecodingConfig
) -> dict[str, Any]:
    """Fit the confidence of words; the error printed is of each half of the set fitted on the other."""
    from asr.tuning import fit_confidence

    try:
        fitted = fit_confidence(found, references, options.confidence)
    except DataError as error:
        put(f"\nconfidence stays as it is: {error}")
        return {}
    put(
        f"\nconfidence of words: calibration error {100 * fitted.before:.1f} % as it is, "
        f"{100 * fitted.after:.1f} % fitted (each half of the set by the other)"
    )
    return {"confidence": fitted.config.model_dump(mode="json")}


def _write(path: Path, changes: Mapping[str, Any], handed: Sequence[tuple[str, Path]]) -> None:
    """Write all that differs from the model's settings: what was asked for in the call, too."""
    import yaml

    from asr.writers import write_whole

    write_whole(path, yaml.safe_dump(dict(changes), sort_keys=False))
    models = "".join(f" {option} {file}" for option, file in handed)
    say(f"wrote {path}; use it: asr transcribe --settings {path}{models} …")


def _read_grid(assignments: Sequence[str]) -> dict[str, list[float]]:
    """The values to try by setting.

    Raises:
        ConfigError: what is not a name with numbers.
    """
    grid: dict[str, list[float]] = {}
    for text in assignments:
        name, _, values = text.partition("=")
        try:
            grid[name.strip()] = [float(value) for value in values.split(",")]
            if not np.isfinite(grid[name.strip()]).all():
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"--tune {text!r}", "a setting and numbers", "write --tune class_bonus=0,1,2"
            ) from None
    return grid


def _check_leaks(references: Mapping[str, TaggedText], test: Path | None, texts: Sequence[Path]) -> None:
    from asr.leaks import SHORTEST, refuse_known_text, refuse_same
    from asr.scoring.read import read_references

    if test is None:
        if texts:
            raise ConfigError("--lm-text without --test", "the test references as well", "add --test TEXT")
        say("no --test: nothing makes sure that this is not the test set")
        return
    wanted = read_references(test)
    found = {"the dev set": refuse_same(references, wanted)}
    if texts:
        found["the language model's text"] = refuse_known_text(wanted, texts)
    for where, known in found.items():
        say(f"{known.known} of {known.sentences} test sentences of {SHORTEST} words or more stand in {where}")


def _referenced(
    recordings: Sequence[Recording], references: Mapping[str, TaggedText], ref: Path
) -> list[Recording]:
    """The recordings, just those of the references: a search is long, so what does not fit is told before it."""
    absent = [recording.id for recording in recordings if recording.id not in references]
    if absent:
        raise ConfigError(
            f"{len(absent)} recordings without a line in {ref}, such as {absent[0]!r}",
            "a reference for each, by the name of its file without ending",
            "leave them out or add their text",
        )
    silent = sorted(references.keys() - {recording.id for recording in recordings})
    if silent:
        raise ConfigError(
            f"{len(silent)} lines of {ref} without a recording, such as {silent[0]!r}",
            "references of just these recordings",
            "leave the lines out or add their recordings",
        )
    return list(recordings)


def _nested(values: Mapping[str, float]) -> dict[str, Any]:
    """Values by dotted name as a nested mapping."""
    from lm.config import apply_overrides

    return apply_overrides({}, [f"{name}={json.dumps(value)}" for name, value in values.items()])
