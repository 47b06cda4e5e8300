"""Attention cores: parameter-free functions from q, k, v to the attended values, and their table.

Owns what the three ways of attending compute, on plain tensors [B, H, N, D], tokens in frame-major
order; the kernels are in `kernels/`. It knows no projections, no state and no layers; the moving
average of `batch_ema` reaches a core as a function. Adding a core means one function and one row of
`CORES` here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from kernels.backends import BackendName
from kernels.exact import MovingAverage, exact_attention_with_importance
from kernels.flashlite import flashlite_attention, key_energy
from kernels.marginals import (
    POOLS,
    MiraConstants,
    flashlite_alpha,
    flashlite_importance,
    frame_statistics,
    statistics_dtype,
)

AttentionName = Literal["sdpa", "mira_exact", "mira_flashlite"]
Attended = tuple[Tensor, Tensor | None]
"""(values [B, H, N, D], frame importance [B or 1, F] or None where the core has none)."""


@dataclass(frozen=True)
class How:
    """What a core needs beside q, k and v.

    Attributes:
        frames: F; divides N.
        statistics: `instance`, `batch`, or the moving average of `batch_ema` as a function.
        constants: see `MiraConstants`.
        scale: factor on q·k; None is D^-1/2.
        backend: see `kernels.backends.pick`; None is Triton on CUDA, SDPA elsewhere.
    """

    frames: int
    statistics: str | MovingAverage
    constants: MiraConstants
    scale: float | None
    backend: BackendName | None = None


def sdpa(q: Tensor, k: Tensor, v: Tensor, how: How) -> Attended:
    """PyTorch's plain scaled dot-product attention; only the scale plays a part."""
    return functional.scaled_dot_product_attention(q, k, v, scale=how.scale), None


def mira_exact(q: Tensor, k: Tensor, v: Tensor, how: How) -> Attended:
    """MiRA after the softmax, in O(N) memory; gradients flow through the statistics as well."""
    return exact_attention_with_importance(
        q,
        k,
        v,
        frames=how.frames,
        constants=how.constants,
        statistics=how.statistics,
        scale=how.scale,
        backend=how.backend,
    )


def mira_flashlite(q: Tensor, k: Tensor, v: Tensor, how: How) -> Attended:
    """MiRA before the softmax: plain attention with one detached bias a key, log α of its frame.

    Where all frames weigh the same by their constants, it is plain attention of the same backend.
    """
    with torch.no_grad():
        energy = key_energy(k, backend=how.backend)  # [B, N]
        found = frame_statistics(energy, how.frames, floor=1e-12)
        importance = flashlite_importance(*_pooled(*found, how.statistics), how.constants)
        alpha = flashlite_alpha(importance, how.constants)
        bias = alpha.log().repeat_interleave(k.shape[2] // how.frames, dim=1)
        bias = bias.expand(len(k), -1)  # statistics of a batch are [1, F]
    weighs = how.constants.alpha_min < how.constants.alpha_max
    out = flashlite_attention(
        q, k, v, bias if weighs else None, scale=how.scale, backend=how.backend
    )
    return out, importance


@dataclass(frozen=True)
class Core:
    """A way of attending.

    Attributes:
        attend: (q, k, v, how) → `Attended`.
        framewise: whether it reads the frame structure: then every frame needs as many tokens as
            the others, and the attention module keeps a moving average.
    """

    attend: Callable[[Tensor, Tensor, Tensor, How], Attended]
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
    backend: BackendName | None = None,
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
        backend: of the MiRA modes: `triton`, `sdpa`, `flash_attn` or `reference`; None is Triton on
            CUDA, SDPA elsewhere.

    Returns:
        [B, H, N, D] in v's dtype.

    Raises:
        ValueError: unknown mode or statistics, shapes that differ, or N not a multiple of `frames`.
        RuntimeError: the backend cannot run here.
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
    how = How(frames, statistics, constants or MiraConstants(), scale, backend)
    return chosen.attend(q, k, v, how)[0]


def attention_share(q: Tensor, k: Tensor, frames: int, scale: float) -> Tensor:
    """Share of plain attention that each frame receives, [B, F], sums to 1.

    Computed by blocks of queries, so that the whole map never exists.
    """
    mass = k.new_zeros(k.shape[0], k.shape[2], dtype=statistics_dtype(k.dtype))
    for block in q.split(256, dim=2):
        mass += (block * scale @ k.transpose(2, 3)).softmax(-1, dtype=mass.dtype).mean(1).sum(1)
    return mass.unflatten(1, (frames, -1)).sum(2) / k.shape[2]


def _pooled(
    confidence: Tensor, concentration: Tensor, statistics: str | MovingAverage
) -> tuple[Tensor, Tensor]:
    """The statistics to use, [B, F] or [1, F] each."""
    if isinstance(statistics, str):
        return POOLS[statistics](confidence, concentration)
    average = statistics(confidence.mean(0, keepdim=True)).to(confidence.dtype)
    return average, concentration.mean(0, keepdim=True)
