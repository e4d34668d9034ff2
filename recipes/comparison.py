"""Several experiments with several seeds each, and the table of what came out.

What a run found is kept in a small file of its own, so a table may be made over many sittings and machines: runs
whose file is there are not done again.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any, TypeAlias

from pydantic import Field, field_validator

from lm.config import Config, build_config, merge
from lm.errors import ConfigError
from recipes.asr import asr_recipe
from recipes.config import RecipeConfig
from recipes.console import say
from recipes.evaluate import audio_of, references_of
from recipes.fingerprint import write_json
from recipes.train import Layout

Name: TypeAlias = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]*$")]


class ComparisonConfig(Config):
    """Experiments to compare, each with every seed."""

    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of each experiment (``training.seed``), no two alike."""
    base: dict[str, Any]
    """What the experiments share: a recipe's configuration."""
    experiments: dict[Name, dict[str, Any]] = Field(min_length=1)
    """What differs, by name. In ``initial``, ``experiment: NAME`` in place of ``source`` is that experiment's model
    of the same seed, which must be trained before: name it first."""
    times_from: Name | None = None
    """The experiment, of family ``ctc``, whose model of the same seed says when the words of the references were
    said; the others' delays are measured against it. None: delays are not measured."""

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed once")
        return seeds


class Comparison:
    """A table in the making.

    Args:
        config: what is compared.
        workdir: has a work folder for each run.
        results: has the file of each finished run.
        source: folder of the corpus, for one that is not made on the spot.

    Raises:
        ConfigError: an experiment that its recipe would not take.
    """

    def __init__(
        self, config: ComparisonConfig, workdir: Path, results: Path, source: Path | None = None
    ) -> None:
        if config.times_from is not None and config.times_from not in config.experiments:
            known = ", ".join(config.experiments)
            raise ConfigError(f"times_from = {config.times_from!r}", f"one of {known}", "correct it")
        self.config = config
        self._workdir = workdir
        self._results = results
        self._source = source
        for name in config.experiments:
            recipe = self._recipe(name, config.seeds[0])
            try:
                asr_recipe(recipe, self._layout(name, 0).workdir, source)
            except ConfigError as error:
                raise ConfigError(f"experiment {name!r}: {error.given}", error.expected, error.fix) from None

    def run(self, only: Sequence[str] = (), dry_run: bool = False) -> None:
        """Do the runs that are missing, seed by seed."""
        for seed in self.config.seeds:
            for name in only or self.config.experiments:
                if self.found(name, seed) is not None:
                    say(f"{name}, seed {seed}: there already", "green")
                    continue
                say(f"{name}, seed {seed}", "bold")
                recipe = asr_recipe(self._recipe(name, seed), self._layout(name, seed).workdir, self._source)
                recipe.run(dry_run=dry_run)
                if not dry_run:
                    self._results.mkdir(parents=True, exist_ok=True)
                    write_json(self._file(name, seed), self._figures(name, seed))

    def found(self, name: str, seed: int) -> dict[str, Any] | None:
        """What a run found; None if it is missing or was made with other settings."""
        file = self._file(name, seed)
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found if found.get("settings") == self._values(name, seed) else None

    def systems(self, name: str) -> list[str]:
        """Names of an experiment's systems, in their order."""
        return [system.name for system in self._recipe(name, self.config.seeds[0]).systems]

    def _values(self, name: str, seed: int) -> dict[str, Any]:
        values = merge(self.config.base, self.config.experiments[name])
        return merge(values, {"training": {"seed": seed}})

    def _recipe(self, name: str, seed: int) -> RecipeConfig:
        values = self._values(name, seed)
        if "initial" in values:
            values["initial"] = [self._begins(name, each, seed) for each in values["initial"]]
        return build_config(RecipeConfig, values, f"experiment {name!r}")

    def _begins(self, name: str, initial: dict[str, Any], seed: int) -> dict[str, Any]:
        """``initial`` of an experiment, with the place of the other experiment that it names."""
        if "experiment" not in initial:
            return initial
        before = list(self.config.experiments)[: list(self.config.experiments).index(name)]
        if "source" in initial:
            raise ConfigError(
                f"experiment {name!r}: initial with experiment and source", "one of them", "drop one"
            )
        if initial["experiment"] not in before:
            raise ConfigError(
                f"experiment {name!r}: initial.experiment = {initial['experiment']!r}",
                f"one that stands before it: {', '.join(before) or 'there is none'}",
                "correct it",
            )
        rest = {key: value for key, value in initial.items() if key != "experiment"}
        return {"source": str(self._layout(initial["experiment"], seed).model), **rest}

    def _layout(self, name: str, seed: int) -> Layout:
        return Layout(self._workdir / f"{name}-s{seed}")

    def _file(self, name: str, seed: int) -> Path:
        return self._results / f"{name}-s{seed}.json"

    def _figures(self, name: str, seed: int) -> dict[str, Any]:
        """What is kept of a run."""
        folder, config = self._layout(name, seed), self._recipe(name, seed)
        log = [json.loads(row) for row in (folder.training / "log.jsonl").read_text().splitlines()]
        times, scores = json.loads(folder.times.read_text()), json.loads(folder.results.read_text())
        tuned = json.loads(folder.tuned.read_text())
        systems = {}
        for system in config.systems:
            score = scores[system.name]
            systems[system.name] = {
                "dev_wer": min(tried["wer"] for tried in tuned[system.name]["dev"]),
                "f1": (score["entities"]["text"] or {}).get("f1", {}).get("value"),
                "false_alarms": score["false_alarms"] and score["false_alarms"]["per_1000"]["value"],
                "cpu_seconds": times[system.name]["cpu_seconds"],
                "audio_s": times[system.name]["audio_s"],
                "delays_s": self._delays(name, seed, system.name),
                "utterances": {
                    utterance: [errors["sub"] + errors["ins"] + errors["del"], errors["ref"]]
                    for utterance, errors in score["utterances"].items()
                },
            }
        return {
            "settings": self._values(name, seed),
            "parameters": _parameters(folder.weights),
            "training_cpu_seconds": round(sum(row.get("cpu_seconds", 0.0) for row in log), 1),
            "machine": platform.machine(),
            "systems": systems,
        }

    def _delays(self, name: str, seed: int, system: str) -> list[float] | None:
        """Seconds by which each right word began later than in the best alignment of the reference."""
        if self.config.times_from is None:
            return None
        aligner = self._layout(self.config.times_from, seed)
        if not aligner.model.is_dir():
            say(f"    no delays: {aligner.model} is not there", "yellow")
            return None
        return _delays(aligner, self._layout(name, seed), system)


