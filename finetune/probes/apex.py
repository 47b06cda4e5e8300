"""Whether a network looks where the expression is: frame importance against annotated marks.

Owns the measures, from importance [.., F] and marks to numbers a clip, and how importance is read
off a network's layers. Two readings of every framed attention layer: MiRA's frame-marginal
importance (arXiv 2606.30611), and the share of plain attention that each frame receives, the column
sums of the softmax map of the same queries and keys. It knows no files and no figures over clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mira.blocks import Attention
from mira.cores import attention_share

Array = NDArray[Any]


class Layer(NamedTuple):
    """One framed attention layer of a network."""

    name: str
    attention: Attention


def framed(network: nn.Module) -> list[Layer]:
    """Attention layers over the tokens of several frames, in the order of the forward pass."""
    found = network.named_modules()
    return [Layer(n, m) for n, m in found if isinstance(m, Attention) and m.frames > 1]


@contextmanager
def received(layers: list[Layer]) -> Iterator[list[Tensor]]:
    """While open, every forward pass appends each layer's shares of plain attention [B, F]."""
    found: list[Tensor] = []

    def look(attention: Attention, inputs: tuple[Tensor, ...]) -> None:
        q, k, _ = attention.project(inputs[0])
        rest = q.shape[2] % attention.frames  # a class token comes first and is of no frame
        share = attention_share(q[:, :, rest:], k[:, :, rest:], attention.frames, attention.scale)
        found.append(share.detach().float())

    hooks = [layer.attention.register_forward_pre_hook(look) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Readings(NamedTuple):
    """Of one batch, float32 on the CPU; L layers as `framed` lists them."""

    importance: Tensor
    """[B · views, M, F], of the M layers whose core is MiRA's."""
    received: Tensor
    """[B · views, L, F]"""


def read(network: Any, x: Tensor, layers: list[Layer], **inputs: Tensor) -> tuple[Tensor, Readings]:
    """Features [B · views, E] and what the layers looked at on the way."""
    weights: list[Tensor] = []
    with received(layers) as shares:
        features = network.features(x, importance=weights, **inputs)
    framewise = any(layer.attention.core.framewise for layer in layers)
    # A plain network reports the attention that its last layer's frames receive: no importance.
    own = torch.stack(weights, 1) if framewise else torch.stack(shares, 1)[:, :0]
    return features, Readings(own.float().cpu(), torch.stack(shares, 1).cpu())


class Looked(NamedTuple):
    """Where one clip's importance lies, the mean over its views; [L] a number a layer."""

    inside: Array
    """Share of the importance on frames from onset to offset."""
    hit: Array
    """Whether the most important tubelet holds the apex, shared among equals; nan where no view
    reaches it."""


def looked(importance: Array, frames: Array, marks: Array) -> Looked:
    """One clip's importance against its marks.

    Args:
        importance: [views, L, F], sums to 1 over F.
        frames: int64 [views, T], T a multiple of F: which frame of the video each is.
        marks: onset, apex, offset as such frames.
    """
    tubelets = importance.shape[2]
    share = within(frames, marks).reshape(len(frames), tubelets, -1).mean(2)  # [views, F]
    holds = apex_tubelets(frames, int(marks[1]), tubelets)
    hits = [won(importance[v], at) for v, at in enumerate(holds) if at is not None]
    return Looked(
        np.einsum("vlf,vf->l", importance, share) / len(frames),
        np.mean(hits, axis=0) if hits else np.full(importance.shape[1], np.nan),
    )


def within(frames: Array, marks: Array) -> Array:
    """bool [views, T]: frames from onset to offset."""
    return (frames >= marks[0]) & (frames <= marks[2])


def won(importance: Array, tubelet: int) -> Array:
    """[L, F] to [L]: 1 where this tubelet has the most, 1/n where it is one of n that do."""
    best = importance == importance.max(1, keepdims=True)
    return best[:, tubelet] / best.sum(1)


def apex_tubelets(frames: Array, apex: int, tubelets: int) -> list[int | None]:
    """The tubelet [0, F) that holds the apex in every view, frames [views, T]; None where the view
    does not reach it."""
    places = [apex_place(at, apex) for at in frames]
    size = frames.shape[1] // tubelets
    return [None if place is None else place // size for place in places]


def apex_place(frames: Array, apex: int) -> int | None:
    """The place [0, T) whose frame is nearest to the apex, the earlier of two; None where the apex
    lies outside the frames by more than half their distance."""
    reach = (frames[-1] - frames[0]) / max(len(frames) - 1, 1) / 2
    if not frames[0] - reach <= apex <= frames[-1] + reach:
        return None
    return int(np.abs(frames - apex).argmin())
