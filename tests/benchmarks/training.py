"""Speed of training, each side beside what it is compared with, taking turns on the same batches.

    OMP_NUM_THREADS=1 python tests/benchmarks/training.py            # some minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/training.py --quick    # less than one

trainer      All that the trainer does for an epoch, from features on disk to the checkpoint and the log, against a
             bare loop (forward, backward, clipping, AdamW) over the same batches, in memory: a CTC model of 0.8
             million parameters, fp32. Validation, which a bare loop has not, is shown apart, and so is the one time
             that features are computed.
torchaudio   A step (forward and backward) of a transducer and of a factorized transducer with that model's encoder
             (and, for information, with one of 5 million parameters, beside which a loss weighs less), against the
             same with torchaudio's loss on the dense logits; 500 tokens.
CTC          A step of the factorized transducer with all its losses (transducer, CTC, language model on surface and
             tagged text) against one of CTC on its encoder.

Times are CPU times of this process, as others may share the machine; ratios are medians over pairs, with their
quartiles. Exit status 1 if a bar is missed or losses differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

from asr.data.batches import BatchPlan, FeatureLoader
from asr.data.examples import Batch, Example, make_batch
from asr.data.kaldi import Utterance
from asr.data.manifest import to_cuts
from asr.encoders.conformer import ConformerConfig
from asr.families.ctc.config import CTCConfig, CTCLossConfig
from asr.families.ctc.model import CTC
from asr.families.factorized.config import FactorizedConfig, FactorizedLossConfig
from asr.families.factorized.model import FactorizedTransducer
from asr.families.transducer.config import TransducerConfig, TransducerLossConfig
from asr.families.transducer.joint import Joint
from asr.families.transducer.model import Transducer
from asr.features import FeatureConfig
from asr.losses.ctc import ctc_loss
from asr.losses.factorized import Variant, dense_factorized_logits
from asr.losses.rnnt import rnnt_loss
from asr.training.config import TrainingConfig
from asr.training.loop import Trainer, takes_bf16
from asr.training.optimizer import adamw
from lm.transformer import TransformerLMConfig

VOCAB, CLASSES, FRAMES_PER_S = 500, 4, 100
SMALL = ConformerConfig(layers=6, width=80, feed_forward=240)
LARGE = ConformerConfig(layers=8, width=160, feed_forward=640)
NARROW = takes_bf16("auto", torch.device("cpu"))
Side = Callable[[], float]


def cpu(job: Callable[[], object]) -> float:
    """CPU seconds of ``job``."""
    began = time.process_time()
    job()
    return time.process_time() - began


def in_turns(pairs: Iterator[tuple[Side, Side]]) -> list[tuple[float, float]]:
    """CPU seconds of both sides of each pair; who begins changes."""
    times = []
    for index, (one, other) in enumerate(pairs):
        if index % 2:
            late = cpu(other)
            times.append((cpu(one), late))
        else:
            times.append((cpu(one), cpu(other)))
    return times


class Report:
    """Prints ratios and remembers what was missed."""

    def __init__(self) -> None:
        self.missed = False

    def ratio(self, what: str, ratios: list[float], bar: float) -> None:
        """The median of some ratios, with its quartiles."""
        middle = statistics.median(ratios)
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 2 else (min(ratios), 0, max(ratios))
        self.missed |= middle < bar
        verdict = f"bar {bar:.2f} {'met' if middle >= bar else 'MISSED'}" if bar else "no bar"
        print(f"{what:52s} {middle:6.2f} ({low:.2f} to {high:.2f}), {verdict}", flush=True)

    def same(self, what: str, one: float, other: float) -> None:
        """Two losses that must agree."""
        if not abs(one - other) <= 1e-3 * abs(other):
            self.missed = True
            print(f"{what}: losses {one:.6g} and {other:.6g} DIFFER", flush=True)


# ---- the trainer -------------------------------------------------------------------------------------------


def make_speech(folder: Path) -> tuple[list[Utterance], dict[str, Example]]:
    """Noise of 5 to 14.2 s, 24 recordings, with three random tokens a second."""
    draw = np.random.default_rng(0)
    utterances, examples = [], {}
    for i in range(24):
        count = int(16000 * (5 + 0.4 * i))
        path = folder / f"{i}.wav"
        soundfile.write(path, draw.standard_normal(count).astype(np.float32) * 0.1, 16000)
        utterances.append(Utterance(f"u{i}", path, "X", "s"))
        examples[f"u{i}"] = Example(f"u{i}", tuple(draw.integers(0, 200, count // 5333).tolist()), ())
    return utterances, examples


def make_trainer(folder: Path, epochs: int) -> tuple[Trainer, float]:
    """A trainer whose features are on disk, and the seconds of speech in an epoch; prints what features cost."""
    utterances, examples = make_speech(folder)
    cuts, _ = to_cuts(utterances)
    loader = FeatureLoader(cuts, FeatureConfig())
    seconds = sum(cut.duration for cut in cuts)
    took = cpu(lambda: loader.keep({cut.id: loader.speeds for cut in cuts}, folder / "features"))
    print(f"features at 3 speeds, wav, computed once: {seconds / took:.0f} x real time")
    torch.manual_seed(0)
    model = CTC(CTCConfig(encoder=SMALL), 200)
    config = TrainingConfig(epochs=epochs, batch_s=30.0, threads=1, precision="fp32", average=1)
    plan = BatchPlan(cuts, config.batch_s)
    (folder / "run").mkdir()
    trainer = Trainer(
        model, CTCLossConfig(), config, examples, plan, [], loader, 200, folder / "run", "benchmark"
    )
    return trainer, seconds


def trainer_against_bare(epochs: int, report: Report) -> None:
    """Updates in turns with a bare loop's; the rest of an epoch is timed apart and added."""
    with tempfile.TemporaryDirectory() as name:
        trainer, seconds = make_trainer(Path(name), epochs)
        model, parameters = trainer.model, list(trainer.model.parameters())
        optimizer = adamw(model, 1e-3, 0.01)

        def bare(batch: Batch) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss: Tensor = model.losses(batch, CTCLossConfig())["total"]  # type: ignore[operator]
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            return loss

        def pairs() -> Iterator[tuple[Side, Side]]:
            for epoch in range(epochs):
                for step, ids in enumerate(trainer.train.epoch(epoch)):
                    batch = trainer._batch(ids, torch.Generator().manual_seed(step), epoch)
                    yield (
                        lambda ids=ids, step=step, epoch=epoch: trainer._update([ids], step, epoch)["total"],
                        lambda batch=batch: float(bare(batch).detach()),
                    )  # type: ignore[misc]

        updates = len(trainer.train.epoch(0))
        times = in_turns(pairs())[1:]
        with patch.object(Trainer, "_update", lambda *_: {"total": 0.0}):
            trainer._epoch(0, 0, 0)  # imports TensorBoard
            rest = statistics.median(cpu(lambda: trainer._epoch(0, 0, 0)) for _ in range(3)) / updates
        alone = statistics.median(other for _, other in times)
        size = sum(p.numel() for p in parameters) / 1e6
        print(f"bare loop, {size:.2f} M parameters: {seconds / updates / alone:.0f} x real time")
        # A benchmark's epochs are short; the files of an epoch are spread over ten minutes of speech.
        share = rest * min(1.0, seconds / 600)
        report.ratio("trainer's updates / bare loop, speed", [other / one for one, other in times], 0.95)
        report.ratio(
            "  with plan, checkpoint and log of 10-minute epochs",
            [other / (one + share) for one, other in times],
            0.95,
        )
        trainer.valid = trainer.train.epoch(1)[:1]
        spoken = sum(len(trainer.loader.load(i)) for i in trainer.valid[0]) / FRAMES_PER_S
        print(f"validation: {spoken / cpu(trainer.validate):.0f} x real time, not in these ratios")


