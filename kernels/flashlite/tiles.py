"""What the attention kernels share: how a tile is read, multiplied and written.

Owns the device functions for tiles [rows, D], the cut of the head dim, and the launch's common
part. It knows no softmax and no particular kernel. Imported only where Triton exists.

One program owns a block of rows (queries in the forward and dQ, keys in dK/dV) of one head and
loops over blocks of columns, so every output has one writer: no atomics, the same bits on every
run. The head dim is cut into `D0` main and `D1` tail columns, both powers of two (80 = 64 + 16),
because a tile's sides must be powers of two and padding 80 to 128 would waste 3/8 of the work.

Conventions inside kernels: `i_` the index of a program, `o_` offsets, `p_` pointers, `b_` blocks in
registers; the shape of a block stands above its load. Strides are named tensor_axis: `q_b`, `q_h`,
`q_n`; the last axis is contiguous. Offsets that a stride multiplies are 64-bit.
"""

# Triton's types describe calls from Python, not from a kernel, where constants are plain literals.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.flashlite.sizes import Tiles

LOG2E: tl.constexpr = tl.constexpr(math.log2(math.e))
LN2: tl.constexpr = tl.constexpr(math.log(2))
MAX_HEAD_DIM = 256


def cut(head_dim: int) -> tuple[int, int]:
    """Main and tail columns that cover a head dim, powers of two of at least 16; the tail may be 0.

    80 → (64, 16), 88 → (64, 32); 112 → (128, 0), where a tail would save nothing.
    """
    padded = max(16, triton.next_power_of_2(head_dim))
    main = padded // 2
    tail = max(16, triton.next_power_of_2(head_dim - main))
    return (main, tail) if main >= 16 and main + tail < padded else (padded, 0)


def strides(*tensors: Tensor) -> list[int]:
    """Strides of batch, head and token of each."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def options(tiles: Tiles, q: Tensor, *others: Tensor) -> dict:
    """Compile-time arguments of a kernel over q and `others`, all [B, H, N, D] of one dtype."""
    d0, d1 = cut(q.shape[3])
    offsets = [stride for x in (q, *others) for stride in x.stride()[:2]]
    return {
        "D": q.shape[3],
        "D0": d0,
        "D1": d1,
        "ROWS": tiles.rows,
        "UPCAST": interpreted and q.dtype == torch.bfloat16,
        "ALIGNED": all(offset % 8 == 0 for offset in offsets),
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
        "enable_fp_fusion": True,
    }


def programs(rows: int, tiles: Tiles, *copies: int) -> tuple[int]:
    """The grid: a program for every block of rows of every copy; one axis, which has no limit."""
    return (triton.cdiv(rows, tiles.rows) * math.prod(copies),)


@triton.jit
def place(H, N, ROWS: tl.constexpr):
    """This program's batch entry, head (64-bit) and row offsets [ROWS] (64-bit)."""
    blocks = (N + ROWS - 1) // ROWS
    i_row = tl.program_id(0) % blocks
    i_head = (tl.program_id(0) // blocks).to(tl.int64)
    o_row = i_row.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return i_head // H, i_head % H, o_row


@triton.jit
def head(p, i_b, i_h, p_b, p_h, ALIGNED: tl.constexpr):
    """Where a head's rows begin; if ALIGNED, at a multiple of 8 elements.

    Triton knows of a stride whether 16 divides it. Of 88, the distance between heads of that head
    dim, it knows nothing, and would read one element at a time.
    """
    offset = i_b * p_b + i_h * p_h
    if ALIGNED:
        offset = tl.multiple_of(offset, 8)
    return p + offset


@triton.jit
def load_columns(
    p, o_row, stride, N, D: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr,
    MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """[rows, WIDTH]: columns FIRST … FIRST + WIDTH, zero beyond D and, if MASKED, beyond row N."""
    o_col = FIRST + tl.arange(0, WIDTH)
    p_block = p + o_row[:, None] * stride + o_col[None, :]
    if MASKED:
        if FIRST + WIDTH > D:
            block = tl.load(p_block, (o_row < N)[:, None] & (o_col < D)[None, :], other=0.0)
        else:
            block = tl.load(p_block, (o_row < N)[:, None], other=0.0)
    elif FIRST + WIDTH > D:
        block = tl.load(p_block, (o_col < D)[None, :], other=0.0)
    else:
        block = tl.load(p_block)
    if UPCAST:
        block = block.to(tl.float32)
    return block


@triton.jit
def load_rows(
    p, o_row, stride, N, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Main [rows, D0] and tail [rows, D1] of rows; without a tail (D1 = 0) the main twice."""
    main = load_columns(p, o_row, stride, N, D, 0, D0, MASKED, UPCAST)
    tail = main
    if D1 > 0:
        tail = load_columns(p, o_row, stride, N, D, D0, D1, MASKED, UPCAST)
    return main, tail


@triton.jit
def store_rows(
    p, main, tail, o_row, stride, N, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr
):
    """Writes what `load_rows` reads, rounded to the tensor's dtype."""
    o_col = tl.arange(0, D0)
    p_block = p + o_row[:, None] * stride + o_col[None, :]
    tl.store(p_block, main.to(p.dtype.element_ty), (o_row < N)[:, None] & (o_col < D)[None, :])
    if D1 > 0:
        o_col = D0 + tl.arange(0, D1)
        p_block = p + o_row[:, None] * stride + o_col[None, :]
        tl.store(p_block, tail.to(p.dtype.element_ty), (o_row < N)[:, None] & (o_col < D)[None, :])


@triton.jit
def zero_rows(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """float32 accumulators for main and tail columns."""
    tail_width: tl.constexpr = D1 if D1 > 0 else 16
    return tl.full([ROWS, D0], 0.0, tl.float32), tl.full([ROWS, tail_width], 0.0, tl.float32)


@triton.jit
def product(a, a_tail, b, b_tail, D1: tl.constexpr):
    """a bᵀ [rows of a, rows of b], float32, over main and tail columns."""
    out = tl.dot(a, tl.trans(b), input_precision="ieee")
    if D1 > 0:
        out = tl.dot(a_tail, tl.trans(b_tail), out, input_precision="ieee")
    return out


@triton.jit
def accumulate(weights, b, b_tail, acc, acc_tail, D1: tl.constexpr):
    """acc + weights b, weights rounded to b's dtype for the matrix units."""
    weights = weights.to(b.dtype)
    acc = tl.dot(weights, b, acc, input_precision="ieee")
    if D1 > 0:
        acc_tail = tl.dot(weights, b_tail, acc_tail, input_precision="ieee")
    return acc, acc_tail


@triton.jit
def load_bias(bias, o_key, N, MASKED: tl.constexpr):
    """[keys] bias in base 2; -inf beyond key N, which takes those keys out of the softmax."""
    if bias is None:
        b_bias = tl.full([o_key.shape[0]], 0.0, tl.float32)
        if MASKED:
            b_bias = tl.where(o_key < N, b_bias, float("-inf"))
    elif MASKED:
        b_bias = tl.load(bias + o_key, o_key < N, other=float("-inf")) * LOG2E
    else:
        b_bias = tl.load(bias + o_key) * LOG2E
    return b_bias


interpreted: bool = not isinstance(place, triton.JITFunction)
"""Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1 at import)."""
