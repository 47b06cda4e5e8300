"""Exact MiRA attention, literally as published: the specification of the fast forms.

Owns the formula and nothing else; it holds the B x H x N x N map several times over. Source: Yoon,
Cho, Park, Brémond, ECCV 2026 (arXiv 2606.30611).
"""

from torch import Tensor

from kernels.exact.weights import MovingAverage, frame_weights, moving_average
from kernels.marginals import MiraConstants, statistics_dtype


def exact_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    constants: MiraConstants,
    statistics: str | MovingAverage,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attend; gradients by autograd, through the statistics as well.

    Args:
        q, k, v: [B, H, N, D] of one floating dtype, tokens in frame-major order, N = frames · P.
        frames, constants, statistics, scale: see `kernels.exact.exact_attention`.

    Returns:
        out [B, H, N, D] in v's dtype; π [B or 1, F], float32 or float64.
    """
    n = k.shape[2]
    dtype = statistics_dtype(q.dtype)
    attention = (q * scale @ k.transpose(2, 3)).softmax(-1, dtype=dtype)  # [B, H, N, N]
    mass = attention.mean(1).sum(1)  # [B, N]
    average = moving_average(mass, frames, statistics)
    pooled = statistics != "instance"
    alpha, importance = frame_weights(mass, average, frames, constants, pooled=pooled)
    weight = alpha.repeat_interleave(n // frames, dim=1)[:, None, None]  # [B, 1, 1, N]
    reweighted = (1 - constants.floor) * (attention * weight) + constants.floor / n
    reweighted = reweighted / reweighted.sum(-1, keepdim=True)
    mixed = attention.lerp(reweighted, constants.residual_mix)
    return mixed.to(v.dtype) @ v, importance
