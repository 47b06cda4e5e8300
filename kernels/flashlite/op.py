"""The public operations: attention with a bias a key, and key energy, on whichever backend.

Owns validation, the registration of the Triton kernels as PyTorch operators (so that
torch.compile, autograd and checkpointing see through them) and the tables of backends. It knows
neither frames nor where a bias comes from.
"""

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional

from kernels.backends import Backend, BackendName, anywhere, pick
from kernels.flashlite import reference
from kernels.flashlite.layout import heads_last, rows_of
from kernels.inputs import check_heads, describe, prepared

HAS_TRITON = importlib.util.find_spec("triton") is not None


def flashlite_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    *,
    scale: float | None = None,
    backend: BackendName | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(scale · q kᵀ + key_bias) v, without a map of N × N in memory.

    With key_bias = log α of every key's frame this is the FlashLite mode of Yoon, Cho, Park,
    Brémond, "Reweighting Framewise Attention in Video Transformers for Facial Expression
    Understanding", ECCV 2026 (arXiv 2606.30611).

    Args:
        q, k, v: [B, H, N, D] of one dtype and device, any strides: views of a fused projection are
            read where they lie. Under autocast they are cast to its dtype first.
        key_bias: [B, N] or [B, H, N] float32 (float64 beside float64 q), natural units. A
            constant: it gets no gradient. None is plain attention of the same backend.
        scale: factor on q·k; None is D^-1/2.
        backend: None is Triton on CUDA and SDPA elsewhere; see `BACKENDS`.
        dropout_p: only 0 is possible; fused attention here drops nothing.

    Returns:
        [B, H, N, D] in v's dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, dropout, an unknown backend, or
            `flash_attn` with a bias and a scale of 0.
        RuntimeError: the backend cannot run here; says why and what to do.
    """
    q, k, v, factor = prepared(q, k, v, scale=scale, dropout_p=dropout_p)
    if key_bias is not None:
        _check_bias(key_bias, q)
        key_bias = key_bias.detach()
    chosen = pick("flashlite_attention", BACKENDS, backend, q)
    if not q.numel():  # no clips, heads or tokens; not every backend takes that
        return q + k + v
    return chosen.run(q, k, v, key_bias, factor)


def key_energy(k: Tensor, *, backend: BackendName | None = None) -> Tensor:
    """Mean square of every key over heads and head dims, a constant for autograd.

    Args:
        k: [B, H, N, D], any strides.
        backend: as for `flashlite_attention`; those without a row in `ENERGY_BACKENDS` use plain
            PyTorch.

    Returns:
        [B, N] float32, or float64 for float64 keys.

    Raises:
        ValueError: k is not [B, H, N, D] of floating point, or the backend is unknown.
        RuntimeError: the backend cannot run here.
    """
    check_heads("k", k)
    table = dict.fromkeys(BACKENDS, PLAIN_ENERGY) | ENERGY_BACKENDS
    return pick("key_energy", table, backend, k).run(k.detach())


@torch.library.custom_op("mira::flashlite_forward", mutates_args=())
def flashlite_forward(
    q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Triton forward: (out, lse); see `kernel.forward`. Gradients flow from out alone."""
    from kernels.flashlite import kernel

    return kernel.forward(q, k, v, key_bias, scale)


