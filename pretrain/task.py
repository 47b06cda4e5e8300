"""Masked pretraining as a task: a batch of clips in, one reconstruction loss a clip out.

Owns augmentation and normalisation on the device, the masks of a batch and what is measured. It
knows no cluster, no optimiser and no files; the model is in `model.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from launch.parameters import decay_groups
from mira.blocks import compile_blocks
from mira.tubelets import normalise
from pretrain.masking import MaskConfig, make_masks
from pretrain.model import VideoMAE
from shards.augment import AugmentConfig
from shards.batch import ClipBatch
from shards.draws_device import augmented


class PretrainTask(nn.Module):
    """VideoMAE with its masks.

    Args:
        model: the autoencoder.
        mask: what share is hidden, and from whom.
        augment: what is done to training clips here (`data.on_device`); None: the loader did it.
    """

    def __init__(self, model: VideoMAE, mask: MaskConfig, augment: AugmentConfig | None = None):
        super().__init__()
        self.model = model
        self.mask, self.augment = mask, augment
        self.flops_per_clip = 3 * model.flops(mask)  # the backward pass costs two forwards

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruct what is hidden of training clips.

        Returns:
            losses [B], float32: the mean squared error of a clip's hidden patches; no more metrics.
        """
        return self._losses(batch, augmented(batch, self.augment)), {}

    def predict(self, batch: ClipBatch) -> Tensor:
        """Losses [B] of held-out clips."""
        return self._losses(batch, batch.pixels)

    def _losses(self, batch: ClipBatch, pixels: Tensor) -> Tensor:
        x = normalise(pixels)
        # A mask derives from its slot's seed alone, so it is the same on any number of workers.
        masks = make_masks(self.mask, self.model.encoder.config, batch.seeds)
        return self.model.losses(self.model(x, *masks), x, *masks)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` for every block of the network; what is around them stays as it is."""
        compile_blocks(self, *args, **kwargs)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Matrices decay, vectors do not; one learning rate for all."""
        return decay_groups(self, weight_decay)


class LossMeter:
    """The mean loss over all clips of all ranks, each clip counted once, and how many there are."""

    def __init__(self) -> None:
        self.total = torch.zeros(3, dtype=torch.float64)  # loss, clips, unread

    def update(self, output: Tensor, batch: ClipBatch) -> None:
        """Add losses [B]; clips of weight 0 do not count."""
        weights = batch.weights.double()
        losses = torch.where(weights > 0, output.double(), 0.0)
        named = torch.tensor([bool(key) for key in batch.keys], device=weights.device)
        unread = (named & (weights == 0)).sum()
        self.total += torch.stack([(losses * weights).sum(), weights.sum(), unread]).cpu()

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`loss` (NaN when no clip could be read), `clips`, `unread`, and `coverage`, the share of
        the clips that were read."""
        loss, clips, unread = reduce(self.total).tolist()
        mean = loss / clips if clips else float("nan")
        coverage = clips / max(1.0, clips + unread)
        return {"loss": mean, "clips": clips, "unread": unread, "coverage": coverage}
