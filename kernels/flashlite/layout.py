"""The layout of what attention reads and returns; apart from the kernels: known without Triton."""

from torch import Tensor


def heads_last(q: Tensor) -> Tensor:
    """Uninitialised [B, H, N, D] that lies in memory as [B, N, H, D]: merging heads is free."""
    b, h, n, d = q.shape
    return q.new_empty(b, n, h, d).transpose(1, 2)


def rows_of(x: Tensor) -> Tensor:
    """`x` with a contiguous last axis, copied only where it has none."""
    return x if x.stride(-1) == 1 else x.contiguous()
