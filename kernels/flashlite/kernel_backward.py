"""Triton kernels of the backward pass: dQ for blocks of queries, dK and dV for blocks of keys.

Owns the two kernels; `kernel.py` launches them. Separate kernels recompute the probabilities twice
and need no atomics, so gradients have the same bits on every run.
"""

# Triton's types describe calls from Python, not from a kernel, where constants are plain literals.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

import triton
import triton.language as tl

from kernels.flashlite.tiles import (
    LOG2E,
    accumulate,
    head,
    load_bias,
    load_rows,
    place,
    product,
    store_rows,
    zero_rows,
)


@triton.jit
def dq_step(
    b_q, b_q_tail, b_do, b_do_tail, dq, dq_tail, b_lse, b_delta, k, v, bias, start, k_n, v_n,
    scale2, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of keys: what it adds to dQ / scale."""
    o_key = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_k, b_k_tail = load_rows(k, o_key, k_n, N, D, D0, D1, MASKED, UPCAST)
    b_v, b_v_tail = load_rows(v, o_key, v_n, N, D, D0, D1, MASKED, UPCAST)
    b_bias = load_bias(bias, o_key, N, MASKED)
    # [ROWS, COLUMNS]
    b_s = product(b_q, b_q_tail, b_k, b_k_tail, D1) * scale2 + b_bias[None, :]
    b_p = tl.math.exp2(b_s - b_lse[:, None])
    b_dp = product(b_do, b_do_tail, b_v, b_v_tail, D1)
    b_ds = b_p * (b_dp - b_delta[:, None])
    return accumulate(b_ds, b_k, b_k_tail, dq, dq_tail, D1)


@triton.jit
def dq_kernel(
    q, k, v, bias, out, grad_out, lse, delta, dq,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h, out_b, out_h, out_n,
    do_b, do_h, do_n, dq_b, dq_h, dq_n,
    scale, scale2, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """dQ of a block of queries, and their delta = dOut · out, which the dK/dV kernel reads."""
    i_b, i_h, o_row = place(H, N, ROWS)
    k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    if bias is not None:
        bias += i_b * bias_b + i_h * bias_h
    # [ROWS, D]
    p_q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    b_q, b_q_tail = load_rows(p_q, o_row, q_n, N, D, D0, D1, True, UPCAST)
    p_do = head(grad_out, i_b, i_h, do_b, do_h, ALIGNED)
    b_do, b_do_tail = load_rows(p_do, o_row, do_n, N, D, D0, D1, True, UPCAST)
    p_out = head(out, i_b, i_h, out_b, out_h, ALIGNED)
    b_out, b_out_tail = load_rows(p_out, o_row, out_n, N, D, D0, D1, True, UPCAST)
    b_delta = tl.sum(b_out.to(tl.float32) * b_do.to(tl.float32), 1)
    if D1 > 0:
        b_delta += tl.sum(b_out_tail.to(tl.float32) * b_do_tail.to(tl.float32), 1)
    i_vector = (i_b * H + i_h) * N
    tl.store(delta + i_vector + o_row, b_delta, o_row < N)
    # Queries beyond N get +inf: their probabilities are 2^-inf = 0.
    b_lse = tl.load(lse + i_vector + o_row, o_row < N, other=float("inf")) * LOG2E
    acc, acc_tail = zero_rows(ROWS, D0, D1)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        acc, acc_tail = dq_step(
            b_q, b_q_tail, b_do, b_do_tail, acc, acc_tail, b_lse, b_delta, k, v, bias, start,
            k_n, v_n, scale2, N, D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        acc, acc_tail = dq_step(
            b_q, b_q_tail, b_do, b_do_tail, acc, acc_tail, b_lse, b_delta, k, v, bias, full,
            k_n, v_n, scale2, N, D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    p_dq = head(dq, i_b, i_h, dq_b, dq_h, ALIGNED)
    store_rows(p_dq, acc * scale, acc_tail * scale, o_row, dq_n, N, D, D0, D1)


@triton.jit
def dkv_step(
    b_k, b_k_tail, b_v, b_v_tail, b_bias, dk, dk_tail, dv, dv_tail, q, grad_out, lse, delta,
    start, q_n, do_n, scale2, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    COLUMNS: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One block of queries: what it adds to dK / scale and dV; blocks are [keys, queries]."""
    o_query = (start + tl.arange(0, COLUMNS)).to(tl.int64)
    # [COLUMNS, D]
    b_q, b_q_tail = load_rows(q, o_query, q_n, N, D, D0, D1, MASKED, UPCAST)
    b_do, b_do_tail = load_rows(grad_out, o_query, do_n, N, D, D0, D1, MASKED, UPCAST)
    if MASKED:
        b_lse = tl.load(lse + o_query, o_query < N, other=float("inf")) * LOG2E
        b_delta = tl.load(delta + o_query, o_query < N, other=0.0)
    else:
        b_lse = tl.load(lse + o_query) * LOG2E
        b_delta = tl.load(delta + o_query)
    # [ROWS, COLUMNS]
    b_s = product(b_k, b_k_tail, b_q, b_q_tail, D1) * scale2 + b_bias[:, None]
    b_p = tl.math.exp2(b_s - b_lse[None, :])
    dv, dv_tail = accumulate(b_p, b_do, b_do_tail, dv, dv_tail, D1)
    b_dp = product(b_v, b_v_tail, b_do, b_do_tail, D1)
    b_ds = b_p * (b_dp - b_delta[None, :])
    dk, dk_tail = accumulate(b_ds, b_q, b_q_tail, dk, dk_tail, D1)
    return dk, dk_tail, dv, dv_tail


@triton.jit
def dkv_kernel(
    q, k, v, bias, grad_out, lse, delta, dk, dv,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, bias_b, bias_h,
    do_b, do_h, do_n, dk_b, dk_h, dk_n,
    scale, scale2, H, N,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RAGGED: tl.constexpr, UPCAST: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """dK and dV (both laid out by `dk_*`) of a block of keys."""
    i_b, i_h, o_row = place(H, N, ROWS)
    q = head(q, i_b, i_h, q_b, q_h, ALIGNED)
    grad_out = head(grad_out, i_b, i_h, do_b, do_h, ALIGNED)
    lse += (i_b * H + i_h) * N
    delta += (i_b * H + i_h) * N
    if bias is not None:
        bias += i_b * bias_b + i_h * bias_h
    # [ROWS, D]
    p_k = head(k, i_b, i_h, k_b, k_h, ALIGNED)
    b_k, b_k_tail = load_rows(p_k, o_row, k_n, N, D, D0, D1, True, UPCAST)
    p_v = head(v, i_b, i_h, v_b, v_h, ALIGNED)
    b_v, b_v_tail = load_rows(p_v, o_row, v_n, N, D, D0, D1, True, UPCAST)
    b_bias = load_bias(bias, o_row, N, True)
    b_dk, b_dk_tail = zero_rows(ROWS, D0, D1)
    b_dv, b_dv_tail = zero_rows(ROWS, D0, D1)
    full = N // COLUMNS * COLUMNS
    for start in range(0, full, COLUMNS):
        b_dk, b_dk_tail, b_dv, b_dv_tail = dkv_step(
            b_k, b_k_tail, b_v, b_v_tail, b_bias, b_dk, b_dk_tail, b_dv, b_dv_tail,
            q, grad_out, lse, delta, start, q_n, do_n, scale2, N,
            D, D0, D1, COLUMNS, False, UPCAST,
        )  # fmt: skip
    if RAGGED:
        b_dk, b_dk_tail, b_dv, b_dv_tail = dkv_step(
            b_k, b_k_tail, b_v, b_v_tail, b_bias, b_dk, b_dk_tail, b_dv, b_dv_tail,
            q, grad_out, lse, delta, full, q_n, do_n, scale2, N,
            D, D0, D1, COLUMNS, True, UPCAST,
        )  # fmt: skip
    p_dk = head(dk, i_b, i_h, dk_b, dk_h, ALIGNED)
    store_rows(p_dk, b_dk * scale, b_dk_tail * scale, o_row, dk_n, N, D, D0, D1)
    p_dv = head(dv, i_b, i_h, dk_b, dk_h, ALIGNED)
    store_rows(p_dv, b_dv, b_dv_tail, o_row, dk_n, N, D, D0, D1)
