"""Learning-rate schedule: linear warm-up, then half a cosine."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: float, final: float) -> float:
    """Rate for update ``step`` (from 0) of ``steps``; ``warmup`` and ``final`` are shares of steps and of peak."""
    rising = max(1, round(steps * warmup))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
