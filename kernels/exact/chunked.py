"""The passes of exact MiRA attention in plain PyTorch, by blocks of queries.

Owns the path `sdpa`, on the CPU and wherever Triton is not, float64 included: passes that make the
attention map A anew, tile by tile, so that nothing of B·H·N·N elements exists, forward or backward.
The exception is `new_memo`: on the CPU a map that takes no more bytes than q, k, v and the output
together is kept. It knows no autograd and no frames: a frame's weight reaches it as one number a
key. `kernel.py` offers the same four functions.

With α the weight of a key, ε = floor, η = residual_mix, G = dOut · v and means over keys:

    Z = (1 − ε) Σ_k α A + ε      b = (1 − ε) η / Z      A* = A ((1 − η) + α b) + ε η / (Z N)
    out = A* V                   dV = A*ᵀ dOut          D' = ((1 − ε) Σ_k α A G + ε mean G) / Z
    dL/dα = Σ_q b A (G − D')     dA = (1 − η) G + α b (G − D') + g
    dS = A (dA − δ)              δ = Σ_k A dA = (1 − η) Σ_k A G + ε η / Z (D' − mean G) + Σ_k A g

Everything is computed in float32, or float64 for float64 inputs; bfloat16 products would be faster
on some processors, and round every score. A tile of A is a softmax of whole rows, whose exponential
is faster than `exp`; sums over rows and columns of a tile are products with a row vector, because a
batch of products with a column vector takes ten times as long.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.flashlite.layout import heads_last
from kernels.marginals import statistics_dtype

TILE = 1 << 20
"""Elements of a thread's tiles together, at most: they should lie in that core's cache."""
TILES = 1 << 22
"""Elements of all threads' tiles together: memory must not grow with the number of cores."""
KEPT = 4
"""A map is kept if it takes no more bytes than so many tensors like q: q, k, v and the output."""


def new_memo(q: Tensor) -> Tensor:
    """Memory for the map, [B, H, N, N]; empty where it is not kept.

    It is kept on the CPU for N up to 4 D, in 16 bits, because the map is float32, up to 2 D. Such a
    short sequence, as in masked pretraining, has a map no larger than what is saved anyway; to make
    it anew in every pass takes 1.3 times as long (8 x 12 x 160 x 64, float32).
    """
    batch, heads, n, dim = q.shape
    dtype = statistics_dtype(q.dtype)
    small = n * dtype.itemsize <= KEPT * dim * q.dtype.itemsize
    shape = (batch, heads, n, n) if small and q.device.type == "cpu" else (0,)
    return q.new_empty(shape, dtype=dtype)


