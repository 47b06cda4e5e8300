"""What our attention is compared with: published forms of MiRA, FlexAttention, and plain softmax.

Owns these baselines, written from the paper's formulas (arXiv 2606.30611) as a careful user of
PyTorch would, not slower than they need be. It knows no timing. Needs torch alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from kernels.marginals import (
    MiraConstants,
    exact_alpha,
    exact_importance,
    flashlite_alpha,
    flashlite_importance,
    frame_statistics,
)

CONSTANTS = MiraConstants()


@torch.no_grad()
def key_bias(k: Tensor, frames: int) -> Tensor:
    """log α of every key's frame, [B, N], float32 or float64, in plain PyTorch."""
    energy = k.to(torch.promote_types(k.dtype, torch.float32)).square().mean((1, 3))
    importance = flashlite_importance(*frame_statistics(energy, frames, floor=1e-12), CONSTANTS)
    alpha = flashlite_alpha(importance, CONSTANTS)  # [B, F]
    return alpha.log().repeat_interleave(k.shape[2] // frames, dim=1)


def eager(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention with the whole map in q's dtype, and a bias a key."""
    scores = q * q.shape[3] ** -0.5 @ k.transpose(2, 3)
    if bias is not None:
        scores = scores + bias[:, None, None].to(scores.dtype)
    return scores.softmax(-1) @ v


def published_flashlite(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Statistics, then SDPA on q, k, v with one channel more, in which q·k becomes the bias."""
    d = q.shape[3]
    bias = (key_bias(k, frames) * d**0.5).to(k.dtype)[:, None, :, None].expand(*k.shape[:3], 1)
    q = torch.cat([q, torch.ones_like(q[..., :1])], -1)
    k = torch.cat([k, bias], -1)
    v = functional.pad(v, (0, 1))
    return functional.scaled_dot_product_attention(q, k, v, scale=d**-0.5)[..., :d]


def published_exact(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Exact mode with the map in memory, in q's dtype; statistics in float32 or better."""
    n, c = k.shape[2], CONSTANTS
    attention = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(-1)  # [B, H, N, N]
    wide = torch.promote_types(q.dtype, torch.float32)
    mass = attention.mean(1, dtype=wide).sum(1)  # [B, N]
    confidence, concentration = frame_statistics(mass / n, frames, floor=1e-6)
    alpha = exact_alpha(exact_importance(confidence, concentration, c), confidence, c)  # [B, F]
    weight = alpha.repeat_interleave(n // frames, dim=1)[:, None, None].to(q.dtype)
    reweighted = (1 - c.floor) * attention * weight + c.floor / n
    reweighted = reweighted / reweighted.sum(-1, keepdim=True)
    return (attention + c.residual_mix * (reweighted - attention)) @ v


def flex(bias: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention, compiled, with a bias a key [B, N] in its score function."""
    from torch.nn.attention.flex_attention import flex_attention

    def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + bias[b, j]

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, score_mod=add)
