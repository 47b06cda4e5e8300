"""What a clip's outputs cost: classes, action units, valence and arousal, by configuration.

Owns the formulas. Every loss is one number a clip, so that the loop can weigh clips; a target of
NaN is unknown and costs nothing. It knows no network and no batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from finetune.outputs import Outputs, Parts


@dataclass(frozen=True)
class LossesConfig:
    """How outputs are trained; each loss counts as its weight says."""

    labels: float = 1.0
    """Weight of the cross entropy of classes."""
    units: float = 1.0
    """Weight of the binary cross entropy of action units, a mean over a clip's known ones."""
    affect: float = 1.0
    """Weight of the squared error of valence and arousal, a mean over the known ones."""
    balance: float = 0.0
    """b: a class of n training clips weighs n^-b, scaled so that the mean over these clips is 1; 0
    weighs all alike, 1 makes classes equal. data.balance does it by sampling: use one of them."""
    focal: float = 0.0
    """γ of the focal loss (arXiv 1708.02002): (1 - p)^γ scales a class's cost; 0 turns it off."""
    votes: bool = False
    """Whether the annotators' votes, where a clip has some, are its target, not the label."""

    def __post_init__(self) -> None:
        for name in ("labels", "units", "affect", "balance", "focal"):
            if getattr(self, name) < 0:
                raise ValueError(f"losses.{name} is {getattr(self, name)}: use 0 or more")


def class_weights(counts: Sequence[int], exponent: float) -> Tensor:
    """n^-b for classes of n clips, float32 [C], scaled so that the mean over all clips is 1.

    A class without clips has no target to weigh: its weight is that of a class of one clip.
    """
    there = torch.tensor(counts, dtype=torch.float64)
    weights = there.clamp(min=1) ** -exponent
    return (weights * there.sum() / (weights * there).sum()).float()


def label_losses(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, focal: float = 0.0
) -> Tensor:
    """Soft-target cross entropy: -Σ_c t_c w_c (1 - p_c)^γ log p_c.

    Args:
        logits, targets: [B, C]; a row of NaN targets is unknown.
        weights: w [C].
        focal: γ.

    Returns:
        [B], 0 where unknown.
    """
    scale = logits.new_ones(logits.shape[1]) if weights is None else weights
    logs = functional.log_softmax(logits, dim=1)
    if focal:
        # At p = 1 a power below 1 has an infinite slope.
        scale = scale * (-torch.expm1(logs)).clamp(min=1e-7) ** focal
    return -(targets.nan_to_num() * scale * logs).sum(1)


def unit_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy [B] of logits [B, U], the mean over a clip's known units."""
    losses = functional.binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(), reduction="none"
    )
    return _mean_of_known(losses, targets)


def affect_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Squared error [B] of tanh(logits) [B, 2], the mean over a clip's known values.

    Not 1 - CCC: concordance is a figure of many clips, so as a loss it would depend on which clips
    share a micro-batch, and one that is left out would still count. It is measured instead
    (`measure.py`).
    """
    return _mean_of_known((logits.tanh() - targets.nan_to_num()) ** 2, targets)


class Objective:
    """The losses of one network's outputs.

    Args:
        outputs: of the network.
        config: see `LossesConfig`.
        counts: training clips a class, for `config.balance`; None where it is 0.
    """

    def __init__(
        self, outputs: Outputs, config: LossesConfig, *, counts: Sequence[int] | None = None
    ):
        self.outputs, self.config = outputs, config
        if config.balance and outputs.labels and counts is None:
            raise ValueError("losses.balance needs the number of training clips of every class")
        self.weights = None
        if config.balance and counts is not None:
            self.weights = class_weights(counts, config.balance)

    def __call__(self, logits: Tensor, targets: Parts) -> dict[str, Tensor]:
        """Weighted losses [B], float32, of `labels`, `units` and `affect`: of those that are told.

        Args:
            logits: [B, O].
        """
        config, told = self.config, self.outputs
        labels, units, affect = told.split(logits.float())
        losses = {}
        if told.labels:
            weights = None if self.weights is None else self.weights.to(labels.device)
            found = label_losses(labels, targets.labels, weights=weights, focal=config.focal)
            losses["labels"] = config.labels * found
        if told.units:
            losses["units"] = config.units * unit_losses(units, targets.units)
        if told.affect:
            losses["affect"] = config.affect * affect_losses(affect, targets.affect)
        return losses


def _mean_of_known(losses: Tensor, targets: Tensor) -> Tensor:
    # A product: the loop marks a bad step by NaN weights, which must reach every gradient.
    known = ~targets.isnan()
    return (losses * known).sum(1) / known.sum(1).clamp(min=1)
