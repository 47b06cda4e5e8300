"""The public operation: exact MiRA attention on whichever backend.

Owns validation, the registration of the passes as PyTorch operators (so that torch.compile,
autograd and checkpointing see through them), their order and the table of backends. The passes
themselves are `chunked.py` and `kernel.py`, two modules with the same four functions.

Forward: column mass, without autograd; frame weights in plain PyTorch, between
operators, where a moving average may do what it likes (reduce over ranks); one operator that mixes.
The gradient belongs to the last: it goes back through the weights to the mass, and so to q and k.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels.backends import Backend, BackendName, anywhere, pick
from kernels.exact import chunked
from kernels.exact.reference import exact_reference
from kernels.exact.weights import (
    MovingAverage,
    as_floats,
    frame_weights,
    mass_gradient,
    moving_average,
)
from kernels.flashlite import flashlite_attention
from kernels.flashlite.layout import heads_last
from kernels.flashlite.op import triton_unavailable
from kernels.inputs import check_heads, prepared
from kernels.marginals import POOLS, MiraConstants, statistics_dtype


def exact_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    constants: MiraConstants,
    statistics: str | MovingAverage,
    scale: float | None = None,
    backend: BackendName | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """MiRA's exact mode: attention whose map is re-weighted frame by frame after the softmax.

    Source: Yoon, Cho, Park, Brémond, "Reweighting Framewise Attention in Video Transformers for
    Facial Expression Understanding", ECCV 2026 (arXiv 2606.30611). No map of N × N is held, except
    by `reference` and, on the CPU, where it is no larger than q, k, v and the output together, by
    `sdpa` (`chunked.new_memo`). Gradients are those of the published form, through the statistics.

    Args:
        q, k, v: [B, H, N, D] of one dtype and device, any strides, tokens in frame-major order.
            Under autocast they are cast to its dtype first; statistics are float32 or better.
        frames: F; divides N.
        constants: see `MiraConstants`. With `residual_mix=0`, or with `floor=0` and
            `alpha_min == alpha_max`, the result is plain attention of the same backend.
        statistics: `instance`, each clip its own; `batch`, the batch's mean; or a moving average:
            a function from the batch mean of the confidence [1, F], detached, to the confidence
            to use [1, F], a constant (the concentration is then the batch's mean). It is called
            once every forward pass; one recomputed by checkpointing calls it again.
        scale: factor on q·k; None is D^-1/2.
        backend: None is Triton on CUDA and `sdpa`, plain PyTorch by blocks, elsewhere. There is no
            form on flash-attn: its backward takes no gradient of the log-sum-exp and no weight of a
            key, and both are needed.
        dropout_p: only 0 is possible; fused attention here drops nothing.

    Returns:
        [B, H, N, D] in v's dtype.

    Raises:
        ValueError: shapes, dtypes, devices or statistics that do not fit, dropout, or an unknown
            backend.
        RuntimeError: the backend cannot run here; says why and what to do.
    """
    if not _reweights(constants) and not callable(statistics):
        # A moving average moves whether or not it has an effect; without one nothing is lost.
        _check_frames(q, frames, statistics)
        return flashlite_attention(q, k, v, None, scale=scale, backend=backend, dropout_p=dropout_p)
    return exact_attention_with_importance(
        q,
        k,
        v,
        frames=frames,
        constants=constants,
        statistics=statistics,
        scale=scale,
        backend=backend,
        dropout_p=dropout_p,
    )[0]


def exact_attention_with_importance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    constants: MiraConstants,
    statistics: str | MovingAverage,
    scale: float | None = None,
    backend: BackendName | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`exact_attention`, and how important it found each frame.

    Returns:
        out [B, H, N, D] in v's dtype; π [B, F], or [1, F] unless statistics is `instance`, sums
        to 1, detached.
    """
    _check_frames(q, frames, statistics)
    q, k, v, factor = prepared(q, k, v, scale=scale, dropout_p=dropout_p)
    chosen = pick("exact_attention", BACKENDS, backend, q)
    if not _reweights(constants):
        passes = "triton" if chosen is BACKENDS["triton"] else "sdpa"
        importance = _importance(q, k, v, frames, constants, statistics, factor, passes)
        return flashlite_attention(q, k, v, None, scale=factor, backend=backend), importance
    arguments = {"frames": frames, "constants": constants, "statistics": statistics}
    out, importance = chosen.run(q, k, v, **arguments, scale=factor)
    return out, importance.detach()


@torch.library.custom_op("mira::exact_masses", mutates_args=())
def exact_column_mass(
    q: Tensor, k: Tensor, v: Tensor, scale: float, passes: str
) -> tuple[Tensor, Tensor, Tensor]:
    """What the other operators need, and the column mass; see `chunked.column_mass`.

    Inductor's cache on disk knows an operator by name: one whose outputs get other shapes needs
    another name, or what an older version compiled is taken for it and fails in the backward.
    """
    return _run(passes, "column_mass", q, k, v, scale)


@torch.library.custom_op("mira::exact_mix", mutates_args=())
def exact_mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plain: Tensor,
    memo: Tensor,
    alpha: Tensor,
    mass: Tensor,
    average: Tensor | None,
    pooled: bool,
    constants: list[float],
    scale: float,
    passes: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, O', Z) from the frames' weights α [B, F]; see `chunked.mix`.

    It differentiates by q, k and v in full, that is through α and memo too: mass, average and
    pooled are what α was made of. Nothing flows from O' and Z.
    """
    mixed = MiraConstants(*constants)
    return _run(
        passes, "mix", q, k, v, plain, memo, _per_key(alpha, q),
        floor=mixed.floor, residual_mix=mixed.residual_mix, scale=scale,
    )  # fmt: skip


@torch.library.custom_op("mira::exact_values_backward", mutates_args=())
def exact_values_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    reweighted: Tensor,
    memo: Tensor,
    norm: Tensor,
    weight: Tensor,
    floor: float,
    residual_mix: float,
    scale: float,
    passes: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dV, dL/dα of every key, D' and δ; see `chunked.values_backward`."""
    return _run(
        passes, "values_backward", grad, q, k, v, out, reweighted, memo, norm, weight,
        floor=floor, residual_mix=residual_mix, scale=scale,
    )  # fmt: skip


@torch.library.custom_op("mira::exact_scores_backward", mutates_args=())
def exact_scores_backward(
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
    floor: float,
    residual_mix: float,
    scale: float,
    passes: str,
) -> tuple[Tensor, Tensor]:
    """dQ and dK; see `chunked.scores_backward`."""
    return _run(
        passes, "scores_backward", grad, q, k, v, memo, norm, weight, along, delta, mass_grad,
        floor=floor, residual_mix=residual_mix, scale=scale,
    )  # fmt: skip


@exact_column_mass.register_fake
def _(q, k, v, scale, passes):
    mass = q.new_empty(q.shape[0], q.shape[2], dtype=statistics_dtype(q.dtype))
    if passes == "triton":
        return heads_last(q), _vector(q), mass
    return q.new_empty(0), chunked.new_memo(q), mass


@exact_mix.register_fake
def _(q, k, v, plain, memo, alpha, mass, average, pooled, constants, scale, passes):
    return heads_last(q), heads_last(q) if passes == "triton" else q.new_empty(0), _vector(q)


@exact_values_backward.register_fake
def _(grad, q, k, v, out, reweighted, memo, norm, weight, floor, residual_mix, scale, passes):
    return heads_last(q), torch.empty_like(weight), _vector(q), _vector(q)


@exact_scores_backward.register_fake
def _(
    grad, q, k, v, memo, norm, weight, along, delta, mass_grad, floor, residual_mix, scale, passes
):
    return heads_last(q), heads_last(q)


def _save(ctx, inputs, output) -> None:
    q, k, v, _, memo, alpha, mass, average, *rest = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(q, k, v, *output, memo, alpha, mass, average)
    ctx.rest = rest


def _backward(ctx, grad, *_):
    q, k, v, out, reweighted, norm, memo, alpha, mass, average = ctx.saved_tensors
    pooled, values, scale, passes = ctx.rest
    constants, frames = MiraConstants(*values), alpha.shape[1]
    weight = _per_key(alpha, q)
    common = (constants.floor, constants.residual_mix, scale, passes)
    dv, per_key, along, delta = exact_values_backward(
        grad, q, k, v, out, reweighted, memo, norm, weight, *common
    )
    alpha_grad = per_key.unflatten(1, (frames, -1)).sum(2)
    mass_grad = mass_gradient(alpha_grad, mass, average, frames, constants, pooled=pooled)
    mass_grad = mass_grad / q.shape[1]
    dq, dk = exact_scores_backward(
        grad, q, k, v, memo, norm, weight, along, delta, mass_grad, *common
    )
    return dq, dk, dv, *[None] * 9


exact_mix.register_autograd(_backward, setup_context=_save)


def _run_passes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    frames: int,
    constants: MiraConstants,
    statistics: str | MovingAverage,
    scale: float,
    passes: str,
) -> tuple[Tensor, Tensor]:
    pooled = statistics != "instance"
    with torch.no_grad():
        plain, memo, mass = exact_column_mass(q, k, v, scale, passes)
        average = moving_average(mass, frames, statistics)
        alpha, importance = frame_weights(mass, average, frames, constants, pooled=pooled)
    values = as_floats(constants)
    out, _, _ = exact_mix(q, k, v, plain, memo, alpha, mass, average, pooled, values, scale, passes)
    return out, importance


