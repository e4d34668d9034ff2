"""The training loop of language models: text from disk, exact resume, the best of several evaluations kept.

Every random choice of update n is drawn from a generator seeded by (seed, n), and the batches of an epoch are a
function of (seed, epoch): a run that was stopped anywhere and resumed makes the same updates as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asr.data.text_batches import TextBatch
from asr.losses.text import text_loss
from asr.training.checkpoint import CheckpointStore, Progress, load_tensors, save_tensors
from asr.training.loop import MAX_BAD_UPDATES, takes_bf16
from asr.training.optimizer import adamw
from asr.training.schedule import learning_rate
from asr.training.signals import on_signals
from asr.training.text_config import TextTrainingConfig
from lm.errors import DataError, Interrupted
from lm.language_model import LanguageModel

CURVE = 200
"""Points of the training curve."""


class Text(Protocol):
    """What the loop asks of its text; see ``asr.data.text_batches.TextBatches``."""

    def count(self, epoch: int) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, epoch: int, first: int = 0) -> Iterator[TextBatch]:
        """The batches of an epoch, without the ``first`` ones."""
        ...


class TextTrainer:
    """Trains one language model.

    Args:
        model: it; where batches have contexts, its ``forward`` takes them.
        config: the training's settings.
        text: training batches.
        dev: batches to judge on; those of epoch 0.
        folder: checkpoints, best weights, ``log.jsonl`` and TensorBoard files are written here.
        fingerprint: identifies everything above, so that only this run's own checkpoints are continued.
        seed: of dropout.
        device: where to train.
        on_step: called after each update with the updates done.
        loss: of a batch in nats a token, and its tokens; on dev it is always the cross-entropy.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: TextTrainingConfig,
        text: Text,
        dev: Text,
        folder: Path,
        fingerprint: str,
        seed: int = 0,
        device: str = "cpu",
        on_step: Callable[[int], None] | None = None,
        loss: Callable[[LanguageModel, TextBatch], tuple[Tensor, int]] = text_loss,
    ) -> None:
        self.model = model.to(device)
        self.config = config
        self.text = text
        self.dev = dev
        self.folder = folder
        self.seed = seed
        self.device = torch.device(device)
        self.on_step = on_step
        self.loss = loss
        self.optimizer = adamw(model, config.peak_lr, config.weight_decay)
        self.store = CheckpointStore(folder / "checkpoints", fingerprint)
        self.steps = sum(text.count(epoch) for epoch in range(config.epochs))
        self.best = math.inf
        self._evaluate_at = {
            round(self.steps * (i + 1) / config.evaluations) for i in range(config.evaluations)
        } - {0}
        self._narrow = takes_bf16("auto", self.device) and self.device.type == "cuda"
        self._stop = False
        self._bad = 0
        self._saved_at = time.monotonic()
        self._curve = _Curve(max(1, self.steps // CURVE))

    def run(self) -> dict[str, Tensor]:
        """Train to the end and return the best weights; continues where an earlier run was stopped."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        progress = self.store.restore(self.model, self.optimizer) or Progress()
        self._forget_after(progress.step)
        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=progress.step + 1)
        try:
            with on_signals(self._ask_to_stop):
                for epoch in range(progress.epoch, self.config.epochs):
                    progress = self._epoch(progress, epoch, writer)
        finally:
            writer.close()
        return load_tensors(self.folder / "best.safetensors")

    def _epoch(self, progress: Progress, epoch: int, writer: Any) -> Progress:
        batches = self.text.count(epoch)
        done = progress.batch if epoch == progress.epoch else 0
        step = progress.step
        for batch in self.text.epoch(epoch, done):
            self._update(batch, step)
            step, done = step + 1, done + 1
            here = Progress(epoch, done, step) if done < batches else Progress(epoch + 1, 0, step)
            if point := self._curve.point(step):
                for name, value in point.items():
                    writer.add_scalar(name, value, step)
            if step in self._evaluate_at:
                self._evaluate(here, writer)
            if self.on_step:
                self.on_step(step)
            due = time.monotonic() - self._saved_at > self.config.checkpoint_s
            if self._stop or due or step in self._evaluate_at:
                self._save(here)
        return Progress(epoch + 1, 0, step)

    def _update(self, batch: TextBatch, step: int) -> None:
        config = self.config
        torch.manual_seed(self.seed * 1_000_003 + step)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._narrow):
            loss, count = self.loss(self.model, batch.to(self.device))
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if not torch.isfinite(norm):
            self._skip()
            return
        self._bad = 0
        rate = learning_rate(step, self.steps, config.peak_lr, config.warmup, config.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._curve.add(float(loss.detach()), count, rate)

    def _skip(self) -> None:
        self._bad += 1
        if self._bad >= MAX_BAD_UPDATES:
            raise DataError(
                f"{self._bad} updates in a row had no finite gradient", "finite losses", "lower peak_lr"
            )

    @torch.no_grad()
    def validate(self) -> float:
        """Nats a token on dev, entities as the dev batches have them."""
        self.model.eval()
        total, tokens = 0.0, 0
        for batch in self.dev.epoch(0):
            loss, count = text_loss(self.model, batch.to(self.device))
            total, tokens = total + float(loss) * count, tokens + count
        return total / max(1, tokens)

    def _evaluate(self, progress: Progress, writer: Any) -> None:
        began = time.monotonic()
        trained, speed = self._curve.summary()
        dev = self.validate()
        if dev < self.best or not (self.folder / "best.safetensors").exists():
            self.best = min(dev, self.best)
            save_tensors(self.folder / "best.safetensors", self.model.state_dict())
        row = {
            "epoch": progress.epoch,
            "step": progress.step,
            "train": trained,
            "dev": dev,
            "tokens_per_s": round(speed, 1),
            "best": self.best,
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")
        writer.add_scalar("loss/dev", dev, progress.step)
        self._curve.rest(time.monotonic() - began)

    def _save(self, progress: Progress) -> None:
        self.store.save(self.model, self.optimizer, progress)
        self._saved_at = time.monotonic()
        if self._stop and progress.step < self.steps:
            raise Interrupted(
                f"stopped after {progress.step} of {self.steps} updates",
                "a finished training",
                "run the same command again: it continues from there",
            )

    def _forget_after(self, step: int) -> None:
        """Drop what was logged behind the checkpoint: it will be logged again."""
        path = self.folder / "log.jsonl"
        rows = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in map(_row, rows) if row and row["step"] <= step]
        self.best = min((row["dev"] for row in kept), default=math.inf)
        scratch = path.with_name(".log.writing")
        scratch.write_text("".join(json.dumps(row) + "\n" for row in kept))
        scratch.replace(path)

    def _ask_to_stop(self) -> None:
        self._stop = True


def _row(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that was cut short."""
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return found


class _Curve:
    """Mean loss and speed between points."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._point = [0.0, 0]
        self._all = [0.0, 0]
        self._rate = 0.0
        self._began = self._point_began = time.monotonic()

    def add(self, loss: float, tokens: int, rate: float) -> None:
        for sums in (self._point, self._all):
            sums[0] += loss * tokens
            sums[1] += tokens
        self._rate = rate

    def rest(self, seconds: float) -> None:
        """So much time was spent on something else."""
        self._point_began += seconds
        self._began += seconds

    def point(self, step: int) -> dict[str, float]:
        """What to draw at ``step``, if anything."""
        if step % self._every or not self._point[1]:
            return {}
        took = max(time.monotonic() - self._point_began, 1e-9)
        found = {
            "loss/train": self._point[0] / self._point[1],
            "tokens_per_s": self._point[1] / took,
            "learning_rate": self._rate,
        }
        self._point, self._point_began = [0.0, 0], time.monotonic()
        return found

    def summary(self) -> tuple[float, float]:
        """Nats a token and tokens a second since the last summary."""
        loss, tokens = self._all
        speed = tokens / max(time.monotonic() - self._began, 1e-9)
        self._all, self._began = [0.0, 0], time.monotonic()
        return loss / max(1, tokens), speed
