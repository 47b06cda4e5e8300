"""From a batch to what a network should have told of its clips.

Owns targets and which of them are known: an unknown one is NaN. It knows no network and no loss.
"""

import torch
from torch import Tensor
from torch.nn import functional

from finetune.outputs import AFFECT, Outputs, Parts
from shards.batch import ClipBatch


def targets_of(
    batch: ClipBatch, outputs: Outputs, *, smoothing: float = 0.0, votes: bool = False
) -> Parts:
    """Soft targets of every clip, float32, NaN where unknown.

    Args:
        smoothing: mass moved from the label to all classes alike.
        votes: take the annotators' shares (`extra["votes"]`) in place of the label, where a clip
            has some.

    Returns:
        classes [B, C], whose known rows sum to 1; units [B, U], 0 or 1; affect [B, 2].
    """
    count = len(batch.labels)
    nothing = batch.pixels.new_zeros(count, 0, dtype=torch.float32)
    labels = nothing
    if outputs.labels:
        labels = one_hot(batch.labels, len(outputs.labels))
        if votes:
            shares = batch.extra["votes"].float()
            labels = torch.where(shares.sum(1, keepdim=True) > 0, shares, labels)
        labels = labels * (1 - smoothing) + smoothing / len(outputs.labels)
    units = batch.extra["units"].float() if outputs.units else nothing
    affect = batch.extra["affect"].float() if outputs.affect else nothing
    assert units.shape[1] == len(outputs.units) and affect.shape[1] in (0, len(AFFECT))
    return Parts(labels, units, affect)


def one_hot(indices: Tensor, classes: int) -> Tensor:
    """int64 [B], -1 unknown, to float32 [B, classes]; a row of NaN where unknown."""
    rows = functional.one_hot(indices.clamp(min=0), classes).float()
    return rows.masked_fill((indices < 0)[:, None], float("nan"))


def known(targets: Parts) -> Tensor:
    """Which clips have at least one known target, bool [B]."""
    return ~torch.cat(list(targets), 1).isnan().all(1)
