"""The passes of exact MiRA attention in plain PyTorch, by blocks of queries.

Owns the path `sdpa`, on the CPU and wherever Triton is not, float64 included: four passes that
recompute the attention map tile by tile, so that nothing of B·H·N·N elements ever exists, forward
or backward. It knows no autograd and no frames: a frame's weight reaches it as one number a key.
`kernel.py` offers the same four functions.

With A = exp(scale · q·k − lse), α the weight of a key, ε = floor and η = residual_mix:

    Z  = (1 − ε) Σ_k α A + ε              O' = ((1 − ε) Σ_k α A v + ε mean_k v) / Z
    b  = (1 − ε) η / Z                    out = (1 − η) Σ_k A v + η O'

Everything is computed in float32, or float64 for float64 inputs. A row vector that a tile needs
added (−lse, log α, −δ …) rides along as one more channel of the matrix product that makes the tile:
a pass over a tile costs as much as 16 channels.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.marginals import statistics_dtype

TILE = 1 << 20
"""Elements of a tile for each thread, at most: it should lie in that core's cache."""
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
    queries, keys, values = _flat(q) * scale, _flat(k), _flat(v)
    values = _extended(values, 1.0)
    plain = torch.empty_like(values)
    top = torch.empty_like(values[..., :1])
    mass = torch.zeros_like(values[..., :1])
    for heads, rows, tile in _tiles(queries):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile)
        top[heads, rows] = tile.amax(-1, keepdim=True)
        tile.sub_(top[heads, rows]).exp_()
        found = torch.bmm(tile, values[heads])
        plain[heads, rows] = found
        mass[heads].baddbmm_(tile.mT, found[..., -1:].reciprocal())
    total = plain[..., -1:]
    lse = (top + total.log()).view(q.shape[:3])
    return _like(plain[..., :-1] / total, v), lse, mass.view(q.shape[:3]).mean(1)


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
    queries = _extended(_flat(q) * scale, -lse.flatten(0, 1), 1.0)
    keys = _extended(_flat(k), 1.0, _of_heads(weight.log(), q))
    values = _extended(_flat(v), 1.0)
    found = torch.empty_like(values)
    for heads, rows, tile in _tiles(queries):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile).exp_()
        found[heads, rows] = torch.bmm(tile, values[heads])
    found *= 1 - floor
    found += floor * values.mean(1, keepdim=True)  # of the channel of ones: ε
    norm = found[..., -1:]
    reweighted = _like(found[..., :-1] / norm, v)
    # In this order it is η that multiplies: η = 1 drops the plain part exactly.
    wide = statistics_dtype(v.dtype)
    out = torch.lerp(plain.to(wide), reweighted.to(wide), residual_mix)
    return _like(out.flatten(0, 1), v), reweighted, norm[..., 0].contiguous().view(q.shape[:3])


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
    grads, values = _flat(grad), _flat(v)
    share = residual_mix / norm.flatten(0, 1)[..., None]  # η / Z
    along = (grads * _flat(reweighted)).sum(-1, keepdim=True)
    mean = values.mean(1, keepdim=True)
    uniform = floor * share * ((grads * mean).sum(-1, keepdim=True) - along)
    delta = (grads * _flat(out)).sum(-1, keepdim=True) - residual_mix * along - uniform

    reach = (1 - floor) * share
    queries = _extended(_flat(q) * scale, -lse.flatten(0, 1))
    keys = _extended(_flat(k), 1.0)
    given = torch.cat([grads, reach * grads, reach * along], -1)
    received = torch.zeros_like(given)
    for heads, rows, tile in _tiles(queries):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile).exp_()
        received[heads].baddbmm_(tile.mT, given[heads, rows])
    plain, weighted, lost = received.split([v.shape[3], v.shape[3], 1], -1)
    per_key = ((values * weighted).sum(-1) - lost[..., 0]).view(q.shape[:3]).sum(1)
    dv = (1 - residual_mix) * plain + _of_heads(weight, q)[..., None] * weighted
    dv += floor / q.shape[2] * (share * grads).sum(1, keepdim=True)
    return _like(dv, v), per_key, along.view(q.shape[:3]), delta.view(q.shape[:3])


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
    raw_q, raw_k, grads, values = _flat(q), _flat(k), _flat(grad), _flat(v)
    queries, keys = _extended(raw_q * scale, -lse.flatten(0, 1)), _extended(raw_k, 1.0)
    reach = (1 - floor) * residual_mix / norm.flatten(0, 1)[..., None]
    along, rest = along.flatten(0, 1)[..., None], -delta.flatten(0, 1)[..., None]
    weight, pull = _of_heads(weight, q)[..., None], _of_heads(mass_grad, q)[..., None]
    # dA − δ = (1 − η) G + b α (G − D') + g / H − δ, G = dOut · v, as one matrix product.
    left = torch.cat([(1 - residual_mix) * grads, reach * grads, -reach * along], -1)
    left = _extended(torch.cat([left, rest], -1), 1.0)
    right = torch.cat([values, weight * values, weight, torch.ones_like(weight), pull], -1)
    dq, dk = torch.empty_like(raw_q), torch.zeros_like(raw_k)
    for heads, rows, tile, second in _tiles(queries, count=2):
        torch.bmm(queries[heads, rows], keys[heads].mT, out=tile).exp_()
        left[heads, rows, -2:-1] -= torch.bmm(tile, pull[heads])
        torch.bmm(left[heads, rows], right[heads].mT, out=second).mul_(tile)
        dq[heads, rows] = torch.bmm(second, raw_k[heads])
        dk[heads].baddbmm_(second.mT, raw_q[heads, rows])
    return _like(dq * scale, q), _like(dk * scale, q)


