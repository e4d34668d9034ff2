"""Exact factorized loss against torchaudio's transducer loss on the dense logits, side by side.

Both sides start from the same three inputs (blank logits, acoustic scores, LM log probabilities) and end with
their gradients, in float32. The last columns give torchaudio its dense logits for nothing.

Time: the sides take turns in one process; medians decide, minima are shown too.
Memory: each side runs in a fresh process that has made its inputs and run once on a tiny batch, so that
libraries and thread pools are loaded. The peak of the resident set is then reset (Linux:
/proc/self/clear_refs) and the growth to its new peak is reported. Blocks of 64 KiB and more go back to the
system at once (MALLOC_MMAP_THRESHOLD_), so that nothing freed earlier can hide a later need.
Answers: losses and gradients of both sides are compared with each other, and those of the first utterances
with the dense loss in float64.

    python tests/benchmarks/loss.py            # all shapes, about five minutes
    python tests/benchmarks/loss.py --quick    # the smallest shape

Exit status 1 if a bar is missed or answers differ.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from asr.losses.factorized import dense_factorized_logits, factorized_loss
from asr.losses.rnnt import rnnt_loss

MB = 1e6
# Float32 rounding of a loss of thousands of nats, and of gradients of size 1. torchaudio sums in float32,
# which costs its gradients three digits in the longer lattice; ours has to be near the float64 answer.
LOSS_RTOL, GRAD_ATOL, EXACT_ATOL = 1e-5, 5e-3, 1e-4


@dataclass(frozen=True)
class Shape:
    """A batch and its bars: times faster, times smaller, and MB at most."""

    batch: int
    frames: int
    labels: int
    vocabulary: int
    faster: float = 0.0
    smaller: float = 0.0
    at_most_mb: float = float("inf")
    dense: bool = True
    exact_rows: int = 1

    def __str__(self) -> str:
        return f"B={self.batch} T={self.frames} U={self.labels} V={self.vocabulary}"

    @property
    def dense_bytes(self) -> int:
        return 4 * self.batch * self.frames * (self.labels + 1) * (self.vocabulary + 1)


SHAPES = (
    Shape(4, 200, 40, 500, faster=40, smaller=5, exact_rows=4),
    Shape(4, 200, 40, 2000, faster=90, smaller=8, exact_rows=2),
    Shape(16, 400, 80, 500, faster=25, at_most_mb=160, exact_rows=2),
    Shape(16, 400, 80, 4000, at_most_mb=1000, dense=False),
)
INFO = Shape(8, 200, 40, 500)


@dataclass(frozen=True)
class Inputs:
    """The three scores with gradients, and what else a loss wants."""

    scores: tuple[Tensor, Tensor, Tensor]
    targets: Tensor
    frames: Tensor
    labels: Tensor

    def rows(self, count: int, dtype: torch.dtype) -> Inputs:
        scores = tuple(x[:count].detach().to(dtype).requires_grad_() for x in self.scores)
        return Inputs(scores, self.targets[:count], self.frames[:count], self.labels[:count])


def make(shape: Shape) -> Inputs:
    """Random scores; all utterances have full length, as torchaudio's time does not depend on it."""
    generator = torch.Generator().manual_seed(1)
    b, t, u, v = shape.batch, shape.frames, shape.labels, shape.vocabulary
    scores = (
        torch.randn(b, t, u + 1, generator=generator),
        torch.randn(b, t, v, generator=generator),
        torch.randn(b, u + 1, v, generator=generator).log_softmax(-1),
    )
    for x in scores:
        x.requires_grad_()
    targets = torch.randint(v, (b, u), generator=generator)
    return Inputs(scores, targets, torch.full((b,), t), torch.full((b,), u))


Answer = tuple[Tensor, tuple[Tensor, ...]]


def ours(x: Inputs) -> Answer:
    loss = factorized_loss(*x.scores, x.targets, x.frames, x.labels)
    return loss.detach(), torch.autograd.grad(loss.sum(), x.scores)


def torchaudio_loss(logits: Tensor, x: Inputs) -> Tensor:
    import torchaudio

    lengths = (y.to(torch.int32) for y in (x.targets, x.frames, x.labels))
    loss: Tensor = torchaudio.functional.rnnt_loss(
        logits, *lengths, blank=logits.shape[-1] - 1, reduction="none"
    )
    return loss


