"""What the fused operations compute, written out: the specification that every backend is held to.

Owns the formulas at their most obvious, in float32 or better, with every map in memory. It refuses
to be clever.
"""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · q kᵀ + key_bias) v.

    Args:
        q, k, v: [B, H, N, D].
        key_bias: None, [B, N] or [B, H, N]; the same for every query.
        scale: factor on q·k.

    Returns:
        [B, H, N, D] in v's dtype.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):  # it would round these products
        scores = scale * q.to(dtype) @ k.to(dtype).transpose(2, 3)  # [B, H, queries, keys]
        if key_bias is not None:
            per_head = key_bias if key_bias.ndim == 3 else key_bias[:, None]  # [B, H or 1, keys]
            scores = scores + per_head[:, :, None].detach().to(dtype)
        return (scores.softmax(-1) @ v.to(dtype)).to(v.dtype)


def key_energy(k: Tensor) -> Tensor:
    """Mean square of every key over heads and head dims: k [B, H, N, D] → [B, N], float32 or 64."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    return k.detach().to(dtype).square().mean((1, 3))