def _tiles(queries: Tensor, *, count: int = 1) -> Iterator[tuple]:
    """Blocks of (head, query) pairs: slices of heads and of queries, `count` tiles to write to.

    A tile is [heads, queries, N]. It never holds all queries of a head, and as many heads as there
    are threads, since a batched product goes by one thread a head.
    """
    pairs, n = queries.shape[:2]
    workers = torch.get_num_threads() if queries.device.type == "cpu" else 16
    size = min(TILE, TILES // workers)
    rows = max(1, min((n + 1) // 2, size // n))
    group = max(1, min(pairs, workers * max(1, size // (rows * n))))
    memory = [queries.new_empty(group * rows * n) for _ in range(count)]
    for head in range(0, pairs, group):
        for row in range(0, n, rows):
            shape = (min(group, pairs - head), min(rows, n - row), n)
            tiles = [flat[: shape[0] * shape[1] * n].view(shape) for flat in memory]
            yield slice(head, head + group), slice(row, row + rows), *tiles


def _flat(x: Tensor) -> Tensor:
    """[B, H, N, D] → [B·H, N, D], contiguous, in the dtype to compute in."""
    return x.to(statistics_dtype(x.dtype)).flatten(0, 1).contiguous()


def _extended(x: Tensor, *channels: Tensor | float) -> Tensor:
    """x [B·H, N, D] with more channels: [B·H, N] each, or a constant."""
    more = [c if isinstance(c, Tensor) else x.new_full((1, 1), c) for c in channels]
    return torch.cat([x, *(c.expand(x.shape[:2])[..., None] for c in more)], -1)


def _of_heads(per_clip: Tensor, q: Tensor) -> Tensor:
    """[B, N] → [B·H, N]."""
    return per_clip[:, None].expand(q.shape[:3]).flatten(0, 1)


def _like(x: Tensor, example: Tensor) -> Tensor:
    """[B·H, N, D] → [B, H, N, D] in the example's dtype, laid out as [B, N, H, D]."""
    batch, heads, n, dim = example.shape
    made = torch.empty(batch, n, heads, dim, dtype=example.dtype, device=example.device)
    return made.transpose(1, 2).copy_(x.view(batch, heads, n, dim))
