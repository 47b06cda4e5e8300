"""Attention cores: parameter-free functions from q, k, v to the attended values, and their table.

Owns what the three ways of attending compute, on plain tensors [B, H, N, D], tokens in frame-major
order. It knows no projections, no state and no layers; the moving average of `batch_ema` reaches a
core as the `pool` it is given. Adding a core means one function and one row of `CORES` here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kernels.marginals import (
    POOLS,
    MiraConstants,
    Pool,
    exact_alpha,
    exact_importance,
    flashlite_alpha,
    flashlite_importance,
    frame_statistics,
    statistics_dtype,
)

AttentionName = Literal["sdpa", "mira_exact", "mira_flashlite"]
Attended = tuple[Tensor, Tensor | None]
"""(values [B, H, N, D], frame importance [B or 1, F] or None where the core has none)."""


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, frames: int, pool: Pool, constants: MiraConstants, scale: float
) -> Attended:
    """Plain scaled dot-product attention; frames, pool and constants play no part."""
    return functional.scaled_dot_product_attention(q, k, v, scale=scale), None


def mira_exact(
    q: Tensor, k: Tensor, v: Tensor, frames: int, pool: Pool, constants: MiraConstants, scale: float
) -> Attended:
    """MiRA after the softmax, literally as published: it holds the B x H x N x N map.

    Gradients flow through the statistics as well.
    """
    dtype = statistics_dtype(q.dtype)
    n = k.shape[2]
    attention = (q * scale @ k.transpose(2, 3)).softmax(-1, dtype=dtype)  # [B, H, N, N]
    mass = attention.mean(1).sum(1)  # [B, N]
    own, concentration = frame_statistics(mass / n, frames, floor=1e-6)
    importance = exact_importance(*pool(own, concentration), constants)
    # Pooling decides how important a frame is; what it is compared with stays the clip's own.
    alpha = exact_alpha(importance, own, constants)  # [B, F]
    weighted = attention * _per_key(alpha, n)
    reweighted = (1 - constants.floor) * weighted + constants.floor / n
    reweighted = reweighted / reweighted.sum(-1, keepdim=True)
    mixed = torch.lerp(attention, reweighted, constants.residual_mix)
    return mixed.to(v.dtype) @ v, importance


def mira_flashlite(
    q: Tensor, k: Tensor, v: Tensor, frames: int, pool: Pool, constants: MiraConstants, scale: float
) -> Attended:
    """MiRA before the softmax: plain attention with one detached bias a key, log α of its frame.

    The bias is [B, 1, 1, N] in q's dtype and never expanded: the fused kernels take it in that
    form, and a float32 bias beside bfloat16 queries is misread by some of them.
    """
    with torch.no_grad():
        energy = key_energy(k)  # [B, N]
        confidence, concentration = pool(*frame_statistics(energy, frames, floor=1e-12))
        importance = flashlite_importance(confidence, concentration, constants)
        alpha = flashlite_alpha(importance, constants)
        bias = _per_key(alpha.log(), k.shape[2]).to(q.dtype)
        bias = bias.expand(q.shape[0], 1, 1, -1)  # statistics of a batch are [1, F]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out, importance


@dataclass(frozen=True)
class Core:
    """A way of attending.

    Attributes:
        attend: (q, k, v, frames, pool, constants, scale) → `Attended`.
        framewise: whether it reads the frame structure: then every frame needs as many tokens as
            the others, and the attention module keeps a moving average.
    """

    attend: Callable[[Tensor, Tensor, Tensor, int, Pool, MiraConstants, float], Attended]
    framewise: bool


CORES: dict[str, Core] = {
    "sdpa": Core(sdpa, framewise=False),
    "mira_exact": Core(mira_exact, framewise=True),
    "mira_flashlite": Core(mira_flashlite, framewise=True),
}


def core(name: str) -> Core:
    """The core called `name`; ValueError lists what there is."""
    if name not in CORES:
        raise ValueError(f"attention {name!r} does not exist; choose one of {', '.join(CORES)}")
    return CORES[name]


Mode = Literal["exact", "flashlite", "sdpa"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    mode: Mode = "exact",
    statistics: Literal["instance", "batch"] = "instance",
    constants: MiraConstants | None = None,
    scale: float | None = None,
) -> Tensor:
    """MiRA attention (arXiv 2606.30611) without parameters.

    Args:
        q, k, v: [B, H, N, D], any floating dtype, tokens in frame-major order, N = frames · P.
        frames: F, the number of frames after tubelets.
        mode: `exact` re-weights the attention map, `flashlite` adds a bias to a fused kernel,
            `sdpa` is plain attention.
        statistics: whether a clip uses its own frame statistics or the batch's mean.
        constants: see `MiraConstants`; None is the published set.
        scale: factor on q·k; None is D^-1/2.

    Returns:
        [B, H, N, D] in v's dtype.

    Raises:
        ValueError: unknown mode or statistics, shapes that differ, or N not a multiple of `frames`.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode {mode!r} does not exist; choose one of {', '.join(get_args(Mode))}")
    if statistics not in POOLS:
        raise ValueError(
            f"statistics {statistics!r} does not exist here; choose one of {', '.join(POOLS)} "
            "(batch_ema needs state: use mira.encoder.Attention)"
        )
    if q.ndim != 4 or not q.shape == k.shape == v.shape:
        raise ValueError(
            "q, k and v must share one shape [B, H, N, D], not "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if frames < 1 or q.shape[2] % frames:
        raise ValueError(
            f"{q.shape[2]} tokens do not divide into {frames} frames; every frame needs as many"
        )
    chosen = core(mode if mode == "sdpa" else f"mira_{mode}")
    factor = q.shape[3] ** -0.5 if scale is None else scale
    used = constants or MiraConstants()
    return chosen.attend(q, k, v, frames, POOLS[statistics], used, factor)[0]


def key_energy(k: Tensor) -> Tensor:
    """Mean square of every key over heads and head dims: k [B, H, N, D] → [B, N], float32 or 64."""
    return k.to(statistics_dtype(k.dtype)).square().mean((1, 3))


def attention_share(q: Tensor, k: Tensor, frames: int, scale: float) -> Tensor:
    """Share of plain attention that each frame receives, [B, F], sums to 1.

    Computed by blocks of queries, so that the whole map never exists.
    """
    mass = k.new_zeros(k.shape[0], k.shape[2], dtype=statistics_dtype(k.dtype))
    for block in q.split(256, dim=2):
        mass += (block * scale @ k.transpose(2, 3)).softmax(-1, dtype=mass.dtype).mean(1).sum(1)
    return mass.unflatten(1, (frames, -1)).sum(2) / k.shape[2]


def _per_key(per_frame: Tensor, n: int) -> Tensor:
    """[B, F] → [B, 1, 1, N]: the value of each key's frame."""
    return per_frame.repeat_interleave(n // per_frame.shape[1], dim=1)[:, None, None]
