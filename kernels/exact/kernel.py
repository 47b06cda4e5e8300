"""Triton kernels of exact MiRA attention: column mass and mix, and all launches.

Owns the launch of every kernel of this folder, as the four passes of
`chunked.py`, whose docstrings say what each takes and returns. It knows nothing of autograd or of
frames. Imported only where Triton exists, never by `import kernels.exact`. Conventions inside
kernels: `kernels/flashlite/tiles.py`.

The plain pass is the kernel of `kernels/flashlite`. Probabilities are recomputed from its
log-sum-exp in every other kernel, as 2^(log2(e) · (scale · q·k − lse)), so none needs a maximum.
"""

# Triton's types describe calls from Python, not from a kernel, where constants are plain literals.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.exact.kernel_backward import (
    dk_kernel,
    dq_kernel,
    load_vector,
    terms_kernel,
    values_kernel,
)
from kernels.exact.sizes import Kernel, tiles_of
from kernels.flashlite import kernel as plain_attention
from kernels.flashlite.layout import heads_last, rows_of
from kernels.flashlite.sizes import INTERPRETED, Tiles
from kernels.flashlite.tiles import (
    LOG2E,
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


@triton.jit
def mass_step(
    b_k, b_k_tail, b_mass, q, lse, start, q_n, scale2, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of queries: what the keys receive from them; blocks are [keys, queries]."""
    o_query = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_q, b_q_tail = load_rows(q, o_query, q_n, N, D, D0, D1, MASKED, UPCAST)
    # Queries beyond N get +inf: their probabilities are 2^-inf = 0.
    b_lse = load_vector(lse, o_query, N, float("inf"), MASKED) * LOG2E
    # [ROWS, COLUMNS]
    b_s = product(b_k, b_k_tail, b_q, b_q_tail, D1) * scale2
    return b_mass + tl.sum(tl.math.exp2(b_s - b_lse[None, :]), 1)


@triton.jit
def mass_kernel(
    q, k, lse, mass, q_b, q_h, q_n, k_b, k_h, k_n, scale2, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """What a block of keys receives from all queries of a head."""
    i_b, i_h, o_row = place(H, N, ROWS)
    i_vector = (i_b * H + i_h) * N
    q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    # [ROWS, D]
    p_k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    b_k, b_k_tail = load_rows(p_k, o_row, k_n, N, D, D0, D1, True, UPCAST)
    b_mass = tl.full([ROWS], 0.0, tl.float32)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        b_mass = mass_step(
            b_k, b_k_tail, b_mass, q, lse + i_vector, start, q_n, scale2, N,
            D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        b_mass = mass_step(
            b_k, b_k_tail, b_mass, q, lse + i_vector, full, q_n, scale2, N,
            D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    tl.store(mass + i_vector + o_row, b_mass, o_row < N)


@triton.jit
def mix_step(
    b_q, b_q_tail, acc, acc_tail, b_sum, b_lse, k, v, log_weight, start, k_n, v_n,
    scale2, uniform, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of keys: re-weighted probabilities, their sum and the values they weigh."""
    o_key = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_k, b_k_tail = load_rows(k, o_key, k_n, N, D, D0, D1, MASKED, UPCAST)
    b_bias = load_bias(log_weight, o_key, N, MASKED)
    # [ROWS, COLUMNS]
    b_s = product(b_q, b_q_tail, b_k, b_k_tail, D1) * scale2 + b_bias[None, :]
    b_p = tl.math.exp2(b_s - b_lse[:, None])
    if MASKED:
        b_p += tl.where(o_key < N, uniform, 0.0)[None, :]
    else:
        b_p += uniform
    b_sum += tl.sum(b_p, 1)
    # [COLUMNS, D]
    b_v, b_v_tail = load_rows(v, o_key, v_n, N, D, D0, D1, MASKED, UPCAST)
    acc, acc_tail = accumulate(b_p, b_v, b_v_tail, acc, acc_tail, D1)
    return acc, acc_tail, b_sum


@triton.jit
def mix_kernel(
    q, k, v, plain, lse, log_weight, out, reweighted, norm,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, plain_b, plain_h, plain_n, out_b, out_h, out_n,
    scale2, residual_mix, taken, uniform, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """O', Z and out (laid out like O') of a block of queries; taken = 1 − ε, uniform = ε/(1−ε)/N.

    O' = Σ (α A + uniform) v / Σ (α A + uniform), and Z is (1 − ε) times that sum.
    """
    i_b, i_h, o_row = place(H, N, ROWS)
    i_vector = (i_b * H + i_h) * N
    k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    log_weight += i_b * N
    # [ROWS, D]
    p_q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    b_q, b_q_tail = load_rows(p_q, o_row, q_n, N, D, D0, D1, True, UPCAST)
    b_lse = load_vector(lse + i_vector, o_row, N, 0.0, True) * LOG2E
    acc, acc_tail = zero_rows(ROWS, D0, D1)
    b_sum = tl.full([ROWS], 0.0, tl.float32)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        acc, acc_tail, b_sum = mix_step(
            b_q, b_q_tail, acc, acc_tail, b_sum, b_lse, k, v, log_weight, start, k_n, v_n,
            scale2, uniform, N, D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        acc, acc_tail, b_sum = mix_step(
            b_q, b_q_tail, acc, acc_tail, b_sum, b_lse, k, v, log_weight, full, k_n, v_n,
            scale2, uniform, N, D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    acc = acc / b_sum[:, None]
    acc_tail = acc_tail / b_sum[:, None]
    p_re = head(reweighted, i_b, i_h, out_b, out_h, ALIGNED)
    store_rows(p_re, acc, acc_tail, o_row, out_n, N, D, D0, D1)
    p_plain = head(plain, i_b, i_h, plain_b, plain_h, ALIGNED)
    b_plain, b_plain_tail = load_rows(p_plain, o_row, plain_n, N, D, D0, D1, True, UPCAST)
    acc = (1.0 - residual_mix) * b_plain.to(tl.float32) + residual_mix * acc
    if D1 > 0:
        acc_tail = (1.0 - residual_mix) * b_plain_tail.to(tl.float32) + residual_mix * acc_tail
    p_out = head(out, i_b, i_h, out_b, out_h, ALIGNED)
    store_rows(p_out, acc, acc_tail, o_row, out_n, N, D, D0, D1)
    tl.store(norm + i_vector + o_row, taken * b_sum, o_row < N)


def column_mass(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Plain attention, lse and column mass; see `chunked.column_mass`."""
    q, k = rows_of(q), rows_of(k)
    plain, lse = plain_attention.forward(q, k, v, None, scale)
    mass = torch.empty_like(lse)
    grid, sizes, common = _launch("mass", q, k)
    if q.numel():
        with torch.cuda.device_of(q):
            mass_kernel[grid](
                q, k, lse, mass, *strides(q, k), scale * LOG2E.value, *sizes, **common
            )
    return plain, lse, mass.mean(1)


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plain: Tensor,
    lse: Tensor,
    weight: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, O' and Z; see `chunked.mix`."""
    q, k, v, plain = (rows_of(x) for x in (q, k, v, plain))
    out, reweighted = heads_last(q), heads_last(q)
    lse, log_weight = lse.contiguous(), weight.log().contiguous()
    norm = torch.empty_like(lse)
    grid, sizes, common = _launch("mix", q, k, v, plain, out)
    if q.numel():
        with torch.cuda.device_of(q):
            mix_kernel[grid](
                q, k, v, plain, lse, log_weight, out, reweighted, norm,
                *strides(q, k, v, plain, out), scale * LOG2E.value, residual_mix, 1 - floor,
                floor / (1 - floor) / q.shape[2], *sizes, **common,
            )  # fmt: skip
    return out, reweighted, norm


def values_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    reweighted: Tensor,
    lse: Tensor,
    norm: Tensor,
    weight: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dV, dL/dα of every key, D' and δ; see `chunked.values_backward`. δ lacks its part of ε."""
    q, k, v, grad, out, reweighted = (rows_of(x) for x in (q, k, v, grad, out, reweighted))
    lse, norm, weight = lse.contiguous(), norm.contiguous(), weight.contiguous()
    along, delta, d_alpha, dv = *(torch.empty_like(lse) for _ in range(3)), heads_last(q)
    grid, sizes, common = _launch("values", q, k, v, grad, dv)
    tiles = Tiles(32, 0, 4, 1)
    if q.numel():
        with torch.cuda.device_of(q):
            terms_kernel[programs(q.shape[2], tiles, q.shape[0], q.shape[1])](
                grad, out, reweighted, along, delta, *strides(grad, out, reweighted),
                residual_mix, *sizes, **options(tiles, grad, out, reweighted),
            )  # fmt: skip
            values_kernel[grid](
                q, k, v, grad, lse, norm, weight, along, dv, d_alpha, *strides(q, k, v, grad, dv),
                scale * LOG2E.value, 1 - residual_mix, (1 - floor) * residual_mix,
                floor / (1 - floor) / q.shape[2], *sizes, **common,
            )  # fmt: skip
    return dv, d_alpha.sum(1), along, delta


def scores_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    norm: Tensor,
    weight: Tensor,
    along: Tensor,
    delta: Tensor,
    mass_grad: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """dQ and dK; see `chunked.scores_backward`."""
    q, k, v, grad = (rows_of(x) for x in (q, k, v, grad))
    vectors = [x.contiguous() for x in (lse, norm, weight, mass_grad, along, delta)]
    whole, dq, dk = torch.empty_like(vectors[-1]), heads_last(q), heads_last(q)
    factors = scale, scale * LOG2E.value, 1 - residual_mix, (1 - floor) * residual_mix
    if q.numel():
        with torch.cuda.device_of(q):
            grid, sizes, common = _launch("dq", q, k, v, grad, dq)
            dq_kernel[grid](
                q, k, v, grad, *vectors, whole, dq, *strides(q, k, v, grad, dq), *factors,
                *sizes, **common,
            )  # fmt: skip
            grid, sizes, common = _launch("dk", q, k, v, grad, dk)
            dk_kernel[grid](
                q, k, v, grad, *vectors[:-1], whole, dk, *strides(q, k, v, grad, dk), *factors,
                *sizes, **common,
            )  # fmt: skip
    return dq, dk


def _launch(kernel: Kernel, q: Tensor, *others: Tensor) -> tuple[tuple[int], tuple[int, int], dict]:
    """Grid, (H, N) and compile-time arguments of a kernel over these tensors."""
    b, h, n, d = q.shape
    tiles = INTERPRETED
    if not interpreted:
        tiles = tiles_of(kernel, d, q.dtype, torch.cuda.get_device_capability(q.device)[0])
    common = options(tiles, q, *others) | {
        "COLUMNS": tiles.columns,
        "RAGGED": n % tiles.columns != 0,
    }
    return programs(n, tiles, b, h), (h, n), common
