"""From the column mass of the attention map to the weight of every frame, and back.

Owns step 3 of exact mode: mass [B, N] → α [B, F], and its vector-Jacobian product. Both are a few
thousand numbers in plain PyTorch, in float32 or better. It knows no queries, keys or values.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from kernels.marginals import (
    POOLS,
    MiraConstants,
    exact_alpha,
    exact_importance,
    frame_statistics,
)

MovingAverage = Callable[[Tensor], Tensor]
"""Batch mean of the confidence [1, F], detached → the confidence to use [1, F], a constant."""

NAMES = [field.name for field in fields(MiraConstants)]
CONFIDENCE_FLOOR = 1e-6
MASS_FLOOR = 1e-20
"""Least mass of a key. Attention far from a key underflows to 0, where the entropy's derivative is
0 / 0; a frame without a key above this counts as evenly looked at."""


@torch.library.custom_op("mira::kept", mutates_args=())
def kept(x: Tensor) -> Tensor:
    """A copy that the backward can rely on.

    The buffer behind an average may be updated again before the backward reads it. And a compiler
    that sees how the average is made makes it anew in the backward, from the buffer it has already
    updated (Inductor in torch 2.13 does): so the copy is an operator, which it cannot see into.
    """
    return x.clone(memory_format=torch.contiguous_format)


@kept.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def moving_average(mass: Tensor, frames: int, statistics: str | MovingAverage) -> Tensor | None:
    """What the caller's moving average answers to this batch, [1, F]; None without one.

    Raises:
        ValueError: the answer is no tensor [1, F].
    """
    if not callable(statistics):
        return None
    with torch.no_grad():
        confidence, _ = _statistics(mass, frames)
        found = statistics(confidence.mean(0, keepdim=True))
    if not isinstance(found, Tensor) or found.shape != (1, frames):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the moving average must return a tensor [1, {frames}], not {got}")
    return kept(found.detach().to(mass.dtype))


def frame_weights(
    mass: Tensor, average: Tensor | None, frames: int, constants: MiraConstants, *, pooled: bool
) -> tuple[Tensor, Tensor]:
    """Weight and importance of every frame; differentiable in `mass`.

    Args:
        mass: [B, N], Σ over queries of the head-averaged attention map; float32 or float64.
        average: the confidence [1, F] to use instead of this batch's, or None.
        frames: F.
        constants: see `MiraConstants`.
        pooled: use the mean over the batch; with an average this holds for the concentration.

    Returns:
        α [B, F]; π [B, F], or [1, F] if pooled.
    """
    own, concentration = _statistics(mass, frames)
    if mass.shape[1] == frames:
        # One token a frame is as concentrated as can be whatever its mass, but the derivative of
        # 1 / (entropy + 1e-6) at entropy 0 turns rounding errors of 1e-16 into gradients of 1e-4.
        concentration = concentration.detach()
    pool = POOLS["batch" if pooled else "instance"]
    confidence, concentration = pool(own, concentration)
    used = confidence if average is None else average
    importance = exact_importance(used, concentration, constants)
    # Pooling decides how important a frame is; what it is compared with stays the clip's own.
    return exact_alpha(importance, own, constants), importance


def mass_gradient(
    grad: Tensor,
    mass: Tensor,
    average: Tensor | None,
    frames: int,
    constants: MiraConstants,
    *,
    pooled: bool,
) -> Tensor:
    """dL/dα [B, F] → dL/d mass [B, N], less a constant of each clip.

    A constant over keys is in the null space of the softmax's Jacobian; without it the terms that
    the kernels subtract from one another are small.
    """
    with torch.enable_grad():
        leaf = mass.detach().requires_grad_()
        alpha, _ = frame_weights(leaf, average, frames, constants, pooled=pooled)
        if not alpha.requires_grad:  # an average for c, and nothing in h that varies
            return torch.zeros_like(mass)
        (found,) = torch.autograd.grad(alpha, leaf, grad)
    return found - (found * mass).sum(1, keepdim=True) / mass.sum(1, keepdim=True)


def _statistics(mass: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    share = mass.clamp_min(MASS_FLOOR) / mass.shape[1]
    return frame_statistics(share, frames, floor=CONFIDENCE_FLOOR)


def as_floats(constants: MiraConstants) -> list[float]:
    """The constants as a custom op takes them; `MiraConstants(*…)` is the way back."""
    return [float(getattr(constants, name)) for name in NAMES]
