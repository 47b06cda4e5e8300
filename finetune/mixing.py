"""Mixup and CutMix of clips, and of whatever targets they have.

Owns the mixing of a batch on its device. It knows no model and no loss.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class MixConfig:
    """How training clips are mixed in pairs."""

    mixup: float = 0.8
    """Beta parameter of mixup (arXiv 1710.09412); 0 turns it off."""
    cutmix: float = 1.0
    """Beta parameter of CutMix (arXiv 1905.04899); 0 turns it off."""
    probability: float = 1.0
    """Share of the batches that are mixed."""
    cutmix_share: float = 0.5
    """Where both are on: the share of mixed batches that take CutMix."""
    label_smoothing: float = 0.1
    """Mass moved from the label to all classes alike."""

    @property
    def enabled(self) -> bool:
        """Whether any clips are mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def __post_init__(self) -> None:
        for name in ("probability", "cutmix_share", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 (off) or positive")


class Mixed(NamedTuple):
    """A mixed batch."""

    pixels: Tensor
    """[B, C, T, h, w]"""
    partner: Tensor
    """int64 [B]: whom each clip was mixed with, perhaps with itself."""
    kept: float
    """The share of itself that each keeps."""

    def blend(self, targets: Tensor) -> Tensor:
        """Targets [B, …] of the clips to those of the mixtures; of an unknown one (NaN) unknown."""
        if self.kept == 1.0:
            return targets
        return targets * self.kept + targets[self.partner] * (1 - self.kept)


def mix(pixels: Tensor, weights: Tensor, seeds: Tensor, mix: MixConfig) -> Mixed:
    """Mix each clip with a partner of its batch.

    Args:
        pixels: [B, C, T, h, w], floating point.
        weights: [B]; clips of weight 0 (failed or padding) are nobody's partner.
        seeds: [B], int64; the random choices derive from them.
        mix: what is mixed.
    """
    partner = torch.arange(len(weights), device=weights.device)
    rng = np.random.default_rng(seeds.tolist())
    valid = (weights > 0).nonzero().squeeze(1)
    enabled = mix.mixup > 0 or mix.cutmix > 0
    if not enabled or len(valid) < 2 or rng.random() >= mix.probability:
        return Mixed(pixels, partner, 1.0)
    partner[valid] = valid.roll(1)
    cut = mix.cutmix > 0 and (mix.mixup == 0 or rng.random() < mix.cutmix_share)
    if cut:
        pixels, kept = _paste(pixels, partner, rng.beta(mix.cutmix, mix.cutmix), rng)
    else:
        kept = rng.beta(mix.mixup, mix.mixup)
        pixels = pixels * kept + pixels[partner] * (1 - kept)
    return Mixed(pixels, partner, kept)


def _paste(
    pixels: Tensor, partner: Tensor, kept: float, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """Paste one box of the partner, through all frames; returns the share really kept."""
    h, w = pixels.shape[-2:]
    side = (1 - kept) ** 0.5
    y, x = int(rng.integers(h)), int(rng.integers(w))
    top, bottom = max(0, y - int(h * side) // 2), min(h, y + int(h * side) // 2)
    left, right = max(0, x - int(w * side) // 2), min(w, x + int(w * side) // 2)
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = pixels[partner][..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (h * w)
