"""The batch: the only thing that passes from shards to a task.

Owns its form and how clips are put together, failed and missing ones included. Refuses to know
where clips come from and what a task does with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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


def collate(clips: Sequence[Clip], *, views: int, frames: int, size: int) -> ClipBatch:
    """Put clips together; one without pixels keeps its place: zeros, weight 0, label -1.

    Args:
        frames: of a view, those of a pair included.
    """
    pixels = torch.empty(len(clips) * views, 3, frames, size, size, dtype=torch.uint8)
    for i, clip in enumerate(clips):
        mine = pixels[i * views : (i + 1) * views]
        if clip.pixels is None:
            mine.zero_()
        else:
            assert clip.pixels.shape == (views, frames, size, size, 3), clip.pixels.shape
            for view, into in zip(clip.pixels, mine.numpy(), strict=True):
                planes = [plane.reshape(-1, size) for plane in into]
                cv2.split(view.reshape(-1, size, 3), planes)  # five times as fast as torch's copy
    read = [clip.pixels is not None for clip in clips]
    names = clips[0].extra if clips else ()
    return ClipBatch(
        pixels=pixels,
        labels=torch.tensor([c.label if ok else -1 for c, ok in zip(clips, read, strict=True)]),
        weights=torch.tensor(read, dtype=torch.float32),
        seeds=torch.tensor([clip.seed for clip in clips]),
        keys=[clip.key for clip in clips],
        views=views,
        extra={n: torch.from_numpy(np.concatenate([c.extra[n] for c in clips])) for n in names},
    )
