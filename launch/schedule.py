"""Learning rates as a function of the step alone.

Owns the arithmetic of warm-up and decay. Refuses to know optimisers: it writes rates into plain
parameter groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable


def scaled_lr(base_lr: float, global_batch: int) -> float:
    """The peak rate: `base_lr` is given for 256 clips a step (linear scaling, Goyal et al. 2017,
    arXiv:1706.02677)."""
    return base_lr * global_batch / 256


def lr_at(step: int, *, steps: int, peak: float, floor: float, warmup: float) -> float:
    """The rate of step `step` (counted from 0) of a run of `steps`.

    Linear from zero to `peak` over the first `warmup` share of the run, then half a cosine down to
    `floor` (Loshchilov & Hutter 2017, arXiv:1608.03983). With a warm-up, step 0 has rate 0 and step
    `round(warmup * steps)` has `peak`; the last step has `floor`.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * step / rising
    falling = max(1, steps - 1 - rising)
    progress = min(1.0, (step - rising) / falling)
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_lr(groups: Iterable[dict], lr: float) -> None:
    """Give every parameter group its rate: the scheduled one times the group's own `lr_scale`
    (layer decay)."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
