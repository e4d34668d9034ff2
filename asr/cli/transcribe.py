"""``asr transcribe``: recordings to text, one or a hundred thousand."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asr.batch import Outcome, OutputError, Recognise, ResultsFolder, Tally, run_batch
from asr.cli.console import Bar, put, say
from asr.cli.entities import HELP as ENTITIES_HELP
from asr.cli.entities import GivenEntities
from asr.cli.search_settings import search_changes, search_options
from asr.recordings import AudioPart, Recording, list_recordings
from lm.errors import ConfigError, VocativeError

if TYPE_CHECKING:
    from asr.decoding_config import DecodingConfig
    from asr.recognizer import Recognizer
    from lm.utterance_context import UtteranceContext

ON_STDOUT = ("txt", "json")
_RESULTS, _SEARCH, _SPEED = "Results", "Names and search", "Speed"


Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILES",
        help="Recordings, folders, quoted patterns, Kaldi wav.scp or segments, - for a list on standard input.",
        show_default=False,
    ),
]
Model = Annotated[
    Path, typer.Option("--model", "-m", metavar="DIR", help="A model folder.", show_default=False)
]
Entities = Annotated[
    Path | None,
    typer.Option(
        "--entities",
        "-e",
        metavar="LIST",
        help=ENTITIES_HELP,
        rich_help_panel=_SEARCH,
    ),
]
Beam = Annotated[
    int | None,
    typer.Option(min=1, help="Hypotheses kept; default: what the model says.", rich_help_panel=_SEARCH),
]
LM = Annotated[
    Path | None,
    typer.Option(
        "--lm",
        metavar="FILE",
        help="A language model to fuse: .arpa (also .gz), .safetensors, KenLM .bin; over the model's subwords.",
        rich_help_panel=_SEARCH,
    ),
]
LMWeight = Annotated[
    float | None,
    typer.Option(
        "--lm-weight",
        min=0,
        help="Its weight; default: 0.3, or what the model says.",
        rich_help_panel=_SEARCH,
    ),
]
RescoreLM = Annotated[
    Path | None,
    typer.Option(
        "--rescore-lm",
        metavar="FILE",
        help="A language model for a second pass; of words with --set rescoring.unit=word.",
        rich_help_panel=_SEARCH,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the search, as in the model's config.yaml under decoding; may be repeated.",
        rich_help_panel=_SEARCH,
    ),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="Settings of the search in YAML, such as asr tune writes; --set goes before them.",
        rich_help_panel=_SEARCH,
    ),
]
Context = Annotated[
    Path | None,
    typer.Option(
        "--context",
        metavar="FILE",
        help="What is known of each recording, for a contextual language model: yaml or jsonl, by id.",
        rich_help_panel=_SEARCH,
    ),
]
Formats = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        metavar="NAMES",
        help="With --out any of txt,json,jsonl,ctm,srt,vtt,stm,textgrid; without it txt or json (JSON lines).",
        rich_help_panel=_RESULTS,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        help="One file a recording and format, and results.jsonl; what is done there is skipped.",
        rich_help_panel=_RESULTS,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Do everything again.", rich_help_panel=_RESULTS)
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …", rich_help_panel=_SPEED)]
BatchS = Annotated[
    float, typer.Option("--batch-s", min=1, help="Seconds of audio in a batch.", rich_help_panel=_SPEED)
]


def transcribe(
    files: Files,
    model: Model,
    entities: Entities = None,
    beam: Beam = None,
    lm: LM = None,
    lm_weight: LMWeight = None,
    rescore_lm: RescoreLM = None,
    context: Context = None,
    settings: Settings = None,
    settings_file: SettingsFile = None,
    formats: Formats = "txt",
    out: Out = None,
    overwrite: Overwrite = False,
    device: Device = "cpu",
    batch_s: BatchS = 60.0,
) -> int:
    """Turn recordings into text, with lists of names if you have them.

    Without --out, prints a line a recording, in the order given: its id, a tab, its text. With --out, a call that
    was stopped in any way goes on when it is run again.

    Examples:

    \b
      asr transcribe call.wav --model exp/model --entities contacts.yaml
      asr transcribe calls/ "more/**/*.flac" -m exp/model -o results -f txt,json,ctm
      asr transcribe call.wav -m exp/model --lm domain.arpa --lm-weight 0.4
      asr transcribe call.wav -m exp/model --rescore-lm words.arpa --set rescoring.unit=word
      asr transcribe call.wav -m exp/model --set class_bonus=2 --set fusion.how=mix
      asr transcribe calls/ -m exp/model --lm contextual.safetensors --context when.jsonl
      find . -name "*.wav" | asr transcribe - --model exp/model

    A list of names, contacts.yaml:

    \b
      contact:
        - Maja Novak
        - {text: Siobhan Byrne, spoken: [shivawn burn], id: c17, weight: 2}

    A list for each recording, own.jsonl, a line each; what is known of recordings, when.jsonl (or yaml):

    \b
      {"id": "call-7", "entities": {"contact": ["Maja Novak"]}}
      {"id": "call-8", "entities": "contacts.yaml"}
      {"id": "call-7", "context": {"hour": 7, "app": "maps"}}

    Exit codes: 0 all done, 1 some failed, 2 the call cannot be used, 130 interrupted.
    """
    names = check_formats(formats, out)
    recordings = list_recordings(files, sys.stdin)
    given = GivenEntities.read(entities, recordings)
    changes = search_changes(beam, lm, lm_weight, settings or [], settings_file, rescore_lm)
    files_of_models = [path for path in (lm, rescore_lm) if path]
    job = _Job(model, device, given, files_of_models, changes, batch_s)
    if context:
        job.take_contexts(context, recordings)
    if out is None:
        return _to_stdout(job, recordings, names[0])
    return _to_folder(job, recordings, names, out, overwrite)


def check_formats(text: str, out: Path | None) -> list[str]:
    """The names in ``--format``, each known and once.

    Raises:
        ConfigError: an unknown name, or one that standard output cannot take.
    """
    from asr.writers import FORMATS

    names = list(dict.fromkeys(name for name in text.replace(" ", "").split(",") if name))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise ConfigError(f"--format {text!r}", f"some of {','.join(FORMATS)}", "correct the name")
    if out is None and (len(names) > 1 or names[0] not in ON_STDOUT):
        raise ConfigError(f"--format {text} without --out", " or ".join(ON_STDOUT), "add --out DIR")
    return names


class _Job:
    """What is to be done, apart from where results go."""

    def __init__(
        self,
        model: Path,
        device: str,
        entities: GivenEntities,
        models: Sequence[Path],
        changes: dict[str, Any],
        batch_s: float,
    ) -> None:
        from asr.bundle import bundle_fingerprint

        self._model = model
        self._device = device
        self._entities = entities
        self._models = models
        self._changes = changes
        self._batch_s = batch_s
        self._contexts: dict[Path | AudioPart, UtteranceContext] = {}
        self.settings: dict[str, Any] = {
            "model": bundle_fingerprint(model),
            "entities": entities.mark,
            "search": changes,
            "lm": [file_digest(path) for path in models],
        }
        self.notes: dict[str, Any] = {}
        self.tally = Tally()
        self.seconds = 0.0

    def take_contexts(self, path: Path, recordings: Sequence[Recording]) -> None:
        """Read what is known of recordings.

        Raises:
            ConfigError, DataError: contexts of none of them, or two contexts of one file.
        """
        from asr.cli.contexts import contexts_of

        self._contexts = contexts_of(path, recordings)
        self.settings["context"] = file_digest(path)

    def load(self) -> Recognise:
        """The model, with the lists checked against it."""
        recognizer = load_recognizer(self._model, self._device)
        options = search_options(recognizer, self._changes)
        add_models(recognizer, self._models, options)
        counts = self._entities.check(recognizer, options)
        if counts is not None:
            self.notes["entity_list"] = counts
        return partial(
            recognizer.transcribe_many,
            entities=self._entities.lists,
            contexts=self._contexts,
            batch_s=self._batch_s,
            options=options,
        )

    def run(self, recordings: Sequence[Recording], folder: ResultsFolder | None = None) -> Iterator[Outcome]:
        """Outcomes one by one, counted; each error is a line on standard error at once."""
        if not recordings:
            return
        recognise = self.load()
        if folder:
            folder.notes.update(self.notes)
        sizes = {r.id: _size(r.path) for r in recordings}
        start = time.monotonic()
        wanted = folder is not None or not sys.stdout.isatty()
        with Bar(sum(sizes.values()), len(recordings), wanted) as bar:
            try:
                for outcome in run_batch(recognise, recordings, folder):
                    self.tally.add(outcome)
                    if isinstance(outcome.result, VocativeError):
                        bar.say(f"failed: {_about(outcome)}")
                    bar.advance(sizes[outcome.recording.id])
                    yield outcome
            finally:
                self.seconds = time.monotonic() - start

    def end(self, interrupted: bool, hint: str) -> int:
        """Say what was done; returns the exit code."""
        if interrupted:
            say(f"interrupted; {hint}")
        say(self.tally.summary(self.seconds))
        if interrupted:
            return 130
        return 1 if self.tally.failed else 0


def add_models(recognizer: Recognizer, paths: Sequence[Path], options: DecodingConfig) -> None:
    """Offer language models to a recognizer, and read those that ``options`` use before anything is searched."""
    from lm.model_files import model_name

    for path in paths:
        recognizer.language_models.add(model_name(path), path)
    if options.rescoring.unit == "word" and options.rescoring.lm:
        recognizer.language_models.words(options.rescoring.lm)
    for name in options.subword_models:
        recognizer.language_models.get(name)


def _to_folder(
    job: _Job, recordings: Sequence[Recording], formats: Sequence[str], out: Path, overwrite: bool
) -> int:
    from asr.writers import write

    interrupted = False
    hint = "run the same command again to go on"
    with ResultsFolder(out, formats, write, job.settings, overwrite=overwrite) as folder:
        pending = folder.pending(recordings)
        job.tally.skipped = len(recordings) - len(pending)
        try:
            for _ in job.run(pending, folder):
                pass
        except KeyboardInterrupt:
            interrupted = True
        except OutputError as error:
            say(f"error: {error}")
            job.end(False, hint)
            return 1
    return job.end(interrupted, hint)


def _to_stdout(job: _Job, recordings: Sequence[Recording], kind: str) -> int:
    lines: dict[str, str | None] = {}
    waiting = deque(recording.id for recording in recordings)
    interrupted = False
    try:
        for outcome in job.run(recordings):
            lines[outcome.recording.id] = _line(outcome, kind, job.notes)
            while waiting and waiting[0] in lines:
                _print(lines.pop(waiting.popleft()))
    except KeyboardInterrupt:
        interrupted = True
        for name in waiting:
            _print(lines.get(name))
    return job.end(interrupted, "add --out DIR to be able to go on where a call was stopped")


def _line(outcome: Outcome, kind: str, notes: dict[str, Any]) -> str | None:
    if kind == "json":
        return json.dumps({**outcome.record(), **notes}, ensure_ascii=False)
    if isinstance(outcome.result, VocativeError):
        return None
    return f"{outcome.recording.id}\t{outcome.result.text}"


def _about(outcome: Outcome) -> str:
    """What is wrong with a recording, which the line names."""
    recording, error = outcome.recording, str(outcome.result)
    whole = recording.audio == recording.path
    return error if whole and str(recording.path) in error else f"{recording.id}: {error}"


def _print(line: str | None) -> None:
    if line is not None:
        put(line)


def load_recognizer(model: Path, device: str) -> Recognizer:
    """Load a model onto a device that exists.

    Raises:
        ConfigError: this machine has no such device.
        BundleError: the model cannot be used.
    """
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        given = f"--device {device!r} ({reason})"
        raise ConfigError(given, "a device of this machine such as cpu or cuda", "use --device cpu") from None
    from asr.recognizer import Recognizer
    from decoding.compile import is_compiled

    if device == "cpu" and not is_compiled():
        say("compiling the search for this machine, once; this takes half a minute")
    return Recognizer.load(model, device)


def file_digest(path: Path) -> str:
    """Identifies the content of a file.

    Raises:
        ConfigError: it cannot be read.
    """
    import hashlib

    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "a file that can be read", "check the path") from None


def _size(path: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        return float(path.stat().st_size)
    return 0.0