def dense(x: Inputs) -> Answer:
    loss = torchaudio_loss(dense_factorized_logits(*x.scores), x)
    return loss.detach(), torch.autograd.grad(loss.sum(), x.scores)


def dense_given(logits: Tensor, x: Inputs) -> Answer:
    loss = torchaudio_loss(logits, x)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)


def plain_given(logits: Tensor, x: Inputs) -> Answer:
    loss = rnnt_loss(logits, x.targets, x.frames, x.labels, blank=-1)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)


def exact(x: Inputs) -> Answer:
    loss = rnnt_loss(dense_factorized_logits(*x.scores), x.targets, x.frames, x.labels, blank=-1)
    return loss.detach(), torch.autograd.grad(loss.sum(), x.scores)


# ---- time --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds of one side."""

    median: float
    least: float

    def __str__(self) -> str:
        return f"{self.median * 1e3:9.1f} ({self.least * 1e3:.1f})"


def take_turns(sides: dict[str, tuple[Callable[[], Answer], int]], rounds: int) -> dict[str, Times]:
    """Every side in every round, as many times as it says, after one untimed run each."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side, _ in sides.values():
        side()
    for _ in range(rounds):
        for name, (side, times) in sides.items():
            for _ in range(times):
                start = time.perf_counter()
                side()
                seconds[name].append(time.perf_counter() - start)
    return {name: Times(statistics.median(s), min(s)) for name, s in seconds.items()}


# ---- memory ------------------------------------------------------------------------------------------------


def resident(field: str) -> float:
    """VmRSS or VmHWM in bytes; where there is no /proc, the peak so far stands for both."""
    status = Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure_peak(side: str, shape: Shape) -> float:
    """Growth of the resident set, in bytes, by one forward and backward; run in a fresh process."""
    given = side.endswith("given")
    run = {"ours": ours, "dense": dense, "dense_given": dense_given, "plain_given": plain_given}[side]
    peaks = []
    for batch in (Shape(2, 8, 3, 20), shape):
        x = make(batch)
        arguments = (dense_factorized_logits(*x.scores).detach().requires_grad_(), x) if given else (x,)
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")
        before = resident("VmRSS")
        run(*arguments)
        peaks.append(resident("VmHWM") - before)
    return peaks[-1]


def peak_in_fresh_process(side: str, shape: Shape, threads: int) -> float:
    sizes = (shape.batch, shape.frames, shape.labels, shape.vocabulary)
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", side, *map(str, sizes)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)


# ---- answers -----------------------------------------------------------------------------------------------


def difference(one: Answer, other: Answer) -> tuple[float, float]:
    """Largest relative difference of a loss and largest difference of a gradient, which are of size 1."""
    count = len(other[0])
    loss = ((one[0][:count] - other[0]) / other[0]).abs().max().item()
    return loss, max((a[:count] - b).abs().max().item() for a, b in zip(one[1], other[1], strict=True))


class Report:
    """Prints lines and remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def check(self, what: str, good: bool) -> str:
        if not good:
            self.failed.append(what)
        return "ok" if good else "MISSED"