def _importance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    frames: int,
    constants: MiraConstants,
    statistics: str | MovingAverage,
    scale: float,
    passes: str,
) -> Tensor:
    """π alone, where nothing is re-weighted."""
    with torch.no_grad():
        _, _, mass = exact_column_mass(q, k, v, scale, passes)
        average = moving_average(mass, frames, statistics)
        pooled = statistics != "instance"
        return frame_weights(mass, average, frames, constants, pooled=pooled)[1]


def _reweights(constants: MiraConstants) -> bool:
    """Whether these constants do anything; a weight that all frames share cancels."""
    same = constants.floor == 0.0 and constants.alpha_min == constants.alpha_max
    return constants.residual_mix != 0.0 and not same


def _run(passes: str, name: str, *arguments: Any, **options: Any) -> Any:
    """One of the four passes; their inputs are cast already, so autocast must not cast again."""
    if passes == "triton":
        from kernels.exact import kernel as module
    else:
        module = chunked
    with torch.autocast(arguments[0].device.type, enabled=False):
        return getattr(module, name)(*arguments, **options)


def _vector(q: Tensor) -> Tensor:
    """A number a query and head, [B, H, N]."""
    return q.new_empty(q.shape[:3], dtype=statistics_dtype(q.dtype))


def _per_key(alpha: Tensor, q: Tensor) -> Tensor:
    """[B, F] → [B, N]: each key has its frame's."""
    return alpha.repeat_interleave(q.shape[2] // alpha.shape[1], dim=1)


def _flash_attn_unavailable(q: Tensor) -> str | None:
    return (
        "flash-attn cannot weight keys and drops the gradient of its log-sum-exp; choose "
        "backend='triton' on CUDA, 'sdpa' elsewhere"
    )


BACKENDS: dict[str, Backend] = {
    "triton": Backend(partial(_run_passes, passes="triton"), triton_unavailable),
    "sdpa": Backend(partial(_run_passes, passes="sdpa"), anywhere),
    "flash_attn": Backend(exact_reference, _flash_attn_unavailable),
    "reference": Backend(exact_reference, anywhere),
}


def _check_frames(q: Tensor, frames: int, statistics: str | MovingAverage) -> None:
    check_heads("q", q)
    n = q.shape[2]
    if frames < 1 or n < 1 or n % frames:
        raise ValueError(
            f"{n} tokens do not divide into {frames} frames; every frame needs as many, at least 1"
        )
    if not callable(statistics) and statistics not in POOLS:
        raise ValueError(
            f"statistics {statistics!r} does not exist here; choose one of {', '.join(POOLS)}, or "
            "give the moving average of batch_ema as a function"
        )
