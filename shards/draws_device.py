"""Draws applied to a batch where the network is, by kornia and torch.

Owns how; what is drawn is in `draws`, and `draws_opencv` does the same in a loader process, within
a few grey levels. Statistics are a clip's, for which its frames lie above one another as one
picture. The host never waits for the device: what was drawn goes into kernels as plain numbers, and
nothing is read back. That, and what follows, decides which functions of kornia serve here:

- enhance.equalize, sharpness, adjust_contrast…, adjust_saturation… and geometry's warp_affine read
  values back, or copy constants or an inverse to the device in every call;
- enhance.adjust_brightness adds where a factor is meant, normalize_min_max turns a clip of one
  colour black;
- posterise, solarise and invert need no more than bytes, kornia's take floats.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shards.augment import AugmentConfig
from shards.batch import ClipBatch
from shards.draws import (
    FILL,
    MOVES,
    Draw,
    Erased,
    Operation,
    draw,
    noise,
    noise_levels,
    source_of,
)


@torch.no_grad()
def augmented(batch: ClipBatch, config: AugmentConfig | None) -> Tensor:
    """The pixels of a training batch, uint8 [B, C, T, h, w], each clip as its seed draws it.

    Args:
        batch: crops; places without a clip are black and stay so.
        config: None leaves everything as it is: the loader did it.
    """
    pixels = batch.pixels
    if config is None:
        return pixels
    draws = [draw(config, seed, size=pixels.shape[-1]) for seed in batch.seeds.tolist()]
    with torch.autocast(pixels.device.type, enabled=False):  # pixels need more than 8 bits
        clips = [apply(clip, drawn) for clip, drawn in zip(pixels, draws, strict=True)]
    return torch.stack(clips) * pixels.flatten(1).any(1).view(-1, 1, 1, 1, 1)


def apply(clip: Tensor, drawn: Draw) -> Tensor:
    """A clip, uint8 [C, T, h, w], RGB, as drawn; the given one is left alone."""
    for operation in drawn.operations:
        clip = operate(clip, operation)
    return clip if drawn.erased is None else _erase(clip, drawn.erased)


def operate(clip: Tensor, operation: Operation) -> Tensor:
    """uint8 [C, T, h, w] → the same form, after one operation."""
    name, amount = operation
    if name in MOVES:
        return _warped(clip, source_of(operation, *clip.shape[2:]).tolist())
    match name:
        case "auto_contrast":
            return _stretched(clip)
        case "equalise":
            return _equalised(clip)
        case "invert":
            return 255 - clip
        case "posterise":
            return clip & (256 - 2 ** (8 - int(amount)))
        case "solarise":
            return torch.where(clip < float(amount), clip, 255 - clip)  # 256 is no byte
        case "solarise_add":
            return torch.where(clip < 128, clip + int(amount), clip)
    values, other = clip.float(), _other(clip.float(), name)
    return _bytes(other + (values - other) * amount)


class _Constants(NamedTuple):
    """What is copied to a device once."""

    grey: Tensor
    """[3], shares of red, green and blue."""
    smooth: Tensor
    """[1, 3, 3], in whole numbers, which TensorFloat-32 keeps."""
    fill: Tensor
    """[3, 1, 1, 1]"""
    levels: Tensor
    """[3, 1024], see `noise`."""


@functools.cache
def _constants(device: torch.device) -> _Constants:
    return _Constants(
        torch.tensor([0.299, 0.587, 0.114], device=device),
        torch.tensor([[[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]], device=device),
        torch.tensor(FILL, dtype=torch.float32, device=device).view(3, 1, 1, 1),
        torch.from_numpy(noise_levels()).to(device),
    )


def _other(values: Tensor, name: str) -> Tensor | float:
    """What a factor leads to or away from: black, the mean grey, greyness, or smoothness.

    Args:
        values: float32 [C, T, h, w].
    """
    if name == "brightness":
        return 0.0
    if name == "sharpness":
        return _smooth(values)
    from kornia.color import rgb_to_grayscale  # takes half a second: not where it is not needed

    grey = rgb_to_grayscale(values.flatten(1, 2), _constants(values.device).grey)  # [1, T·h, w]
    return grey.mean() if name == "contrast" else grey.view(1, *values.shape[1:])


def _smooth(values: Tensor) -> Tensor:
    """Each frame smoothed, its outermost pixels as they are (as in PIL)."""
    from kornia.filters import filter2d

    smooth = values.clone()
    if min(values.shape[2:]) > 2:
        kernel = _constants(values.device).smooth
        smooth[..., 1:-1, 1:-1] = filter2d(values, kernel, padding="valid") / 13
    return smooth


def _stretched(clip: Tensor) -> Tensor:
    """Each channel stretched to 0..255; one of a single value stays."""
    low, high = clip.amin((1, 2, 3), keepdim=True), clip.amax((1, 2, 3), keepdim=True)
    stretched = (clip - low) * 255.0 / (high - low).clamp(min=1)
    return torch.where(high > low, _bytes(stretched), clip)


def _equalised(clip: Tensor) -> Tensor:
    """The values of each channel made equally frequent, in whole numbers as in PIL."""
    values = clip.flatten(1).long()  # [3, N]
    counts = torch.stack([torch.histc(v.float(), 256, -0.5, 255.5) for v in values]).long()
    last = counts.gather(1, values.amax(1, keepdim=True))
    step = (values.shape[1] - last) // 255  # [3, 1]
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    spread = table.gather(1, values).to(torch.uint8).view(clip.shape)
    return torch.where(step.view(3, 1, 1, 1) > 0, spread, clip)


def _warped(clip: Tensor, source: list[list[float]]) -> Tensor:
    """All frames through one affine map, see `source_of`."""
    from kornia.geometry.transform import remap

    (a, b, c), (d, e, f) = source
    height, width = clip.shape[2:]
    fill = _constants(clip.device).fill
    x = torch.arange(width, dtype=torch.float32, device=clip.device)
    y = torch.arange(height, dtype=torch.float32, device=clip.device)[:, None]
    across = (2 * (a * x + b * y + c) + 1) / width - 1  # as grid_sample counts: -1 to 1
    down = (2 * (d * x + e * y + f) + 1) / height - 1
    above_fill = (clip - fill).view(1, -1, height, width)  # beyond the picture is zero
    moved = remap(above_fill, across[None], down[None], normalized_coordinates=True)
    return _bytes(moved.view(clip.shape) + fill)


def _erase(clip: Tensor, erased: Erased) -> Tensor:
    (left, top, width, height), seed = erased
    within: Any = (..., slice(top, top + height), slice(left, left + width))
    places = torch.arange(clip[0].numel(), device=clip.device).view(clip.shape[1:])[within]
    clip = clip.clone()
    clip[within] = torch.stack(noise(places, seed, _constants(clip.device).levels))
    return clip


def _bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)
