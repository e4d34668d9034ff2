"""The training loop: any family, exact resume, nothing lost to an interruption.

Every random choice of update n (dropout, masks, speeds, tags) is drawn from a generator seeded by (seed, n), and
the batches of an epoch by (seed, epoch). So a run that was stopped anywhere and resumed makes the same updates
as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from asr.augment import spec_augment
from asr.data.batches import BatchPlan, FeatureLoader
from asr.data.distortion import Distortion
from asr.data.examples import Batch, Example, make_batch
from asr.encoders.stages import stage_of_epoch
from asr.training.average import average_epochs
from asr.training.checkpoint import CheckpointStore, Progress, save_tensors
from asr.training.config import TrainingConfig
from asr.training.optimizer import adamw
from asr.training.processes import Processes, add_up
from asr.training.schedule import learning_rate
from asr.training.sharding import Objective, whole
from asr.training.signals import on_signals
from lm.errors import DataError, Interrupted

MAX_BAD_UPDATES = 20
"""So many updates without a finite gradient in a row end the training."""


class Trainable(Protocol):
    """What the loop asks of a model family."""

    def losses(self, batch: Batch, config: Any) -> dict[str, Tensor]:
        """Parts of the objective by name, ``total`` being what is minimised."""
        ...


class Trainer:
    """Trains one model.

    Args:
        model: a family's model; its ``losses`` gives the objective.
        loss_config: handed to ``losses``; must have ``class_rate``.
        config: the training's own settings.
        examples: transcripts by utterance id, for training and validation.
        train: batches of training utterance ids by epoch.
        valid: batches of validation utterance ids.
        loader: features by utterance id.
        num_tokens: V.
        folder: checkpoints, weights after each epoch, ``log.jsonl`` and TensorBoard files are written here.
        text: sentences without speech, for families with a language model inside.
        fingerprint: identifies everything above, so that only this run's own checkpoints are continued.
        device: where to train.
        on_step: called after each update with (updates done, updates in all, loss).
    """

    def __init__(
        self,
        model: nn.Module,
        loss_config: Any,
        config: TrainingConfig,
        examples: Mapping[str, Example],
        train: BatchPlan,
        valid: Sequence[Sequence[str]],
        loader: FeatureLoader,
        num_tokens: int,
        folder: Path,
        fingerprint: str,
        text: Sequence[Example] = (),
        device: str = "cpu",
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> None:
        self.model = model.to(device)
        self.loss_config = loss_config
        self.config = config
        self.examples = examples
        self.train = train
        self.valid = valid
        self.loader = loader
        self.num_tokens = num_tokens
        self.text = text
        self.folder = folder
        self.device = torch.device(device)
        self.on_step = on_step
        self.processes = Processes()
        self._sharded = Objective(model, self.device, self.processes.count) if config.shard else None
        self.optimizer = adamw(model, config.peak_lr, config.weight_decay)
        self._distortion = Distortion(config.noise, config.reverb, config.seed, loader.config.sample_rate)
        self._narrow = takes_bf16(config.precision, self.device)
        self.store = CheckpointStore(folder / "checkpoints", fingerprint)
        self.steps = sum(-(-len(train.epoch(e)) // config.accumulate) for e in range(config.epochs))
        self._stop = False
        self._bad = 0
        self._saved_at = time.monotonic()

    def run(self) -> dict[str, Tensor]:
        """Train to the end and return the averaged weights; continues where an earlier run was stopped."""
        progress = self.store.restore(self.model, self.optimizer) or Progress()
        self.folder.mkdir(parents=True, exist_ok=True)
        with on_signals(self._ask_to_stop):
            for epoch in range(progress.epoch, self.config.epochs):
                first = progress.batch if epoch == progress.epoch else 0
                progress = self._epoch(epoch, first, progress.step)
        self._stage(self.config.epochs)
        self.processes.gather(None)  # the first has written the last epoch
        return average_epochs(self.folder, self.config.epochs, self.config.average)

    def _epoch(self, epoch: int, first: int, step: int) -> Progress:
        batches = self.train.epoch(epoch)
        size = self.config.accumulate
        updates = [batches[i : i + size] for i in range(0, len(batches), size)]
        self._stage(epoch)
        sums: dict[str, float] = {}
        began, worked = time.monotonic(), time.process_time()
        for index in range(first, len(updates)):
            sums = add_up((sums, self._update(updates[index], step, epoch)))
            step += 1
            if self.on_step:
                self.on_step(step, self.steps, sums["total"] / (index + 1 - first))
            due = time.monotonic() - self._saved_at > self.config.checkpoint_s
            if self._stop or (due and index + 1 < len(updates)):
                self._save(Progress(epoch, index + 1, step))
        trained = {name: total / max(1, len(updates) - first) for name, total in sums.items()}
        valid = self.validate()
        progress = Progress(epoch + 1, 0, step)
        weights = whole(self.model.state_dict(), keep=self.processes.first)
        if self.processes.first:
            took = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - worked}
            self._log(epoch, step, trained, valid, took)
            save_tensors(self.folder / f"epoch-{epoch:04d}.safetensors", weights)
            (self.folder / f"epoch-{epoch - self.config.average:04d}.safetensors").unlink(missing_ok=True)
        self._save(progress)
        return progress

    def _stage(self, epoch: int) -> None:
        """Use the part of the encoder that this epoch trains."""
        stage = stage_of_epoch(self.config.pretrain, epoch)
        encoder: Any = self.model.get_submodule("encoder") if self.config.pretrain else None
        if encoder is not None:
            encoder.set_stage(stage.layers if stage else None, stage.reductions if stage else None)
        told: Any = getattr(self.model, "pretraining", None)
        if told is not None:
            told(stage is not None)

    def _update(self, batches: Sequence[Sequence[str]], step: int, epoch: int) -> dict[str, float]:
        """One update from some batches, as if they were one: each counts by its labels."""
        config = self.config
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        labels = [max(1, sum(len(self.examples[i].labels) for i in ids)) for ids in batches]
        parts: dict[str, float] = {}
        for index, counts in self.processes.turns(len(batches), together=config.shard):
            share = labels[index] / sum(labels) if counts else 0.0
            batch = self._seeded(batches[index], step, index, epoch)
            parts = add_up((parts, self._gradients(batch, share)))
        if not config.shard:
            self.processes.add_gradients(self.model.parameters())
        gathered = self.processes.gather((parts, self._stop))
        parts = add_up(each for each, _ in gathered)
        self._stop = any(stop for _, stop in gathered)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if not torch.isfinite(whole(norm)):
            self._skip(batches[0])
            return dict.fromkeys(parts, 0.0)
        self._bad = 0
        rate = learning_rate(step, self.steps, config.peak_lr, config.warmup, config.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return parts

    def _seeded(self, ids: Sequence[str], step: int, index: int, epoch: int) -> Batch:
        """Batch ``index`` of an update, all random choices from here to the loss being the update's own."""
        seed = self.config.seed * 1_000_003 + step + index * 1_000_000_007
        torch.manual_seed(seed)
        return self._batch(ids, torch.Generator().manual_seed(seed), epoch)

    def _gradients(self, batch: Batch, share: float) -> dict[str, float]:
        """Add a batch's gradients, and give its loss parts, both times ``share``."""
        parts = self._losses(batch.to(self.device))
        torch.autograd.backward(parts["total"] * share)
        values = torch.stack([value.detach().float() for value in parts.values()]).tolist()  # waits once
        return {name: share * value for name, value in zip(parts, values, strict=True)}

    def _skip(self, ids: Sequence[str]) -> None:
        self._bad += 1
        if self._bad >= MAX_BAD_UPDATES:
            raise DataError(
                f"{self._bad} updates in a row had no finite gradient (last batch: {', '.join(ids[:3])} …)",
                "finite losses",
                "lower training.peak_lr, use training.precision=fp32, or look at these recordings",
            )

    def _batch(self, ids: Sequence[str], generator: torch.Generator, epoch: int | None) -> Batch:
        """A training batch of ``epoch``; without an epoch, utterances as they are, to validate on."""
        training = epoch is not None
        speeds = self.config.speeds if training else (1.0,)
        drawn = torch.randint(len(speeds), (len(ids),), generator=generator).tolist()
        changes = [None if epoch is None else self._distortion.of(i, epoch) for i in ids]
        features, lengths = self.loader.collate(
            [self.loader.load(i, speeds[s], c) for i, s, c in zip(ids, drawn, changes, strict=True)]
        )
        if training:
            features = spec_augment(features, lengths, self.config.spec_augment, generator)
        text: list[Example] = []
        if training and self.text:
            drawn_text = torch.randint(len(self.text), (self.config.text_sentences,), generator=generator)
            text = [self.text[i] for i in drawn_text.tolist()]
        rate = self.loss_config.class_rate
        examples = [self.examples[i] for i in ids]
        return make_batch(features, lengths, examples, self.num_tokens, rate, generator, text)

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._narrow):
            objective: Any = self._sharded or self.model.losses
            parts: dict[str, Tensor] = objective(batch, self.loss_config)
        return parts

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean loss parts over the validation batches, each utterance as it is."""
        self.model.eval()
        sums: dict[str, float] = {}
        for index, counts in self.processes.turns(len(self.valid), together=self.config.shard):
            generator = torch.Generator().manual_seed(self.config.seed)
            batch = self._batch(self.valid[index], generator, epoch=None).to(self.device)
            parts = self._losses(batch)
            if not counts:
                continue
            values = torch.stack([value.float() for value in parts.values()]).tolist()
            sums = add_up((sums, {n: v / len(self.valid) for n, v in zip(parts, values, strict=True)}))
        if self._sharded:
            cast(
                Any, self._sharded
            ).reshard()  # without a backward pass nothing else drops the fetched weights
        return add_up(self.processes.gather(sums))

    def _save(self, progress: Progress) -> None:
        self.store.save(self.model, self.optimizer, progress, write=self.processes.first)
        self._saved_at = time.monotonic()
        if self._stop:
            raise Interrupted(
                f"stopped after {progress.step} of {self.steps} updates",
                "a finished training",
                "run the same command again: it continues from there",
            )

    def _log(
        self,
        epoch: int,
        step: int,
        train: dict[str, float],
        valid: dict[str, float],
        took: dict[str, float],
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        row = {"epoch": epoch, "step": step, "train": train, "valid": valid}
        row |= {name: round(seconds, 2) for name, seconds in took.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        writer = SummaryWriter(str(self.folder / "tensorboard"))
        for split, parts in (("train", train), ("valid", valid)):
            for name, value in parts.items():
                writer.add_scalar(f"{name}/{split}", value, step)
        writer.close()

    def _ask_to_stop(self) -> None:
        self._stop = True


def takes_bf16(precision: str, device: torch.device) -> bool:
    """Whether a training of ``precision`` on ``device`` multiplies in bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
