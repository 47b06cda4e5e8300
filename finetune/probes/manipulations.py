"""What is done to a clip's time, to see whether a network uses it.

    as_is         nothing
    shuffled      the frames in a random order, another one for every clip
    reversed      the last frame first
    frozen        the middle frame in every place
    apex_removed  frames from half-way between onset and apex to half-way between apex and offset
                  become the nearest frame outside, in time; an apex that is a picture of its own
                  (the pair) becomes the onset, and flow becomes zero
    pair_removed  the pair's apex becomes the onset and flow zero; the frames stay

All but the last two leave pair and flow as they are. Owns which frame is shown in which place. It
knows no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.batch import ClipBatch

Array = NDArray[Any]
AS_IS = "as_is"


@dataclass(frozen=True)
class Altered:
    """A batch after a manipulation."""

    batch: ClipBatch
    possible: Tensor
    """bool [B]: the clip has what the manipulation needs: for apex_removed all three marks and, in
    every view, a frame outside."""
    changed: Tensor
    """bool [B]: other frames stand in some place."""


def names(*, frames: int, pair: bool) -> list[str]:
    """The manipulations that mean something to a network of so many frames, `AS_IS` first."""
    in_time = ["shuffled", "reversed", "frozen", "apex_removed"] if frames > 1 else []
    return [AS_IS, *in_time, *(["pair_removed"] if pair else [])]


def manipulated(name: str, batch: ClipBatch, *, frames: int, seed: int) -> Altered:
    """One manipulation of every clip; the batch itself stays.

    Args:
        batch: pixels [B · views, C, T (+ 2), h, w], uint8, with `extra` marks int64 [B, 3] and
            frames int64 [B · views, T].
        frames: T.
        seed: of the random orders, which depend on nothing else but the clip's key.
    """
    shown, possible = PLACES[name](batch, frames, seed)
    pixels, extra = batch.pixels.clone(), dict(batch.extra)
    index = torch.from_numpy(shown).to(pixels.device)[:, None, :, None, None]
    clip = batch.pixels[:, :, :frames]
    pixels[:, :, :frames] = clip.gather(2, index.expand_as(clip))
    if name in ("apex_removed", "pair_removed"):
        if pixels.shape[2] > frames:
            pixels[:, :, frames + 1] = pixels[:, :, frames]
        if "flow" in extra:
            extra["flow"] = torch.zeros_like(extra["flow"])
    moved = (shown != np.arange(frames)).any(1) | (pixels.shape[2] > frames and "removed" in name)
    changed = moved.reshape(-1, batch.views).any(1) & possible
    return Altered(
        replace(batch, pixels=pixels, extra=extra),
        torch.from_numpy(possible),
        torch.from_numpy(changed),
    )


def without_apex(frames: Array, marks: Array) -> tuple[Array, bool]:
    """Which place's frame is shown in each place.

    Args:
        frames: int64 [T], which frame of the video each is.
        marks: onset, apex, offset as such frames.

    Returns:
        places int64 [T], and whether there is a frame outside; the earlier of two as near.
    """
    onset, apex, offset = marks.tolist()
    inside = (frames >= (onset + apex) / 2) & (frames <= (apex + offset) / 2)
    if inside.all():
        return np.arange(len(frames)), False
    away = np.abs(frames[:, None] - frames[None]).astype(np.float64)
    away[:, inside] = np.inf
    return np.where(inside, away.argmin(1), np.arange(len(frames))), True


Placing = Callable[[ClipBatch, int, int], tuple[Array, Array]]
"""(batch, T, seed) → places int64 [B · views, T] and possible bool [B]."""


def _as_is(batch: ClipBatch, frames: int, seed: int) -> tuple[Array, Array]:
    return _everywhere(batch, np.arange(frames))


def _reversed(batch: ClipBatch, frames: int, seed: int) -> tuple[Array, Array]:
    return _everywhere(batch, np.arange(frames)[::-1])


def _frozen(batch: ClipBatch, frames: int, seed: int) -> tuple[Array, Array]:
    return _everywhere(batch, np.full(frames, frames // 2))


def _shuffled(batch: ClipBatch, frames: int, seed: int) -> tuple[Array, Array]:
    orders = [_order(key, frames, seed) for key in batch.keys]
    return np.repeat(orders, batch.views, axis=0), np.ones(len(batch), dtype=bool)


def _apex_removed(batch: ClipBatch, frames: int, seed: int) -> tuple[Array, Array]:
    marks = batch.extra["marks"].cpu().numpy()
    shown, possible = _everywhere(batch, np.arange(frames))
    for view, at in enumerate(batch.extra["frames"].cpu().numpy()):
        clip = view // batch.views
        if (marks[clip] < 0).any():
            possible[clip] = False
        else:
            shown[view], outside = without_apex(at, marks[clip])
            possible[clip] &= outside
    return shown, possible


PLACES: dict[str, Placing] = {
    AS_IS: _as_is,
    "shuffled": _shuffled,
    "reversed": _reversed,
    "frozen": _frozen,
    "apex_removed": _apex_removed,
    "pair_removed": _as_is,
}


def _everywhere(batch: ClipBatch, places: Array) -> tuple[Array, Array]:
    shown = np.tile(places, (len(batch) * batch.views, 1))
    return shown, np.ones(len(batch), dtype=bool)


def _order(key: str, frames: int, seed: int) -> Array:
    """A random order of the frames that is not their own."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    while True:
        order = rng.permutation(frames)
        if frames < 2 or (order != np.arange(frames)).any():
            return order
