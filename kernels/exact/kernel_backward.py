"""Triton kernels of the backward pass of exact MiRA attention.

Owns four kernels; `kernel.py` launches them in this order: the terms of every query; dV and dL/dα,
by blocks of keys; dQ and the complete δ, by blocks of queries; dK, by blocks of keys. Each output
has one writer: no atomics, the same bits on every run. Conventions: `kernels/flashlite/tiles.py`.

In a tile A = exp(scale · q·k − lse), G = dOut · v, with b = (1 − ε) η / Z a number a query and α, g
numbers a key, and u = ε / ((1 − ε) N):

    A* = A ((1 − η) + α b) + u b          dV = A*ᵀ dOut
    dA = (1 − η) G + α b (G − D') + g     dS = A (dA − δ), δ = Σ_k A dA
"""

# Triton's types describe calls from Python, not from a kernel, where constants are plain literals.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

import triton
import triton.language as tl

from kernels.flashlite.tiles import (
    LOG2E,
    accumulate,
    head,
    load_rows,
    place,
    product,
    store_rows,
    zero_rows,
)


@triton.jit
def load_vector(p, o_row, N, other, MASKED: tl.constexpr):
    """[rows] of a float32 vector; `other` beyond N."""
    if MASKED:
        block = tl.load(p + o_row, o_row < N, other=other)
    else:
        block = tl.load(p + o_row)
    return block


@triton.jit
def row_dot(a, a_tail, b, b_tail, D1: tl.constexpr):
    """Σ_d a b of each row, float32."""
    total = tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    if D1 > 0:
        total += tl.sum(a_tail.to(tl.float32) * b_tail.to(tl.float32), 1)
    return total


