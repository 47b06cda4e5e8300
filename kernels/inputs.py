"""What every attention operation asks of its inputs: shapes, dtypes, devices, scale, no dropout.

Owns these checks and the casts of autocast, which knows PyTorch's own operators alone. It knows no
operation and no backend.
"""

import math

import torch
from torch import Tensor
from torch.autograd import forward_ad


def prepared(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Checked inputs in the dtype to compute in, and the factor on q·k.

    Args:
        q, k, v: [B, H, N, D] of one dtype and device; under autocast they are cast to its dtype,
            as for SDPA, float64 apart.
        scale: None is D^-1/2.
        dropout_p: only 0 is possible.

    Raises:
        ValueError: anything else; names the argument, what it is and what is expected.
        NotImplementedError: forward-mode differentiation.
    """
    if dropout_p != 0.0:
        raise ValueError(
            f"dropout_p must be 0, not {dropout_p}: fused attention has no dropout; drop the "
            "values' projection or whole paths instead"
        )
    check_heads("q", q)
    _check_forward_mode(q, k, v)
    kind = q.device.type
    if torch.is_autocast_enabled(kind) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(kind)) for x in (q, k, v))
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"{name} must have q's shape, dtype and device, {describe(q)}, not {describe(x)}"
            )
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}")
    return q, k, v, q.shape[3] ** -0.5 if scale is None else float(scale)


def _check_forward_mode(*tensors: Tensor) -> None:
    """Operators of ours have no forward-mode derivative; PyTorch would take it for zero."""
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "attention has no forward-mode derivative (torch.func.jvp); use reverse mode (vjp)"
        )


def check_heads(name: str, x: Tensor) -> None:
    """ValueError unless x is [B, H, N, D] of floating point, D at least 1."""
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f"{name} must be [B, H, N, D] of floating point, not {describe(x)}")
    if x.shape[3] < 1:
        raise ValueError(f"{name} must have a head dim D of at least 1, not {describe(x)}")


def describe(x: Tensor) -> str:
    """Shape, dtype and device."""
    return f"{tuple(x.shape)} {x.dtype} on {x.device}"
