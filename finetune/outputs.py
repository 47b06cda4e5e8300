"""What a network tells: classes, action units, valence and arousal, side by side in one vector.

Owns the order of the O = classes + units + affect outputs of the one linear head, and what makes
answers of logits. It knows no network, no loss and no figures.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

AFFECT = ("valence", "arousal")


@dataclass(frozen=True)
class HeadsConfig:
    """What is learnt and told."""

    labels: bool = True
    """The classes of the shards, one of which is right."""
    units: tuple[str, ...] = ()
    """Action units, such as 1 4 12, each present or not."""
    affect: bool = False
    """Valence and arousal, -1 to 1."""
    soa: bool = False
    """Single-Orientation Attention on the tokens of the last block of a video transformer."""

    def __post_init__(self) -> None:
        if len(set(self.units)) != len(self.units):
            raise ValueError(f"heads.units is {self.units}: name every action unit once")


class Parts(NamedTuple):
    """One tensor an output, [B, classes], [B, units] and [B, 2]; of size 0 where it is not told."""

    labels: Tensor
    units: Tensor
    affect: Tensor


@dataclass(frozen=True)
class Outputs:
    """The outputs of one network, by name."""

    labels: tuple[str, ...] = ()
    """Classes in order; none where classes are not told."""
    units: tuple[str, ...] = ()
    """Action units in order."""
    affect: bool = False
    """Whether valence and arousal are told."""

    @property
    def size(self) -> int:
        """O."""
        return sum(self._sizes)

    @property
    def selected_by(self) -> str:
        """The figure that picks the best step: of classes, else of units, else of affect."""
        return "uar" if self.labels else "units/f1" if self.units else "affect/ccc"

    @property
    def _sizes(self) -> list[int]:
        return [len(self.labels), len(self.units), len(AFFECT) if self.affect else 0]

    def split(self, outputs: Tensor) -> Parts:
        """[B, O] taken apart; views."""
        return Parts(*outputs.split(self._sizes, dim=1))

    def answers(self, logits: Tensor, *, views: int) -> Tensor:
        """Logits [B · views, O] to answers [B, O], float32, averaged over a clip's views.

        Probabilities of the classes, which sum to 1, and of each unit; affect in -1..1.
        """
        labels, units, affect = self.split(logits.float())
        shares = labels.softmax(1) if self.labels else labels
        told = torch.cat([shares, units.sigmoid(), affect.tanh()], 1)
        return told.unflatten(0, (-1, views)).mean(1)
