"""The passes of exact MiRA attention in plain PyTorch, by blocks of queries.

Owns the path `sdpa`, on the CPU and wherever Triton is not, float64 included: four passes that
recompute the attention map tile by tile, so that nothing of B·H·N·N elements ever exists, forward
or backward. It knows no autograd and no frames: a frame's weight reaches it as one number a key.
`kernel.py` offers the same four functions.

With A = exp(scale · q·k − lse), α the weight of a key, ε = floor and η = residual_mix:

    Z  = (1 − ε) Σ_k α A + ε              O' = ((1 − ε) Σ_k α A v + ε mean_k v) / Z
    b  = (1 − ε) η / Z                    out = (1 − η) Σ_k A v + η O'

Everything is computed in float32, or float64 for float64 inputs; bfloat16 products would be faster
on some processors, and round every score. What a tile needs added (−lse, log α) rides along as one
more channel of the matrix product that makes the tile, or is a product of two or three columns of
its own: both cost less than a pass over the tile. Where N is not much more than D, as in masked
pretraining, a pass over q, k or v costs almost as much as one over a tile: few of both, then.
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


def plain_with_mass(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Plain attention and how much of it each key receives.

    Args:
        q, k, v: [B, H, N, D], any strides.
        scale: factor on q·k.

    Returns:
        plain [B, H, N, D] in v's dtype; lse [B, H, N], natural logarithm; mass [B, N], the sum over
        queries of the head-averaged map. lse and mass are float32, or float64 for float64.
    """
    queries, keys, values = _flat(q, times=scale), _flat(k), _flat(v)
    plain, lse = torch.empty_like(values), queries.new_empty(*queries.shape[:2], 1)
    mass = torch.zeros_like(lse)
    for heads, rows, tile in _tiles(queries):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile)
        top = tile.amax(-1, keepdim=True)
        total = tile.sub_(top).exp_().sum(-1, keepdim=True)
        share = total.reciprocal()
        torch.mul(torch.bmm(tile, values[heads]), share, out=plain[heads, rows])
        mass[heads].baddbmm_(tile.mT, share)
        lse[heads, rows] = top.add_(total.log_())
    return _like(plain, v), lse.view(q.shape[:3]), mass.view(q.shape[:3]).mean(1)


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
    """The re-weighted attention and its mix with the plain one.

    Args:
        q, k, v, scale: as in `plain_with_mass`; plain, lse: its results.
        weight: α of every key, [B, N].
        floor, residual_mix: ε and η.

    Returns:
        out and O' [B, H, N, D] in v's dtype; Z [B, H, N] in lse's dtype.
    """
    queries = _flat(q, -lse.flatten(0, 1), 1.0, times=scale)
    keys, values = _flat(k, 1.0, _of_heads(weight.log(), q)), _flat(v)
    uniform = floor / (1 - floor) * values.mean(1, keepdim=True)
    found, norm = torch.empty_like(values), torch.empty_like(queries[..., :1])
    for heads, rows, tile in _tiles(queries):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile).exp_()
        total = tile.sum(-1, keepdim=True).mul_(1 - floor).add_(floor)
        norm[heads, rows] = total
        weighed = torch.bmm(tile, values[heads]).add_(uniform[heads])
        torch.mul(weighed, total.reciprocal_().mul_(1 - floor), out=found[heads, rows])
    reweighted = _like(found, v)
    # In this order it is η that multiplies: η = 1 drops the plain part exactly.
    wide = statistics_dtype(v.dtype)
    out = torch.lerp(plain.to(wide), reweighted.to(wide), residual_mix).to(v.dtype)
    return out, reweighted, norm.view(q.shape[:3])


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
    """The gradients that need no gradient of the statistics.

    Args:
        grad: dL/d out [B, H, N, D]; the others as `mix` took and returned them.

    Returns:
        dV [B, H, N, D] in v's dtype; dL/dα of every key [B, N]; per query [B, H, N] D' = dOut · O'
        and δ without the part of the statistics, both for `scores_backward`.
    """
    share = residual_mix / norm.flatten(0, 1)[..., None]  # η / Z
    reach = (1 - floor) * share
    grads, values = _flat(grad), _flat(v)
    along = _dots(grad, reweighted)
    mean = values.mean(1)[..., None]
    uniform = share[..., 0] * (torch.bmm(grads, mean)[..., 0] - along.flatten(0, 1))
    delta = _dots(grad, out) - residual_mix * along - floor * uniform.view(along.shape)

    queries, keys = _flat(q, -lse.flatten(0, 1), times=scale), _flat(k, 1.0)
    given = torch.cat([grads, reach * grads], -1)
    losing = reach * along.flatten(0, 1)[..., None]
    received, lost = torch.empty_like(given), torch.zeros_like(losing)
    for heads, rows, tile in _tiles(queries):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile).exp_()
        _add(received[heads], tile.mT, given[heads, rows], first=rows.start == 0)
        lost[heads].baddbmm_(tile.mT, losing[heads, rows])
    plain, weighted = received.split(v.shape[3], -1)
    per_key = ((values * weighted).sum(-1) - lost[..., 0]).view(q.shape[:3]).sum(1)
    dv = weighted.mul_(_of_heads(weight, q)[..., None]).add_(plain, alpha=1 - residual_mix)
    dv += floor / q.shape[2] * torch.bmm(share.mT, grads)
    return _like(dv, v), per_key, along, delta


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
    """dQ and dK [B, H, N, D], in q's dtype.

    Args:
        along, delta: D' and δ of `values_backward`.
        mass_grad: dL/d mass [B, N], already divided by H.
    """
    queries, keys = _flat(q, -lse.flatten(0, 1), times=scale), _flat(k, 1.0)
    grads, values, dim = _flat(grad), _flat(v), q.shape[3]
    reach = (1 - floor) * residual_mix / norm.flatten(0, 1)
    weight, pull = _of_heads(weight, q), _of_heads(mass_grad, q)
    ones = torch.ones_like(reach)
    # dA − δ = ((1 − η) + b α) G − b α D' + g / H − δ with G = dOut · v: beside G only sums of a
    # number a query times a number a key, so products of matrices with two and three columns.
    factor = torch.stack([reach, ones], -1), torch.stack([weight, (1 - residual_mix) * ones], -1)
    left = torch.stack([-reach * along.flatten(0, 1), -delta.flatten(0, 1), ones], -1)
    right = torch.stack([weight, ones, pull], -1)
    dq, dk = torch.empty_like(grads), torch.empty_like(grads)
    for heads, rows, tile, second, third in _tiles(queries, count=3):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile).exp_()
        left[heads, rows, 1:2] -= torch.bmm(tile, right[heads, :, 2:])
        torch.bmm(grads[heads, rows], values[heads].mT, out=second)
        second.mul_(torch.bmm(factor[0][heads, rows], factor[1][heads].mT, out=third))
        second.baddbmm_(left[heads, rows], right[heads].mT).mul_(tile)
        torch.bmm(second, keys[heads, :, :dim], out=dq[heads, rows])
        _add(dk[heads], second.mT, queries[heads, rows, :dim], first=rows.start == 0)
    return _like(dq, q, times=scale), _like(dk, q)