def column_mass(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """How much attention each key receives.

    Args:
        q, k, v: [B, H, N, D], any strides.
        scale: factor on q·k.

    Returns:
        Two tensors for the passes that follow: with Triton plain attention and its log-sum-exp
        [B, H, N], here an empty one and `new_memo`, filled; and mass [B, N], the sum over queries
        of the head-averaged map. All but plain attention float32, or float64 for float64.
    """
    memo, queries, keys = new_memo(q), _flat(q, times=scale), _flat(k)
    mass = torch.zeros_like(queries[..., 0])
    kept = memo.flatten(0, 1) if memo.ndim == 4 else None
    for heads, rows, *tiles in _tiles(queries, count=int(kept is None), by_heads=kept is not None):
        tile = tiles[0] if kept is None else kept[heads]
        mass[heads] += _attended(queries[heads, rows], keys[heads], out=tile).sum(1)
    return q.new_empty(0), memo, mass.view(q.shape[:3]).mean(1)


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plain: Tensor,
    memo: Tensor,
    weight: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mix of plain and re-weighted attention.

    Args:
        q, k, v, scale: as in `column_mass`; plain, memo: its results.
        weight: α of every key, [B, N].
        floor, residual_mix: ε and η.

    Returns:
        out [B, H, N, D] in v's dtype; for the backward, O' with Triton, here an empty tensor; Z
        [B, H, N].
    """
    values, weight = _flat(v), _of_heads(weight, q)
    mean = values.mean(1, keepdim=True)
    found, norm = torch.empty_like(values), torch.empty_like(weight)
    for heads, rows, tile, second in _maps(memo, q, k, scale, spare=1):
        total = _over_keys(tile, weight[heads]).mul_(1 - floor).add_(floor)
        norm[heads, rows] = total
        reach = ((1 - floor) * residual_mix / total)[..., None]
        _mixed(tile, reach, weight[heads], 1 - residual_mix, out=second)
        torch.bmm(second, values[heads], out=found[heads, rows])
    found.addcmul_((floor * residual_mix / norm)[..., None], mean)
    return _like(found, v), v.new_empty(0), norm.view(q.shape[:3])


def values_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    reweighted: Tensor,
    memo: Tensor,
    norm: Tensor,
    weight: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients that need no gradient of the statistics.

    Args:
        grad: dL/d out [B, H, N, D]; the others as `mix` took and returned them.

    Returns:
        dV [B, H, N, D] in v's dtype; dL/dα of every key [B, N]; per query [B, H, N] D' and, without
        the part of the statistics, δ, both for `scores_backward`.
    """
    grads, values, weight = _flat(grad), _flat(v), _of_heads(weight, q)
    norm = norm.flatten(0, 1)
    share = residual_mix / norm
    mean = torch.bmm(grads, values.mean(1)[..., None])[..., 0]
    per_key, along, delta = (torch.zeros_like(weight) for _ in range(3))
    dv = torch.bmm(share[:, None], grads).mul_(floor / q.shape[2]).repeat(1, q.shape[2], 1)
    for heads, rows, tile, second in _maps(memo, q, k, scale, spare=1):
        reach = (1 - floor) * share[heads, rows]
        torch.bmm(grads[heads, rows], values[heads].mT, out=second).mul_(tile)
        weighed = _over_keys(second, weight[heads]).mul_(1 - floor)
        own = weighed.add_(mean[heads, rows], alpha=floor).div_(norm[heads, rows])
        along[heads, rows] = own
        delta[heads, rows] = second.sum(-1)
        per_key[heads] += _over_queries(second, reach) - _over_queries(tile, reach * own)
        _mixed(tile, reach[..., None], weight[heads], 1 - residual_mix, out=second)
        dv[heads].baddbmm_(second.mT, grads[heads, rows])
    delta = (1 - residual_mix) * delta + floor * share * (along - mean)
    shape = q.shape[:3]
    return _like(dv, v), per_key.view(shape).sum(1), along.view(shape), delta.view(shape)


def scores_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    memo: Tensor,
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
    """dQ and dK [B, H, N, D], in q's dtype.

    Args:
        along, delta: D' and δ of `values_backward`.
        mass_grad: dL/d mass [B, N], already divided by H.
    """
    queries, keys, grads, values = _flat(q, times=scale), _flat(k), _flat(grad), _flat(v)
    reach = (1 - floor) * residual_mix / norm.flatten(0, 1)
    weight, pull = _of_heads(weight, q), _of_heads(mass_grad, q)
    # dA − δ = ((1 − η) + b α) G − b α D' + g − δ: beside G only sums of a number a query times a
    # number a key, so products of matrices with two and three columns.
    ones = torch.ones_like(reach)
    left = torch.stack([-reach * along.flatten(0, 1), -delta.flatten(0, 1), ones], -1)
    right = torch.stack([weight, ones, pull], -1)
    dq, dk = torch.empty_like(grads), torch.empty_like(grads)
    flats = queries, keys
    for heads, rows, tile, second, third in _maps(memo, q, k, scale, spare=2, flats=flats):
        left[heads, rows, 1] -= _over_keys(tile, pull[heads])
        torch.bmm(grads[heads, rows], values[heads].mT, out=second)
        _factor(reach[heads, rows, None], weight[heads], 1 - residual_mix, out=third)
        second.mul_(third).baddbmm_(left[heads, rows], right[heads].mT).mul_(tile)
        torch.bmm(second, keys[heads], out=dq[heads, rows])
        added = 0.0 if rows.start == 0 else 1.0  # 0: whatever lay there
        dk[heads].baddbmm_(second.mT, queries[heads, rows], beta=added)
    return _like(dq, q, times=scale), _like(dk, q)


def _maps(
    memo: Tensor,
    q: Tensor,
    k: Tensor,
    scale: float,
    *,
    spare: int,
    flats: tuple[Tensor, Tensor] | None = None,
) -> Iterator[tuple]:
    """The map by blocks, kept or made anew: slices of heads and of queries, A, and `spare` tiles.

    `flats` are q and k as a block's product takes them, if the caller has them already.
    """
    if memo.ndim == 4:
        kept = memo.flatten(0, 1)
        for heads, rows, *tiles in _tiles(kept, count=spare, by_heads=True):
            yield heads, rows, kept[heads], *tiles
        return
    queries, keys = flats or (_flat(q, times=scale), _flat(k))
    for heads, rows, tile, *tiles in _tiles(queries, count=1 + spare):
        yield heads, rows, _attended(queries[heads, rows], keys[heads], out=tile), *tiles


def _attended(queries: Tensor, keys: Tensor, *, out: Tensor) -> Tensor:
    """A tile of the map, [heads, queries, N], contiguous."""
    torch.bmm(queries, keys.mT, out=out)
    return torch.softmax(out, -1, out=out)


def _tiles(like: Tensor, *, count: int, by_heads: bool = False) -> Iterator[tuple]:
    """Blocks of (head, query) pairs: slices of heads and of queries, `count` tiles to write to.

    A tile is [heads, queries, N]: as many heads as there are threads, since a batched product goes
    by one thread a head, and more where N is small, but never more than half of all pairs; with
    `by_heads` every block has all queries of its heads.
    """
    pairs, n = like.shape[:2]
    workers = torch.get_num_threads() if like.device.type == "cpu" else 16
    size = min(TILE * workers, TILES) // max(count, 1)
    if by_heads:
        group, rows = max(1, size // 4 // (n * n)), n
    else:
        size = min(size, pairs * n * n // 2)
        group = max(1, min(pairs, workers))
        rows = max(1, min(n, size // (group * n)))
        group = max(1, min(pairs, group * (size // (group * rows * n))))
    memory = [like.new_empty(min(group, pairs) * rows * n) for _ in range(count)]
    for head in range(0, pairs, group):
        for row in range(0, n, rows):
            shape = (min(group, pairs - head), min(rows, n - row), n)
            tiles = [flat[: shape[0] * shape[1] * n].view(shape) for flat in memory]
            yield slice(head, head + group), slice(row, row + rows), *tiles


def _mixed(tile: Tensor, reach: Tensor, weight: Tensor, kept: float, *, out: Tensor) -> None:
    """A ((1 − η) + b α), without the part that all keys share; reach [heads, queries, 1] is b."""
    _factor(reach, weight, kept, out=out)
    out.mul_(tile)


def _factor(reach: Tensor, weight: Tensor, kept: float, *, out: Tensor) -> None:
    """(1 − η) + b α."""
    torch.mul(reach, weight[:, None], out=out).add_(kept)


def _over_keys(tile: Tensor, factor: Tensor) -> Tensor:
    """Σ_k tile factor: [heads, queries, N], [heads, N] → [heads, queries]."""
    return torch.bmm(factor[:, None], tile.mT)[:, 0]


def _over_queries(tile: Tensor, factor: Tensor) -> Tensor:
    """Σ_q tile factor: [heads, queries, N], [heads, queries] → [heads, N]."""
    return torch.bmm(factor[:, None], tile)[:, 0]


def _flat(x: Tensor, *, times: float = 1.0) -> Tensor:
    """[B, H, N, D] → x · times [B·H, N, D], contiguous, in the dtype to compute in."""
    wide = x.to(statistics_dtype(x.dtype))
    made = torch.empty_like(wide, memory_format=torch.contiguous_format)
    return torch.mul(wide, times, out=made).flatten(0, 1)


def _of_heads(per_clip: Tensor, q: Tensor) -> Tensor:
    """[B, N] → [B·H, N]."""
    return per_clip[:, None].expand(q.shape[:3]).flatten(0, 1)


def _like(x: Tensor, example: Tensor, times: float = 1.0) -> Tensor:
    """x · times [B·H, N, D] → [B, H, N, D] in the example's dtype, laid out as [B, N, H, D]."""
    made = heads_last(example)
    return torch.mul(x.view(example.shape), times, out=made)