@torch.library.custom_op("mira::flashlite_backward", mutates_args=())
def flashlite_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Triton backward: (dq, dk, dv); see `kernel.backward`."""
    from kernels.flashlite import kernel

    return kernel.backward(grad_out, q, k, v, key_bias, out, lse, scale)


@torch.library.custom_op("mira::key_energy", mutates_args=())
def key_energy_op(k: Tensor) -> Tensor:
    """Triton key energy; see `kernel.key_energy`."""
    from kernels.flashlite import kernel

    return kernel.key_energy(k)


@flashlite_forward.register_fake
def _(q, k, v, key_bias, scale):
    return heads_last(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@flashlite_backward.register_fake
def _(grad_out, q, k, v, key_bias, out, lse, scale):
    return heads_last(q), heads_last(q), heads_last(q)


@key_energy_op.register_fake
def _(k):
    return k.new_empty(k.shape[0], k.shape[2], dtype=torch.float32)


def _save(ctx, inputs, output) -> None:
    q, k, v, key_bias, scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, key_bias, out, lse)
    ctx.scale = scale


def _backward(ctx, grad_out, _):
    dq, dk, dv = flashlite_backward(grad_out, *ctx.saved_tensors, ctx.scale)
    return dq, dk, dv, None, None


flashlite_forward.register_autograd(_backward, setup_context=_save)


def _run_triton(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float) -> Tensor:
    return flashlite_forward(q, k, v, key_bias, scale)[0]


def triton_unavailable(q: Tensor) -> str | None:
    """Why no kernel of `kernels/` can take queries like `q` and what to do, or None if all can."""
    if not HAS_TRITON:
        return "triton is not installed; pip install triton (Linux only), or choose backend='sdpa'"
    from kernels.flashlite import kernel

    return kernel.unavailable(q)


def _run_sdpa(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float) -> Tensor:
    """PyTorch's fused attention; the bias stays one row a head, in q's dtype.

    Another dtype is misread by some fused kernels; a far-off constant, which changes nothing, makes
    cuDNN's backward return NaN: so the largest bias is moved to 0.
    """
    d, mask = q.shape[3], None
    q, k, v = (_fusable(x) for x in (q, k, v))
    if key_bias is not None:
        centred = key_bias - key_bias.amax(-1, keepdim=True)
        per_head = centred if key_bias.ndim == 3 else centred[:, None]  # [B, H or 1, N]
        mask = per_head[:, :, None].to(q.dtype)
    found = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return found if found.shape[3] == d else found[..., :d]


def _fusable(x: Tensor) -> Tensor:
    """[B, H, N, D] as fused kernels take it; else PyTorch falls back to a form that holds the map.

    They want a contiguous last axis, and on CUDA one that is a multiple of 8 long: zeros are added,
    which change neither q·k nor the first D columns of the result.
    """
    d = x.shape[3]
    return functional.pad(x, (0, -d % 8)) if x.is_cuda and d % 8 else rows_of(x)


def _run_flash_attn(
    q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, scale: float
) -> Tensor:
    """flash-attn takes no bias, so two channels carry it: [q, 1, 1] · [k, high, low].

    high + low is bias / scale, in two parts because one would keep only 8 bits of it in bfloat16.
    """
    from flash_attn import flash_attn_func

    d = q.shape[3]
    if key_bias is not None:
        if scale == 0.0:
            raise ValueError(
                "scale must not be 0 with a key_bias and backend 'flash_attn', whose keys carry "
                "bias / scale; choose backend='triton' or 'sdpa'"
            )
        q, k, v = _with_bias_channels(q, k, v, key_bias / scale)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, H, D], as flash-attn wants it
    return flash_attn_func(q, k, v, softmax_scale=scale)[..., :d].transpose(1, 2)


def _with_bias_channels(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, D + 2 and up to the next multiple of 8], with bias inside q·k.

    A bias of -inf becomes a finite one, far below any other: -inf less itself, the second channel,
    would be NaN. Only a query without any key left then differs, in that it sees all keys.
    """
    limit = torch.finfo(q.dtype).max / 2
    bias = bias.clamp(-limit, limit)
    per_head = (bias if bias.ndim == 3 else bias[:, None]).expand(q.shape[:3])
    high = per_head.to(q.dtype)
    low = (per_head - high.to(bias.dtype)).to(q.dtype)
    padding = -(q.shape[3] + 2) % 8
    ones = torch.ones_like(q[..., :1]).expand(*q.shape[:3], 2)
    q = functional.pad(torch.cat([q, ones], -1), (0, padding))
    k = functional.pad(torch.cat([k, high[..., None], low[..., None]], -1), (0, padding))
    return q, k, functional.pad(v, (0, 2 + padding))


def _flash_attn_unavailable(q: Tensor) -> str | None:
    try:
        from flash_attn import flash_attn_func  # noqa: F401
    except ImportError:
        return "flash-attn is not installed; pip install 'mira-video[flash]' on a CUDA machine"
    if not q.is_cuda or q.dtype not in (torch.float16, torch.bfloat16):
        return (
            f"it takes float16 and bfloat16 on CUDA, not {q.dtype} on {q.device.type}; "
            "choose backend='sdpa'"
        )
    if q.shape[-1] > 248:
        return f"head dim {q.shape[-1]} with the bias is above 256; choose backend='sdpa'"
    return None


BACKENDS: dict[str, Backend] = {
    "triton": Backend(_run_triton, triton_unavailable),
    "sdpa": Backend(_run_sdpa, anywhere),
    "flash_attn": Backend(_run_flash_attn, _flash_attn_unavailable),
    "reference": Backend(reference.attention, anywhere),
}
ENERGY_BACKENDS = {"triton": Backend(key_energy_op, triton_unavailable)}
PLAIN_ENERGY = Backend(reference.key_energy, anywhere)
"""Key energy for the backends that have no kernel of their own for it."""


def _check_bias(key_bias: Tensor, q: Tensor) -> None:
    b, h, n, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    fits = key_bias.shape in ((b, n), (b, h, n))
    if not fits or key_bias.dtype != dtype or key_bias.device != q.device:
        raise ValueError(
            f"key_bias must be [B, N] = {(b, n)} or [B, H, N] = {(b, h, n)}, {dtype}, on "
            f"{q.device}, not {describe(key_bias)}"
        )
