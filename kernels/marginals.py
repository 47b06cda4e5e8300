"""Frame statistics of MiRA: from key marginals to the weight of every frame.

Owns the formulas between "how much attention does each key receive" and "how much should its frame
be re-weighted", and their constants. It knows tensors [B, N] and [B, F] only: no heads, no modules,
no attention kernels. Source: Yoon, Cho, Park, Brémond, "Reweighting Framewise Attention in Video
Transformers for Facial Expression Understanding", ECCV 2026 (arXiv 2606.30611).

Everything here runs in float32 or better, because the clamps lie below float16's range.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Statistics = Literal["instance", "batch", "batch_ema"]
Pool = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(confidence [B, F], concentration [B, F]) → the pair to use, each [B, F] or [1, F]."""


@dataclass(frozen=True)
class MiraConstants:
    """Constants of MiRA, at the values of its authors' public implementation."""

    confidence_weight: float = 0.5
    """w_c: weight of a frame's share of attention."""
    concentration_weight: float = 0.5
    """w_h: weight of how concentrated attention is inside a frame."""
    power: float = 1.5
    """β: sharpening of the frame scores (exact mode)."""
    uniform_mix: float = 0.1
    """λ: share of the uniform distribution mixed into the frame importance, in [0, 1]."""
    floor: float = 1e-3
    """ε: share of uniform attention mixed into the re-weighted map, in [0, 1) (exact mode)."""
    residual_mix: float = 0.5
    """η: share of the re-weighted map in the result, in [0, 1]; 1 drops the other (exact mode)."""
    alpha_min: float = 0.7
    """Least factor of a frame, above 0."""
    alpha_max: float = 1.4
    """Largest factor of a frame, at least `alpha_min`."""
    temperature: float = 0.17
    """τ: factor on the standardised frame scores before their softmax (FlashLite)."""

    def __post_init__(self) -> None:
        for name in ("uniform_mix", "residual_mix"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"MiraConstants.{name} must lie in [0, 1], not {getattr(self, name)}"
                )
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"MiraConstants.floor must lie in [0, 1), not {self.floor}")
        if not 0.0 < self.alpha_min <= self.alpha_max < float("inf"):
            raise ValueError(
                "MiraConstants needs 0 < alpha_min <= alpha_max, not "
                f"alpha_min={self.alpha_min}, alpha_max={self.alpha_max}"
            )
        for name in ("confidence_weight", "concentration_weight", "power", "temperature"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"MiraConstants.{name} must be finite and not negative, "
                    f"not {getattr(self, name)}"
                )


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, float32 for everything else."""
    return torch.promote_types(dtype, torch.float32)


def per_clip(confidence: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor]:
    """Each clip uses its own statistics."""
    return confidence, concentration


def batch_mean(confidence: Tensor, concentration: Tensor) -> tuple[Tensor, Tensor]:
    """All clips use the batch's mean statistics, [1, F] each."""
    return confidence.mean(0, keepdim=True), concentration.mean(0, keepdim=True)


POOLS: dict[str, Pool] = {"instance": per_clip, "batch": batch_mean}


def frame_statistics(mass: Tensor, frames: int, *, floor: float) -> tuple[Tensor, Tensor]:
    """Confidence and concentration of every frame.

    Args:
        mass: [B, N] not negative, in frame-major order: what each key receives. Its scale matters
            only through `floor`.
        frames: F; divides N.
        floor: least confidence before it is normalised over frames.

    Returns:
        confidence [B, F], sums to 1; concentration [B, F] = 1 / (entropy in nats + 1e-6) of the
        mass inside a frame.
    """
    inside = mass.unflatten(1, (frames, -1))  # [B, F, P]
    total = inside.sum(2)  # [B, F]
    confidence = total.clamp_min(floor)
    confidence = confidence / confidence.sum(1, keepdim=True)
    share = inside / total.clamp_min(torch.finfo(mass.dtype).tiny)[..., None]
    entropy = -torch.special.xlogy(share, share).sum(2)
    return confidence, 1.0 / (entropy + 1e-6)


def exact_importance(confidence: Tensor, concentration: Tensor, constants: MiraConstants) -> Tensor:
    """π [B, F] of exact mode: min-max normalised score, sharpened, mixed with uniform."""
    score = (
        constants.confidence_weight * confidence + constants.concentration_weight * concentration
    )
    low, high = score.amin(1, keepdim=True), score.amax(1, keepdim=True)
    sharp = ((score - low) / (high - low + 1e-12) + 1e-6) ** constants.power
    return _mix_uniform(sharp / sharp.sum(1, keepdim=True), constants)


def exact_alpha(importance: Tensor, confidence: Tensor, constants: MiraConstants) -> Tensor:
    """α [B, F] of exact mode: importance relative to the detached confidence."""
    ratio = importance / confidence.detach().clamp_min(1e-5)
    return ratio.clamp(constants.alpha_min, constants.alpha_max)


def flashlite_importance(
    confidence: Tensor, concentration: Tensor, constants: MiraConstants
) -> Tensor:
    """π [B, F] of FlashLite: softmax of the standardised score, mixed with uniform."""
    score = (
        constants.confidence_weight * confidence + constants.concentration_weight * concentration
    )
    deviation = score.std(1, keepdim=True, correction=0).clamp_min(1e-6)
    score = (score - score.mean(1, keepdim=True)) / deviation
    return _mix_uniform((constants.temperature * score).softmax(1), constants)


def flashlite_alpha(importance: Tensor, constants: MiraConstants) -> Tensor:
    """α [B, F] of FlashLite: importance relative to a uniform one."""
    ratio = importance.shape[1] * importance
    return ratio.clamp(constants.alpha_min, constants.alpha_max)


def _mix_uniform(share: Tensor, constants: MiraConstants) -> Tensor:
    return (1 - constants.uniform_mix) * share + constants.uniform_mix / share.shape[1]