def _delays(aligner: Layout, folder: Layout, system: str) -> list[float]:
    from asr.alignment import word_starts
    from asr.recognizer import Recognizer
    from asr.scoring.errors import align
    from asr.writers import from_dict

    recognizer = Recognizer.load(aligner.model)
    references, audio = references_of(folder, "test"), audio_of(folder, "test")
    delays = []
    for row in folder.hypotheses(system).read_text().splitlines():
        found = from_dict(json.loads(row))
        said = references[found.id].surface.split()
        starts = word_starts(recognizer, audio[found.id], " ".join(said))
        for i, j in align(said, [word.text for word in found.words]):
            if i is not None and j is not None and said[i] == found.words[j].text:
                delays.append(round(found.words[j].start_s - starts[i], 3))
    return delays


def _parameters(weights: Path) -> int:
    """Numbers that training has to find; the features' statistics are not among them."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    total = 0
    for name, shape in shapes.items():
        size = 1
        for side in shape:
            size *= side
        total += 0 if name.startswith("normaliser.") else size
    return total


def table(comparison: Comparison, only: Sequence[str] = ()) -> str:
    """The table in Markdown, a row for each system of each experiment (of ``only``, if any) that has a run.

    The error rate is the mean over seeds; its 95 % interval is of utterances drawn anew, the same for all seeds.
    """
    head = ("system", "parameters", "WER %", "by seed", "dev %", "F1 %", "training", "decoding", "delay")
    lines = [" | ".join(("", *head, "")).strip(), "|---" * len(head) + "|"]
    for name in only or comparison.config.experiments:
        runs = [comparison.found(name, seed) for seed in comparison.config.seeds]
        done = [run for run in runs if run is not None]
        for system in comparison.systems(name) if done else ():
            lines.append(" | ".join(("", *_row(system, done), "")).strip())
    return "\n".join(lines)


def _row(system: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    import numpy as np

    from asr.scoring.bootstrap import Bootstrap, ratio

    found = [run["systems"][system] for run in runs]
    counts = np.stack([np.array(list(each["utterances"].values()), dtype=np.float64) for each in found]).sum(
        0
    )
    rate = Bootstrap(len(counts)).interval(counts, ratio)
    single = [np.array(list(each["utterances"].values())).sum(0) for each in found]
    delays = [delay for each in found for delay in each["delays_s"] or ()]
    audio = mean(each["audio_s"] / each["cpu_seconds"] for each in found)
    return (
        system,
        f"{mean(run['parameters'] for run in runs) / 1e6:.2f} M",
        f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]",
        ", ".join(f"{100 * errors / words:.1f}" for errors, words in single),
        _mean(found, "dev_wer", 100.0),
        _mean(found, "f1", 100.0),
        f"{mean(run['training_cpu_seconds'] for run in runs) / 60:.0f} min",
        f"{audio:.0f} x",
        f"{1000 * median(delays):.0f} ms" if delays else "-",
    )


def _mean(found: Sequence[Mapping[str, Any]], key: str, times: float) -> str:
    values = [each[key] for each in found]
    return f"{times * mean(values):.1f}" if all(value is not None for value in values) else "-"