# ---- losses ------------------------------------------------------------------------------------------------


def make_batches(batch_s: int) -> list[Batch]:
    """``batch_s`` of speech each: long, middling and short utterances at three tokens a second."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for seconds in (12, 6, 3):
        count, labels = batch_s // seconds, 3 * seconds
        draw = torch.randint(0, VOCAB, (count, labels), generator=generator).tolist()
        examples = [Example(str(i), tuple(row), ((0, 1, 3),)) for i, row in enumerate(draw)]
        features = torch.randn(count, seconds * FRAMES_PER_S, 80, generator=generator)
        lengths = torch.full((count,), seconds * FRAMES_PER_S)
        batches.append(make_batch(features, lengths, examples, VOCAB, 0.5, generator))
    return batches


def make_factorized(encoder: ConformerConfig) -> FactorizedTransducer:
    """A factorized transducer."""
    torch.manual_seed(0)
    predictor = TransformerLMConfig(layers=1, width=128, heads=4, feed_forward=512)
    return FactorizedTransducer(
        FactorizedConfig(encoder=encoder, predictor=predictor), VOCAB, CLASSES
    ).train()


def make_transducer(encoder: ConformerConfig) -> Transducer:
    """A transducer."""
    torch.manual_seed(0)
    return Transducer(TransducerConfig(encoder=encoder), VOCAB).train()


def step(model: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Forward and backward; the loss."""
    torch.manual_seed(0)  # dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=NARROW):
        value = loss()
    torch.autograd.backward(value)
    model.zero_grad(set_to_none=True)
    return float(value.detach())


