"""Triton kernels of attention with one additive bias a key: forward, key energy, and all launches.

Owns the launch of every kernel of this folder. It knows nothing of autograd, of
other backends or of what the bias means. Imported only where Triton exists, never by
`import kernels.flashlite`.

Softmax runs in base 2: a score is scale · log2(e) · q·k + log2(e) · bias, probabilities are
2^(score - maximum), after Dao, "FlashAttention-2" (arXiv 2307.08691). Scale and bias come before
the maximum, so any bias is safe. A bias of zeros gives the bits of no bias.
"""

# Triton's types describe calls from Python, not from a kernel, where constants are plain literals.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.flashlite.kernel_backward import dkv_kernel, dq_kernel
from kernels.flashlite.layout import heads_last, rows_of
from kernels.flashlite.sizes import INTERPRETED, Kernel, Tiles, tiles_of
from kernels.flashlite.tiles import (
    LN2,
    LOG2E,
    MAX_HEAD_DIM,
    accumulate,
    head,
    interpreted,
    load_bias,
    load_rows,
    options,
    place,
    product,
    programs,
    store_rows,
    strides,
    zero_rows,
)

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@triton.jit
def forward_step(
    b_q, b_q_tail, acc, acc_tail, b_max, b_sum, k, v, bias, start, k_n, v_n, scale2, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of keys: running maximum, sum and weighted values of the rows."""
    o_key = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_k, b_k_tail = load_rows(k, o_key, k_n, N, D, D0, D1, MASKED, UPCAST)
    b_bias = load_bias(bias, o_key, N, MASKED)
    # [ROWS, COLUMNS]
    b_s = product(b_q, b_q_tail, b_k, b_k_tail, D1) * scale2 + b_bias[None, :]
    new_max = tl.maximum(b_max, tl.max(b_s, 1))
    # Rows that saw nothing but -inf so far must not compute inf - inf.
    finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
    b_p = tl.math.exp2(b_s - finite_max[:, None])
    shrink = tl.math.exp2(b_max - finite_max)
    b_sum = b_sum * shrink + tl.sum(b_p, 1)
    # [COLUMNS, D]
    b_v, b_v_tail = load_rows(v, o_key, v_n, N, D, D0, D1, MASKED, UPCAST)
    acc = acc * shrink[:, None]
    acc_tail = acc_tail * shrink[:, None]
    acc, acc_tail = accumulate(b_p, b_v, b_v_tail, acc, acc_tail, D1)
    return acc, acc_tail, new_max, b_sum


@triton.jit
def forward_kernel(
    q, k, v, bias, out, lse,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, out_b, out_h, out_n,
    scale2, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale q kᵀ + bias) v and its natural log-sum-exp, for a block of queries."""
    i_b, i_h, o_row = place(H, N, ROWS)
    k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    if bias is not None:
        bias += i_b * bias_b + i_h * bias_h
    # [ROWS, D]
    p_q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    b_q, b_q_tail = load_rows(p_q, o_row, q_n, N, D, D0, D1, True, UPCAST)
    acc, acc_tail = zero_rows(ROWS, D0, D1)
    b_max = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.full([ROWS], 0.0, tl.float32)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        acc, acc_tail, b_max, b_sum = forward_step(
            b_q, b_q_tail, acc, acc_tail, b_max, b_sum, k, v, bias, start, k_n, v_n, scale2, N,
            D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        acc, acc_tail, b_max, b_sum = forward_step(
            b_q, b_q_tail, acc, acc_tail, b_max, b_sum, k, v, bias, full, k_n, v_n, scale2, N,
            D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    acc = acc / b_sum[:, None]
    acc_tail = acc_tail / b_sum[:, None]
    p_out = head(out, i_b, i_h, out_b, out_h, ALIGNED)
    store_rows(p_out, acc, acc_tail, o_row, out_n, N, D, D0, D1)
    b_lse = (b_max + tl.math.log2(b_sum)) * LN2
    tl.store(lse + (i_b * H + i_h) * N + o_row, b_lse, o_row < N)


@triton.jit
def key_energy_kernel(
    k, energy, k_b, k_h, k_n, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, UPCAST: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Mean square of a block of keys over heads and head dim; every element of K is read once."""
    i_b, _, o_row = place(1, N, ROWS)
    total = tl.full([ROWS], 0.0, tl.float32)
    for i_h in range(0, H):
        # [ROWS, D]
        p_k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
        b_k, b_k_tail = load_rows(p_k, o_row, k_n, N, D, D0, D1, True, UPCAST)
        b_k = b_k.to(tl.float32)
        total += tl.sum(b_k * b_k, 1)
        if D1 > 0:
            b_k_tail = b_k_tail.to(tl.float32)
            total += tl.sum(b_k_tail * b_k_tail, 1)
    tl.store(energy + i_b * N + o_row, total / (H * D), o_row < N)


def unavailable(q: Tensor) -> str | None:
    """Why the kernels cannot take queries like `q` and what to do, or None if they can."""
    if not (q.is_cuda or (interpreted and q.device.type == "cpu")):
        return (
            f"tensors are on {q.device.type}; move them to CUDA, choose backend='sdpa', or set "
            "TRITON_INTERPRET=1 before the first import to run kernels (slowly) on the CPU"
        )
    if q.dtype not in DTYPES:
        return f"it computes float16, bfloat16 and float32, not {q.dtype}; choose backend='sdpa'"
    if q.shape[-1] > MAX_HEAD_DIM:
        return f"head dim {q.shape[-1]} is above {MAX_HEAD_DIM}; choose backend='sdpa'"
    return None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    scale: float,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ + key_bias) v and its log-sum-exp.

    Args:
        q, k, v: [B, H, N, D], one dtype of `DTYPES`, D at most 256, any strides; a last axis that
            is not contiguous costs a copy.
        key_bias: None, [B, N] or [B, H, N] float32, natural units; -inf takes a key out.
        scale: factor on q·k.
        tiles: instead of those of the table, for tuning.

    Returns:
        out [B, H, N, D] in q's dtype, in memory [B, N, H, D]; lse [B, H, N] float32, contiguous,
        natural logarithm of Σ exp(scale · q·k + key_bias). NaN where a query has no key left.
    """
    q, k, v = rows_of(q), rows_of(k), rows_of(v)
    b, h, n, _ = q.shape
    bias, bias_strides = _bias(key_bias)
    out, lse = heads_last(q), q.new_empty(b, h, n, dtype=torch.float32)
    tiles = tiles or _chosen("forward", q)
    if q.numel():
        with torch.cuda.device_of(q):
            forward_kernel[programs(n, tiles, b, h)](
                q, k, v, bias, out, lse, *strides(q, k, v), *bias_strides, *strides(out),
                scale * LOG2E.value, h, n, COLUMNS=tiles.columns, RAGGED=n % tiles.columns != 0,
                **options(tiles, q, k, v, out),
            )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    tiles: tuple[Tiles, Tiles] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward`'s out by q, k and v; the bias is a constant.

    Args:
        grad_out: [B, H, N, D] in q's dtype, any strides.
        q, k, v, key_bias, scale: as given to `forward`.
        out, lse: as `forward` returned them.
        tiles: of the dQ and of the dK/dV kernel, instead of those of the table.

    Returns:
        dq, dk, dv: [B, H, N, D] in q's dtype, each in memory [B, N, H, D].
    """
    q, k, v, grad_out, out = (rows_of(x) for x in (q, k, v, grad_out, out))
    b, h, n, _ = q.shape
    bias, bias_strides = _bias(key_bias)
    lse, delta = lse.contiguous(), torch.empty_like(lse, memory_format=torch.contiguous_format)
    dq, dk, dv = heads_last(q), heads_last(q), heads_last(q)
    for_dq, for_dkv = tiles or (_chosen("dq", q), _chosen("dkv", q))
    if q.numel():
        with torch.cuda.device_of(q):
            dq_kernel[programs(n, for_dq, b, h)](
                q, k, v, bias, out, grad_out, lse, delta, dq,
                *strides(q, k, v), *bias_strides, *strides(out, grad_out, dq),
                scale, scale * LOG2E.value, h, n,
                COLUMNS=for_dq.columns, RAGGED=n % for_dq.columns != 0,
                **options(for_dq, q, k, v, out, grad_out, dq),
            )  # fmt: skip
            dkv_kernel[programs(n, for_dkv, b, h)](
                q, k, v, bias, grad_out, lse, delta, dk, dv,
                *strides(q, k, v), *bias_strides, *strides(grad_out, dk),
                scale, scale * LOG2E.value, h, n,
                COLUMNS=for_dkv.columns, RAGGED=n % for_dkv.columns != 0,
                **options(for_dkv, q, k, v, grad_out, dk),
            )  # fmt: skip
    return dq, dk, dv


def key_energy(k: Tensor) -> Tensor:
    """Mean square of every key over heads and head dims: k [B, H, N, D] → [B, N] float32."""
    k = rows_of(k)
    b, h, n, _ = k.shape
    energy = k.new_empty(b, n, dtype=torch.float32)
    tiles = Tiles(32, 0, 4, 2)
    if k.numel():
        with torch.cuda.device_of(k):
            key_energy_kernel[programs(n, tiles, b)](
                k, energy, *strides(k), h, n, **options(tiles, k)
            )
    return energy


def _chosen(kernel: Kernel, q: Tensor) -> Tiles:
    if interpreted:
        return INTERPRETED
    return tiles_of(kernel, q.shape[3], q.dtype, torch.cuda.get_device_capability(q.device)[0])


def _bias(key_bias: Tensor | None) -> tuple[Tensor | None, tuple[int, int]]:
    """Bias with contiguous keys, and its strides of batch and head (0: the same for every head)."""
    if key_bias is None:
        return None, (0, 0)
    key_bias = rows_of(key_bias)
    return key_bias, (key_bias.stride(0), key_bias.stride(1) if key_bias.ndim == 3 else 0)