def _tiles(queries: Tensor, *, count: int = 1) -> Iterator[tuple]:
    """Blocks of (head, query) pairs: slices of heads and of queries, `count` tiles to write to.

    A tile is [heads, queries, N]: as many heads as there are threads, since a batched product goes
    by one thread a head, and more where N is small, but never more than half of all pairs.
    """
    pairs, n = queries.shape[:2]
    workers = torch.get_num_threads() if queries.device.type == "cpu" else 16
    size = min(min(TILE * workers, TILES) // count, pairs * n * n // 2)
    group = max(1, min(pairs, workers))
    rows = max(1, min(n, size // (group * n)))
    group = max(1, min(pairs, group * (size // (group * rows * n))))
    memory = [queries.new_empty(group * rows * n) for _ in range(count)]
    for head in range(0, pairs, group):
        for row in range(0, n, rows):
            shape = (min(group, pairs - head), min(rows, n - row), n)
            tiles = [flat[: shape[0] * shape[1] * n].view(shape) for flat in memory]
            yield slice(head, head + group), slice(row, row + rows), *tiles


def _flat(x: Tensor, *channels: Tensor | float, times: float = 1.0) -> Tensor:
    """[B, H, N, D] → [B·H, N, D and more] in the dtype to compute in: x · times, then channels.

    A channel is [B·H, N], or a constant.
    """
    batch, heads, n, dim = x.shape
    wide = x.to(statistics_dtype(x.dtype))
    made = wide.new_empty(batch, heads, n, dim + len(channels))
    torch.mul(wide, times, out=made[..., :dim])
    made = made.flatten(0, 1)
    for index, channel in enumerate(channels, dim):
        made[..., index] = channel
    return made


def _add(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total += left right; the first time it is set, whatever lay there."""
    total.baddbmm_(left, right, beta=0.0 if first else 1.0)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """Σ_d a b, [B, H, N, D] twice → [B, H, N], in the dtype to compute in."""
    wide = statistics_dtype(a.dtype)
    return (a.to(wide) * b.to(wide)).sum(-1)


def _of_heads(per_clip: Tensor, q: Tensor) -> Tensor:
    """[B, N] → [B·H, N]."""
    return per_clip[:, None].expand(q.shape[:3]).flatten(0, 1)


def _like(x: Tensor, example: Tensor, times: float = 1.0) -> Tensor:
    """x · times [B·H, N, D] → [B, H, N, D] in the example's dtype, laid out as [B, N, H, D]."""
    made = heads_last(example)
    return torch.mul(x.view(example.shape), times, out=made)
