"""Identity-adversarial training (arXiv 2407.11243): features that do not tell who is seen.

Owns the head that tells subjects from features, and the reversal of its gradient. It is part of a
training alone: what is saved and published does not have it. It knows no network and no batch.

The two sides chase one another. On toys they settled, and a fresh probe told people less well, only
where the head learnt faster than the encoder (`rate` 10) and without momentum (`run.betas` 0 0.99);
with AdamW's usual momentum features often showed people more clearly than before. Measure it with a
probe (`launch/probe.py`) rather than by `identity_accuracy`, which an escaping encoder also lowers.
"""

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PUBLISHED = {27: 0.5, 41: 2.0, 140: 1.0}
"""λ that the paper found best, by the number of identities of its three data sets."""


@dataclass(frozen=True)
class IdentityConfig:
    """Whether and how strongly features are kept from telling who is seen."""

    weight: float = 0.0
    """Weight of the loss of the head that tells subjects: 1 as published, 0 turns it off."""
    strength: float | None = None
    """λ, by which its gradient is multiplied, turned round, on its way into the features; None
    takes the paper's for the nearest of its numbers of subjects: 0.5 for 27, 2 for 41, 1 for 140.
    """
    rate: float = 1.0
    """Learning rate of that head as a multiple of the run's."""

    def __post_init__(self) -> None:
        for name in ("weight", "strength", "rate"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"identity.{name} is {getattr(self, name)}: use 0 or more")


def strength_for(subjects: int) -> float:
    """λ of the published number of subjects that is nearest in ratio."""
    return PUBLISHED[min(PUBLISHED, key=lambda count: abs(log(count / subjects)))]


class IdentityHead(nn.Module):
    """A linear head on features, through gradient reversal.

    It learns to tell subjects; what it learns from learns not to show them.

    Args:
        dim: E.
        subjects: S, at least 2.
        strength: λ; None: `strength_for` them.
    """

    def __init__(self, dim: int, subjects: int, *, strength: float | None = None):
        super().__init__()
        if subjects < 2:
            raise ValueError(
                f"identity-adversarial training needs clips of at least two known subjects, found "
                f"{subjects}; ingest again with a column `subject`, or set identity.weight 0"
            )
        self.subjects = subjects
        self.strength = strength_for(subjects) if strength is None else strength
        self.head = nn.Linear(dim, subjects)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, E] to logits [B, S]; gradients into the features are multiplied by -λ."""
        return self.head(_reversed(features, self.strength))

    def losses(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy [B], 0 where the subject is unknown, and whether it was told, [B].

        Args:
            features: [B, E].
            targets: shares of the subjects [B, S], a row of NaN where unknown.
        """
        logits = self(features).float()
        targets = targets.nan_to_num()
        losses = -(targets * functional.log_softmax(logits, dim=1)).sum(1)
        told = targets.gather(1, logits.detach().argmax(1, keepdim=True)).squeeze(1)
        return losses, (told > 0.5).float()


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -ctx.strength * gradient, None


def _reversed(features: Tensor, strength: float) -> Tensor:
    return _Reversal.apply(features, strength)  # pyright: ignore[reportReturnType]
