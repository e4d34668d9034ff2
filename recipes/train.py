"""From prepared data to trained weights."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.errors import DataError
from recipes.config import RecipeConfig, TokenizerConfig
from recipes.console import progress, say
from recipes.initial import begin_with

if TYPE_CHECKING:
    from lhotse import CutSet

    from asr.data.batches import FeatureLoader
    from asr.training.loop import Trainer
    from asr.training.processes import Processes


@dataclass(frozen=True)
class Layout:
    """Where an experiment keeps its files."""

    workdir: Path

    @property
    def data(self) -> Path:
        """Kaldi-style folders train, dev and test, entity lists and LM text."""
        return self.workdir / "data"

    def cuts(self, split: str) -> Path:
        """The lhotse manifest of a split."""
        return self.workdir / "manifests" / f"{split}.jsonl.gz"

    @property
    def tokenizer(self) -> Path:
        """SentencePiece model."""
        return self.workdir / "tokenizer.model"

    def language_model(self, name: str) -> Path:
        """A trained language model."""
        return self.workdir / "lm" / f"{name}.safetensors"

    @property
    def features(self) -> Path:
        """Features of the training and dev speech."""
        return self.workdir / "features"

    @property
    def training(self) -> Path:
        """Checkpoints and logs of the training."""
        return self.workdir / "training"

    @property
    def weights(self) -> Path:
        """The averaged weights."""
        return self.workdir / "weights.safetensors"

    @property
    def model(self) -> Path:
        """The finished model folder."""
        return self.workdir / "model"

    @property
    def tuned(self) -> Path:
        """Decoding settings of every system, chosen on dev."""
        return self.workdir / "tuned.json"

    def hypotheses(self, system: str) -> Path:
        """What a system recognised in the test set."""
        name = "".join(c if c.isalnum() else "-" for c in system.lower()).strip("-")
        return self.workdir / "results" / f"{name}.jsonl"

    @property
    def times(self) -> Path:
        """How long the transcription of the test set took."""
        return self.workdir / "results" / "times.json"

    @property
    def results(self) -> Path:
        """The figures of all systems."""
        return self.workdir / "RESULTS.json"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.workdir / "report.html"


TRAIN, OVER = "train", "over"
"""What the first of several processes tells the others."""


def make_manifests(folder: Layout, splits: Sequence[str]) -> None:
    """Write the lhotse manifest of each split; recordings that cannot be used are named and left out."""
    from asr.data.kaldi import read_data_dir, read_table
    from asr.data.manifest import save_cuts, to_cuts

    for split in splits:
        tagged = read_table(folder.data / split / "tagged")
        cuts, problems = to_cuts(read_data_dir(folder.data / split))
        for problem in problems:
            say(f"    {split}: left out {problem.id}: {problem.error}", "red")
        if not len(cuts):
            raise DataError(
                f"no usable recording in {folder.data / split}", "at least one", "check the corpus"
            )

        def with_tags(cut):  # type: ignore[no-untyped-def]
            cut.supervisions[0].custom = {"tagged": tagged[cut.id]}  # noqa: B023
            return cut

        save_cuts(cuts.map(with_tags).to_eager(), folder.cuts(split))
        hours = sum(cut.duration for cut in cuts) / 3600
        say(f"    {split}: {len(cuts)} utterances, {hours:.2f} hours, {len(problems)} left out")


def make_tokenizer(folder: Layout, config: TokenizerConfig, classes: Sequence[str]) -> None:
    """Train the tokenizer on the transcripts and the text for language models."""
    from asr.data.kaldi import read_table
    from lm.tokenizer import Tokenizer

    lines = list(read_table(folder.data / "train" / "tagged").values())
    lines += (folder.data / "lm_text.txt").read_text().splitlines()
    tokenizer = Tokenizer.train(lines, config.vocab_size, list(classes), config.model_type, case="upper")
    tokenizer.save(folder.tokenizer)
    say(f"    {tokenizer.vocab_size} surface tokens, {tokenizer.num_classes} classes")


def train_model(config: RecipeConfig, folder: Layout) -> None:
    """Train, or go on training, and write the averaged weights.

    Under torchrun every process comes here, the first from its recipe and the others from ``follow``.
    """
    import torch

    from asr.training.checkpoint import save_tensors
    from asr.training.processes import Processes

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    processes = Processes()
    if processes.first:
        processes.tell(TRAIN)
    torch.set_num_threads(config.training.threads)
    torch.manual_seed(config.training.seed)
    trainer = _trainer(config, folder, processes)
    if not processes.first:
        trainer.run()
        return
    with progress("    training", trainer.steps) as shown:
        trainer.on_step = lambda step, steps, loss: shown(step)
        weights = trainer.run()
    save_tensors(folder.weights, weights)


def _trainer(config: RecipeConfig, folder: Layout, processes: Processes) -> Trainer:
    """The training of a model that stands where its configuration lets it begin."""
    import torch

    from asr.data.batches import BatchPlan, FeatureLoader
    from asr.data.examples import Example
    from asr.data.manifest import load_cuts
    from asr.families import load_family
    from asr.features import FeatureNormaliser
    from asr.training.loop import Trainer
    from lm.tokenizer import Tokenizer

    settings = config.training
    tokenizer = Tokenizer.load(folder.tokenizer)
    cuts = {split: load_cuts(folder.cuts(split)) for split in ("train", "dev")}
    everything = cuts["train"] + cuts["dev"]
    loader = FeatureLoader(everything, config.features, speeds=tuple({1.0, *settings.speeds}))
    examples = {
        cut.id: Example.from_text(cut.id, cut.supervisions[0].custom["tagged"], tokenizer)
        for cut in everything
    }
    family = load_family(config.family, config.model, tokenizer, "the recipe")
    if processes.first:
        say(f"    {sum(p.numel() for p in family.model.parameters()) / 1e6:.2f} million parameters")
    if settings.keep_features:
        keep_features(loader, cuts, settings.speeds, folder, processes)
    statistics = FeatureNormaliser.estimate(loader.load(cut.id) for cut in cuts["train"])
    family.model.get_submodule("normaliser").load_state_dict(statistics.state_dict())
    copied = begin_with(family.model, config.initial, tokenizer)
    if copied and processes.first:
        say(f"    {copied / 1e6:.2f} million of them from {', '.join(str(e.source) for e in config.initial)}")
    fingerprint = _fingerprint(config, folder)
    if processes.first:
        put_aside(folder.training, fingerprint)
    processes.gather(None)
    text = _read_text(folder.data / "lm_text.txt", tokenizer) if settings.text_sentences else []
    plan = BatchPlan(cuts["train"], settings.batch_s, seed=settings.seed)
    valid = BatchPlan(cuts["dev"], max(settings.batch_s, 60.0)).epoch(0)
    return Trainer(
        model=family.model,
        loss_config=family.loss_config(config.loss),
        config=settings,
        examples=examples,
        train=plan,
        valid=valid,
        loader=loader,
        num_tokens=tokenizer.vocab_size,
        folder=folder.training,
        fingerprint=fingerprint,
        text=text,
        device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu",
    )


def keep_features(
    loader: FeatureLoader,
    cuts: Mapping[str, CutSet],
    speeds: Sequence[float],
    folder: Layout,
    processes: Processes,
) -> None:
    """Keep features of ``train`` at all speeds and of ``dev`` in the work folder; the first process makes them."""
    wanted = {cut.id: (1.0,) for cut in cuts["dev"]} | {
        cut.id: tuple(sorted({1.0, *speeds})) for cut in cuts["train"]
    }
    if processes.first:
        with progress("    features", len(wanted)) as shown:
            loader.keep(wanted, folder.features, on_item=shown)
    processes.gather(None)
    if not processes.first:
        loader.keep(wanted, folder.features, make=False)


def follow(config: RecipeConfig, folder: Layout) -> None:
    """What all processes but the first do: wait for trainings and take part in them, until the recipe is over."""
    from asr.training.processes import Processes

    while Processes().tell(None) == TRAIN:
        train_model(config, folder)


def _read_text(path: Path, tokenizer):  # type: ignore[no-untyped-def]
    """Sentences without speech."""
    from asr.data.examples import Example

    lines = path.read_text().splitlines()
    return [Example.from_text(f"text-{i}", line, tokenizer) for i, line in enumerate(lines) if line.strip()]


def put_aside(training: Path, fingerprint: str) -> None:
    """Keep a training with other settings under another name, so that this one starts afresh."""
    mark = training / "fingerprint"
    if mark.exists() and (before := mark.read_text()) != fingerprint:
        old = training.with_name(f"{training.name}-{before[:8]}")
        shutil.rmtree(old, ignore_errors=True)
        training.rename(old)
        say(f"    settings or data changed: the training so far is kept in {old}")
    training.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint)


def _fingerprint(config: RecipeConfig, folder: Layout) -> str:
    """Identifies what a checkpoint of this training depends on."""
    chosen = params(config, "family", "model", "loss", "features", "training")
    for indifferent in ("threads", "checkpoint_s", "shard"):
        del chosen["training"][indifferent]
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode())
    digest.update("".join(each.model_dump_json() for each in config.initial).encode())
    for path in (folder.tokenizer, folder.cuts("train"), *(each.file for each in config.initial)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def params(config: RecipeConfig, *names: str) -> dict[str, Any]:
    """Sections of ``config`` as JSON has them, without what changes no result."""
    chosen = {name: config.model_dump(mode="json")[name] for name in names}
    if "training" in chosen:
        absent = [name for name in ("noise", "reverb") if chosen["training"][name] is None]
        for name in ("keep_features", *absent):
            del chosen["training"][name]
    return chosen