def compare(shape: Shape, rounds: int, threads: int, report: Report) -> None:
    """One shape: time, memory and answers, printed as they come."""
    print(f"\n{shape}  ({threads} threads, milliseconds: median (least))")
    x = make(shape)
    sides = {"ours": (lambda: ours(x), 5)}
    if shape.dense:
        logits = dense_factorized_logits(*x.scores).detach().requires_grad_()
        sides |= {"dense": (lambda: dense(x), 1), "given": (lambda: dense_given(logits, x), 1)}
    times = take_turns(sides, rounds)
    our_peak = peak_in_fresh_process("ours", shape, threads)
    print(f"  ours                        {times['ours']}   peak {our_peak / MB:7.1f} MB")
    if shape.dense:
        compare_with_dense(shape, times, our_peak, threads, report)
    else:
        print(
            f"  torchaudio                  not run: {shape.dense_bytes / 1e9:.1f} GB of logits, and as much"
            f" again for their gradient, {2 * shape.dense_bytes / 1e9:.1f} GB at least"
        )
    if shape.at_most_mb < float("inf"):
        verdict = report.check(f"{shape}: memory", our_peak / MB < shape.at_most_mb)
        print(f"  memory under {shape.at_most_mb:.0f} MB: {our_peak / MB:.1f} MB, {verdict}")
    answer = ours(x)
    if shape.dense:
        loss, grad = difference(answer, dense(x))
        verdict = report.check(f"{shape}: answers differ", loss < LOSS_RTOL and grad < GRAD_ATOL)
        print(f"  ours to torchaudio:         loss {loss:.1e} relative, gradients {grad:.1e}, {verdict}")
    loss, grad = difference(answer, exact(x.rows(shape.exact_rows, torch.float64)))
    verdict = report.check(f"{shape}: not exact", loss < LOSS_RTOL and grad < EXACT_ATOL)
    print(
        f"  ours to dense float64:      loss {loss:.1e} relative, gradients {grad:.1e}, {verdict}"
        f" ({shape.exact_rows} of {shape.batch} utterances)"
    )


def compare_with_dense(
    shape: Shape, times: dict[str, Times], our_peak: float, threads: int, report: Report
) -> None:
    """The rows of torchaudio and the bars that are ratios."""
    peak = peak_in_fresh_process("dense", shape, threads)
    given_peak = peak_in_fresh_process("dense_given", shape, threads)
    print(f"  torchaudio on dense logits  {times['dense']}   peak {peak / MB:7.1f} MB")
    print(
        f"    with the logits given     {times['given']}   peak {given_peak / MB:7.1f} MB beside the logits"
    )
    faster = times["dense"].median / times["ours"].median
    least = times["dense"].least / times["ours"].least
    given = times["given"].median / times["ours"].median
    verdict = report.check(f"{shape}: speed", faster >= shape.faster)
    print(f"  faster: {faster:.0f}x (least {least:.0f}x), bar {shape.faster:.0f}x, {verdict};", end=" ")
    print(f"logits given: {given:.0f}x")
    smaller = peak / our_peak
    verdict = report.check(f"{shape}: memory ratio", smaller >= shape.smaller)
    bar = f"bar {shape.smaller:.0f}x, {verdict}" if shape.smaller else "no bar"
    print(f"  smaller: {smaller:.1f}x, {bar}; logits given: {given_peak / our_peak:.1f}x")


def plain_recursion(shape: Shape, rounds: int, threads: int, report: Report) -> None:
    """Information: the plain torch recursion on dense logits, which any transducer can use."""
    print(f"\n{shape}  any joint network, dense logits given")
    x = make(shape)
    logits = dense_factorized_logits(*x.scores).detach().requires_grad_()
    times = take_turns(
        {"plain": (lambda: plain_given(logits, x), 2), "theirs": (lambda: dense_given(logits, x), 1)}, rounds
    )
    for name, label, side in (
        ("plain", "rnnt_loss, backend torch", "plain_given"),
        ("theirs", "torchaudio", "dense_given"),
    ):
        peak = peak_in_fresh_process(side, shape, threads)
        print(f"  {label:26}  {times[name]}   peak {peak / MB:7.1f} MB beside the logits")
    loss, grad = difference(plain_given(logits, x), dense_given(logits, x))
    verdict = report.check(f"{shape}: rnnt_loss differs", loss < LOSS_RTOL and grad < GRAD_ATOL)
    faster = times["theirs"].median / times["plain"].median
    print(f"  faster: {faster:.1f}x; loss {loss:.1e} relative, gradients {grad:.1e}, {verdict}")


def main() -> int:
    """Parse, measure, print; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the smallest shape")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        side, *sizes = options.measure
        print(measure_peak(side, Shape(*map(int, sizes))))
        return 0
    report = Report()
    for shape in SHAPES[:1] if options.quick else SHAPES:
        compare(shape, options.rounds, options.threads, report)
    if not options.quick:
        plain_recursion(INFO, options.rounds, options.threads, report)
    print(
        "\n" + ("missed: " + "; ".join(report.failed) if report.failed else "all bars met, all answers agree")
    )
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