@triton.jit
def terms_kernel(
    grad_out, out, reweighted, along, delta,
    do_b, do_h, do_n, out_b, out_h, out_n, re_b, re_h, re_n, residual_mix, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, UPCAST: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """D' = dOut · O', and δ nearly: its part of ε and of the statistics is left to `dq_kernel`."""
    i_b, i_h, o_row = place(H, N, ROWS)
    # [ROWS, D]
    p_do = head(grad_out, i_b, i_h, do_b, do_h, ALIGNED)
    b_do, b_do_tail = load_rows(p_do, o_row, do_n, N, D, D0, D1, True, UPCAST)
    p_out = head(out, i_b, i_h, out_b, out_h, ALIGNED)
    b_out, b_out_tail = load_rows(p_out, o_row, out_n, N, D, D0, D1, True, UPCAST)
    p_re = head(reweighted, i_b, i_h, re_b, re_h, ALIGNED)
    b_re, b_re_tail = load_rows(p_re, o_row, re_n, N, D, D0, D1, True, UPCAST)
    b_along = row_dot(b_do, b_do_tail, b_re, b_re_tail, D1)
    b_delta = row_dot(b_do, b_do_tail, b_out, b_out_tail, D1) - residual_mix * b_along
    i_vector = (i_b * H + i_h) * N
    tl.store(along + i_vector + o_row, b_along, o_row < N)
    tl.store(delta + i_vector + o_row, b_delta, o_row < N)


@triton.jit
def values_step(
    b_k, b_k_tail, b_v, b_v_tail, b_weight, dv, dv_tail, b_alpha,
    q, grad_out, lse, norm, along, start, q_n, do_n, scale2, kept, reach, uniform, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of queries: what it adds to dV and dL/dα; blocks are [keys, queries]."""
    o_query = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_q, b_q_tail = load_rows(q, o_query, q_n, N, D, D0, D1, MASKED, UPCAST)
    b_do, b_do_tail = load_rows(grad_out, o_query, do_n, N, D, D0, D1, MASKED, UPCAST)
    # Queries beyond N get +inf: their probabilities are 2^-inf = 0.
    b_lse = load_vector(lse, o_query, N, float("inf"), MASKED) * LOG2E
    b_reach = reach / load_vector(norm, o_query, N, 1.0, MASKED)
    b_along = load_vector(along, o_query, N, 0.0, MASKED)
    # [ROWS, COLUMNS]
    b_s = product(b_k, b_k_tail, b_q, b_q_tail, D1) * scale2
    b_p = tl.math.exp2(b_s - b_lse[None, :])
    # The sum first: after it only one tile of this size is alive.
    b_g = product(b_v, b_v_tail, b_do, b_do_tail, D1)
    b_alpha += tl.sum(b_p * ((b_g - b_along[None, :]) * b_reach[None, :]), 1)
    b_mixed = b_p * (kept + b_weight[:, None] * b_reach[None, :]) + uniform * b_reach[None, :]
    dv, dv_tail = accumulate(b_mixed, b_do, b_do_tail, dv, dv_tail, D1)
    return dv, dv_tail, b_alpha


@triton.jit
def values_kernel(
    q, k, v, grad_out, lse, norm, weight, along, dv, d_alpha,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, do_b, do_h, do_n, dv_b, dv_h, dv_n,
    scale2, kept, reach, uniform, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """dV of a block of keys, and this head's part of dL/dα of each key's frame."""
    i_b, i_h, o_row = place(H, N, ROWS)
    i_vector = (i_b * H + i_h) * N
    q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    grad_out = head(grad_out, i_b, i_h, do_b, do_h, ALIGNED)
    # [ROWS, D]
    p_k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    b_k, b_k_tail = load_rows(p_k, o_row, k_n, N, D, D0, D1, True, UPCAST)
    p_v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    b_v, b_v_tail = load_rows(p_v, o_row, v_n, N, D, D0, D1, True, UPCAST)
    b_weight = load_vector(weight + i_b * N, o_row, N, 0.0, True)
    b_dv, b_dv_tail = zero_rows(ROWS, D0, D1)
    b_alpha = tl.full([ROWS], 0.0, tl.float32)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        b_dv, b_dv_tail, b_alpha = values_step(
            b_k, b_k_tail, b_v, b_v_tail, b_weight, b_dv, b_dv_tail, b_alpha,
            q, grad_out, lse + i_vector, norm + i_vector, along + i_vector, start, q_n, do_n,
            scale2, kept, reach, uniform, N, D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        b_dv, b_dv_tail, b_alpha = values_step(
            b_k, b_k_tail, b_v, b_v_tail, b_weight, b_dv, b_dv_tail, b_alpha,
            q, grad_out, lse + i_vector, norm + i_vector, along + i_vector, full, q_n, do_n,
            scale2, kept, reach, uniform, N, D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    p_dv = head(dv, i_b, i_h, dv_b, dv_h, ALIGNED)
    store_rows(p_dv, b_dv, b_dv_tail, o_row, dv_n, N, D, D0, D1)
    tl.store(d_alpha + i_vector + o_row, b_alpha, o_row < N)


@triton.jit
def dq_step(
    b_q, b_q_tail, b_do, b_do_tail, dq, dq_tail, mean, mean_tail, b_rest,
    b_lse, b_reach, b_along, b_delta, k, v, weight, pull, start, k_n, v_n, scale2, kept, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of keys: what it adds to Σ A (dA − δ) k, to Σ A k and to Σ A (dA − δ)."""
    o_key = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_k, b_k_tail = load_rows(k, o_key, k_n, N, D, D0, D1, MASKED, UPCAST)
    b_v, b_v_tail = load_rows(v, o_key, v_n, N, D, D0, D1, MASKED, UPCAST)
    b_weight = load_vector(weight, o_key, N, 0.0, MASKED)
    b_pull = load_vector(pull, o_key, N, 0.0, MASKED)
    # [ROWS, COLUMNS]
    b_s = product(b_q, b_q_tail, b_k, b_k_tail, D1) * scale2 - b_lse[:, None]
    if MASKED:
        b_s = tl.where((o_key < N)[None, :], b_s, float("-inf"))
    b_p = tl.math.exp2(b_s)
    b_g = product(b_do, b_do_tail, b_v, b_v_tail, D1)
    b_reweighted = b_weight[None, :] * (b_reach[:, None] * (b_g - b_along[:, None]))
    b_ds = b_p * (kept * b_g + b_reweighted + (b_pull[None, :] - b_delta[:, None]))
    b_rest += tl.sum(b_ds, 1)
    dq, dq_tail = accumulate(b_ds, b_k, b_k_tail, dq, dq_tail, D1)
    mean, mean_tail = accumulate(b_p, b_k, b_k_tail, mean, mean_tail, D1)
    return dq, dq_tail, mean, mean_tail, b_rest


@triton.jit
def dq_kernel(
    q, k, v, grad_out, lse, norm, weight, pull, along, delta, whole_delta, dq,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, do_b, do_h, do_n, dq_b, dq_h, dq_n,
    scale, scale2, kept, reach, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries. What was missing of their δ is found on the way and corrected."""
    i_b, i_h, o_row = place(H, N, ROWS)
    i_vector = (i_b * H + i_h) * N
    k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    weight += i_b * N
    pull += i_b * N
    # [ROWS, D]
    p_q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    b_q, b_q_tail = load_rows(p_q, o_row, q_n, N, D, D0, D1, True, UPCAST)
    p_do = head(grad_out, i_b, i_h, do_b, do_h, ALIGNED)
    b_do, b_do_tail = load_rows(p_do, o_row, do_n, N, D, D0, D1, True, UPCAST)
    b_lse = load_vector(lse + i_vector, o_row, N, float("inf"), True) * LOG2E
    b_reach = reach / load_vector(norm + i_vector, o_row, N, 1.0, True)
    b_along = load_vector(along + i_vector, o_row, N, 0.0, True)
    b_delta = load_vector(delta + i_vector, o_row, N, 0.0, True)
    acc, acc_tail = zero_rows(ROWS, D0, D1)
    mean, mean_tail = zero_rows(ROWS, D0, D1)
    b_rest = tl.full([ROWS], 0.0, tl.float32)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        acc, acc_tail, mean, mean_tail, b_rest = dq_step(
            b_q, b_q_tail, b_do, b_do_tail, acc, acc_tail, mean, mean_tail, b_rest,
            b_lse, b_reach, b_along, b_delta, k, v, weight, pull, start, k_n, v_n, scale2, kept, N,
            D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        acc, acc_tail, mean, mean_tail, b_rest = dq_step(
            b_q, b_q_tail, b_do, b_do_tail, acc, acc_tail, mean, mean_tail, b_rest,
            b_lse, b_reach, b_along, b_delta, k, v, weight, pull, full, k_n, v_n, scale2, kept, N,
            D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    acc = (acc - b_rest[:, None] * mean) * scale
    acc_tail = (acc_tail - b_rest[:, None] * mean_tail) * scale
    p_dq = head(dq, i_b, i_h, dq_b, dq_h, ALIGNED)
    store_rows(p_dq, acc, acc_tail, o_row, dq_n, N, D, D0, D1)
    tl.store(whole_delta + i_vector + o_row, b_delta + b_rest, o_row < N)


@triton.jit
def dk_step(
    b_k, b_k_tail, b_v, b_v_tail, b_weight, b_pull, dk, dk_tail,
    q, grad_out, lse, norm, along, delta, start, q_n, do_n, scale2, kept, reach, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of queries: what it adds to dK / scale; blocks are [keys, queries]."""
    o_query = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_q, b_q_tail = load_rows(q, o_query, q_n, N, D, D0, D1, MASKED, UPCAST)
    b_do, b_do_tail = load_rows(grad_out, o_query, do_n, N, D, D0, D1, MASKED, UPCAST)
    b_lse = load_vector(lse, o_query, N, float("inf"), MASKED) * LOG2E
    b_reach = reach / load_vector(norm, o_query, N, 1.0, MASKED)
    b_along = load_vector(along, o_query, N, 0.0, MASKED)
    b_delta = load_vector(delta, o_query, N, 0.0, MASKED)
    # [ROWS, COLUMNS]
    b_s = product(b_k, b_k_tail, b_q, b_q_tail, D1) * scale2
    b_p = tl.math.exp2(b_s - b_lse[None, :])
    b_g = product(b_v, b_v_tail, b_do, b_do_tail, D1)
    b_reweighted = b_weight[:, None] * (b_reach[None, :] * (b_g - b_along[None, :]))
    b_ds = b_p * (kept * b_g + b_reweighted + (b_pull[:, None] - b_delta[None, :]))
    return accumulate(b_ds, b_q, b_q_tail, dk, dk_tail, D1)


@triton.jit
def dk_kernel(
    q, k, v, grad_out, lse, norm, weight, pull, along, delta, dk,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, do_b, do_h, do_n, dk_b, dk_h, dk_n,
    scale, scale2, kept, reach, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """dK of a block of keys; `delta` is the complete one."""
    i_b, i_h, o_row = place(H, N, ROWS)
    i_vector = (i_b * H + i_h) * N
    q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    grad_out = head(grad_out, i_b, i_h, do_b, do_h, ALIGNED)
    # [ROWS, D]
    p_k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    b_k, b_k_tail = load_rows(p_k, o_row, k_n, N, D, D0, D1, True, UPCAST)
    p_v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    b_v, b_v_tail = load_rows(p_v, o_row, v_n, N, D, D0, D1, True, UPCAST)
    b_weight = load_vector(weight + i_b * N, o_row, N, 0.0, True)
    b_pull = load_vector(pull + i_b * N, o_row, N, 0.0, True)
    b_dk, b_dk_tail = zero_rows(ROWS, D0, D1)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        b_dk, b_dk_tail = dk_step(
            b_k, b_k_tail, b_v, b_v_tail, b_weight, b_pull, b_dk, b_dk_tail,
            q, grad_out, lse + i_vector, norm + i_vector, along + i_vector, delta + i_vector,
            start, q_n, do_n, scale2, kept, reach, N, D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        b_dk, b_dk_tail = dk_step(
            b_k, b_k_tail, b_v, b_v_tail, b_weight, b_pull, b_dk, b_dk_tail,
            q, grad_out, lse + i_vector, norm + i_vector, along + i_vector, delta + i_vector,
            full, q_n, do_n, scale2, kept, reach, N, D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    p_dk = head(dk, i_b, i_h, dk_b, dk_h, ALIGNED)
    store_rows(p_dk, b_dk * scale, b_dk_tail * scale, o_row, dk_n, N, D, D0, D1)
