"""The batch: the only thing that passes from shards to a task.

Owns its form and how clips are put together, failed and missing ones included. Refuses to know
where clips come from and what a task does with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info


@dataclass
class ClipBatch:
    """B clips, each in the same number of views; the views of a clip are neighbours in `pixels`."""

    pixels: Tensor
    """uint8 [B·views, C, T, h, w], RGB; with `data.pair` onset and apex follow, T + 2 in all."""
    labels: Tensor
    """int64 [B], -1 where unknown."""
    weights: Tensor
    """float32 [B]; 0 for a clip that could not be read and for padding, whose pixels are zero."""
    seeds: Tensor
    """int64 [B], always on the host: what is drawn at random for a clip derives from it, whatever
    the workers, and is drawn there."""
    keys: list[str]
    """The samples' keys, "" for padding."""
    views: int = 1
    extra: dict[str, Tensor] = field(default_factory=dict)
    """What `data.extra` asks for, by name: [B, …], of `shards.labelling.PER_VIEW` [B·views, …]."""

    def to(self, device: torch.device | str) -> ClipBatch:
        """The batch on a device; from pinned memory the copy does not block."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, seeds=self.seeds)

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory; the DataLoader calls this where a GPU is present."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __len__(self) -> int:
        return len(self.keys)

    def _map(self, move) -> ClipBatch:
        return replace(
            self,
            pixels=move(self.pixels),
            labels=move(self.labels),
            weights=move(self.weights),
            seeds=move(self.seeds),
            extra={name: move(tensor) for name, tensor in self.extra.items()},
        )


@dataclass(frozen=True)
class Clip:
    """One place of a batch, filled or not."""

    pixels: NDArray[np.uint8] | None
    """[views, T, h, w, C], RGB; None for padding and for a clip that could not be read."""
    label: int
    seed: int
    key: str
    extra: Mapping[str, NDArray] = field(default_factory=dict)
    """By name, each [1 or views, …]; all clips of a batch have the same ones."""


def collate(
    clips: Iterable[Clip],
    count: int,
    *,
    views: int,
    frames: int,
    size: int,
    places: Iterable[int] | None = None,
) -> ClipBatch:
    """Put clips together; one without pixels keeps its place: zeros, weight 0, label -1.

    Args:
        clips: taken one after the other, and the pixels of one are let go before the next.
        count: of them.
        frames: of a view, those of a pair included.
        places: where in the batch each one stands; None as they come.
    """
    pixels = _room(count * views, 3, frames, size, size)
    made: dict[int, Clip] = {}
    read = [False] * count
    places = iter(range(count) if places is None else places)
    for clip in clips:  # zip and enumerate would hold one while the next is made
        place = next(places)
        _fill(pixels[place * views : (place + 1) * views], clip.pixels)
        made[place], read[place] = replace(clip, pixels=None), clip.pixels is not None
        del clip
    known = [made[place] for place in range(count)]
    names = known[0].extra if known else ()
    return ClipBatch(
        pixels=pixels,
        labels=torch.tensor([c.label if ok else -1 for c, ok in zip(known, read, strict=True)]),
        weights=torch.tensor(read, dtype=torch.float32),
        seeds=torch.tensor([clip.seed for clip in known]),
        keys=[clip.key for clip in known],
        views=views,
        extra={n: torch.from_numpy(np.concatenate([c.extra[n] for c in known])) for n in names},
    )


def _room(*shape: int) -> Tensor:
    """Room for bytes: in a loader process where the trainer finds them, or they would be copied
    there."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)  # pyright: ignore


def _fill(room: Tensor, pixels: NDArray[np.uint8] | None) -> None:
    """[views, T, h, w, C] → [views, C, T, h, w]; zeros for None."""
    if pixels is None:
        room.zero_()
        return
    views, _, frames, height, width = room.shape
    assert pixels.shape == (views, frames, height, width, 3), pixels.shape
    for view, into in zip(pixels, room.numpy(), strict=True):
        planes = [plane.reshape(-1, width) for plane in into]
        cv2.split(view.reshape(-1, width, 3), planes)  # five times as fast as torch's copy