@contextmanager
def torchaudio_instead() -> Iterator[None]:
    """Both transducers compute their dense logits and hand them to torchaudio."""

    def factorized(
        blank: Tensor,
        acoustic: Tensor,
        lm: Tensor,
        targets: Tensor,
        frames: Tensor,
        labels: Tensor,
        variant: Variant,
    ) -> Tensor:
        logits = dense_factorized_logits(blank.float(), acoustic.float(), lm, variant=variant)
        return rnnt_loss(logits, targets, frames, labels, blank=-1, backend="torchaudio")

    def logits(
        joint: Joint, frame: Tensor, label: Tensor, targets: Tensor, *_: Tensor
    ) -> tuple[Tensor, Tensor]:
        return joint(frame[:, :, None], label[:, None]).float(), targets

    def loss(dense: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, _: str) -> Tensor:
        return rnnt_loss(dense, targets, frames, labels, blank=-1, backend="torchaudio")

    with (
        patch("asr.families.factorized.model.factorized_loss", factorized),
        patch.object(Joint, "lattice_logp", logits),
        patch("asr.families.transducer.model.transducer_loss_from_logp", loss),
    ):
        yield


def against_torchaudio(
    encoder: ConformerConfig, bars: tuple[float, float], turns: int, batches: list[Batch], report: Report
) -> None:
    """Both transducers beside themselves with torchaudio's loss."""
    size = f"encoder {encoder.layers} x {encoder.width}"
    chosen = (
        (f"transducer, {size} / torchaudio", make_transducer(encoder), TransducerLossConfig(), bars[0]),
        (f"factorized, {size} / torchaudio", make_factorized(encoder), FactorizedLossConfig(), bars[1]),
    )
    for name, model, config, bar in chosen:

        def ours(batch: Batch, model: nn.Module = model, config: object = config) -> float:
            return step(model, lambda: model.losses(batch, config)["total"])  # type: ignore[operator]

        def theirs(batch: Batch) -> float:
            with torchaudio_instead():
                return ours(batch)

        report.same(name, ours(batches[-1]), theirs(batches[-1]))
        jobs = [(lambda b=b: ours(b), lambda b=b: theirs(b)) for _ in range(turns) for b in batches]
        report.ratio(name, [other / one for one, other in in_turns(iter(jobs))], bar)  # type: ignore[arg-type]


def against_ctc(turns: int, batches: list[Batch], report: Report) -> None:
    """All losses of a factorized transducer beside CTC on its encoder."""
    model = make_factorized(LARGE)

    def ctc(batch: Batch) -> Tensor:
        encoded, frames = model.encode(batch.features, batch.feature_lengths)
        logp = model.ctc(encoded).float().log_softmax(-1)
        loss, _ = ctc_loss(logp, batch.labels, frames, batch.label_lengths, blank=VOCAB)
        return loss.sum() / batch.label_lengths.sum()

    def jobs() -> Iterator[tuple[Side, Side]]:
        for _ in range(turns):
            for batch in batches:
                yield (
                    lambda b=batch: step(model, lambda: model.losses(b, FactorizedLossConfig())["total"]),
                    lambda b=batch: step(model, lambda: ctc(b)),
                )  # type: ignore[misc]

    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"factorized transducer, {size:.2f} M parameters, {'bf16' if NARROW else 'fp32'}")
    step(model, lambda: ctc(batches[0]))
    report.ratio(
        "factorized transducer's step / CTC, speed", [other / one for one, other in in_turns(jobs())], 0.9
    )


def main() -> int:
    """Run, print, and check the bars."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few turns and smaller batches")
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each side")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    turns = 2 if arguments.quick else arguments.turns
    report = Report()
    trainer_against_bare(turns, report)
    batches = make_batches(36 if arguments.quick else 60)
    if importlib.util.find_spec("torchaudio") is None:
        print("torchaudio is not installed: the comparison with its loss is left out")
    else:
        against_torchaudio(SMALL, (2.0, 3.0), max(1, turns // 2), batches, report)
        if not arguments.quick:
            against_torchaudio(LARGE, (0.0, 0.0), 1, batches, report)
    against_ctc(1 if arguments.quick else turns, batches, report)
    return int(report.missed)


if __name__ == "__main__":
    sys.exit(main())
