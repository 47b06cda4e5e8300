"""Figures of everything that a network tells: classes, action units, valence and arousal.

Owns the counts and formulas of the latter two, exact over ranks and elementwise blind to unknown
targets (NaN); those of classes are in `metrics.py`. It knows no network.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from finetune.metrics import ClassificationMeter, LabelledBatch
from finetune.outputs import AFFECT, Outputs

Reduce = Callable[[Tensor], Tensor]
"""The sum of a tensor over all ranks."""


class AnnotatedBatch(LabelledBatch, Protocol):
    """What a meter reads of a batch of B slots."""

    extra: dict[str, Tensor]  # units [B, U], affect [B, 2], as far as they are told


class UnitMeter:
    """Counts of action units that are present and told at a probability above one half.

    Args:
        units: their names, in order.
    """

    def __init__(self, units: Sequence[str]):
        self.units = tuple(units)
        # hits, present, told, known
        self._counts = torch.zeros(4, len(units), dtype=torch.float64)

    def update(self, output: Tensor, targets: Tensor, counted: Tensor) -> None:
        """Count probabilities [B, U] against targets [B, U] of the slots in bool [B]."""
        known = ~targets.isnan() & counted[:, None]
        present, told = known & (targets > 0.5), known & (output > 0.5)
        counts = ((present & told), present, told, known)
        self._counts += torch.stack([each.sum(0) for each in counts]).cpu()

    def compute(self, reduce: Reduce) -> dict[str, float]:
        """`units/f1/NAME`, 2 TP / (2 TP + FP + FN), of each unit that is present or told somewhere,
        and `units/f1`, their mean; 0 where units are known and none is present or told."""
        hits, present, told, known = reduce(self._counts).cpu()
        either = present + told
        f1 = {
            name: float(2 * h / e) for name, h, e in zip(self.units, hits, either, strict=True) if e
        }
        mean = {"units/f1": sum(f1.values()) / max(len(f1), 1)} if known.any() else {}
        return mean | {f"units/f1/{name}": value for name, value in f1.items()}


class AffectMeter:
    """Moments of told and true valence and arousal."""

    def __init__(self) -> None:
        self._sums = torch.zeros(7, len(AFFECT), dtype=torch.float64)

    def update(self, output: Tensor, targets: Tensor, counted: Tensor) -> None:
        """Take in values [B, 2] and targets [B, 2] of the slots in bool [B]."""
        known = ~targets.isnan() & counted[:, None]
        x = torch.where(known, output, 0.0).double()
        y = torch.where(known, targets, 0.0).double()
        moments = (known.double(), x, y, x * x, y * y, x * y, (x - y) ** 2)
        self._sums += torch.stack([moment.sum(0) for moment in moments]).cpu()

    def compute(self, reduce: Reduce) -> dict[str, float]:
        """`affect/ccc/NAME`, the concordance 2 s_xy / (s_x² + s_y² + (m_x - m_y)²) of all clips
        (Lin 1989), 0 where neither varies; `affect/rmse/NAME`; `affect/ccc`, the mean of the two.
        """
        found = {}
        for name, sums in zip(AFFECT, reduce(self._sums).cpu().t().tolist(), strict=True):
            n, x, y, xx, yy, xy, squares = sums
            if n:
                found[f"affect/ccc/{name}"] = _concordance(x / n, y / n, xx / n, yy / n, xy / n)
                found[f"affect/rmse/{name}"] = (squares / n) ** 0.5
        told = [value for name, value in found.items() if "ccc" in name]
        return ({"affect/ccc": sum(told) / len(told)} if told else {}) | found


class Measure:
    """All figures of a network's answers.

    Args:
        outputs: of the network.
    """

    def __init__(self, outputs: Outputs):
        self.outputs = outputs
        self.classes = None
        if outputs.labels:
            self.classes = ClassificationMeter(len(outputs.labels), outputs.labels)
        self._units, self._affect = UnitMeter(outputs.units), AffectMeter()
        self._clips = torch.zeros(2, dtype=torch.float64)  # answered, unread

    def update(self, output: Tensor, batch: AnnotatedBatch) -> None:
        """Take in answers [B, O], already averaged over a clip's views, of one micro-batch.

        Raises:
            ValueError: an answer is not finite; names the clip.
        """
        present = batch.weights > 0
        self._check(output, present, batch.keys)
        named = torch.tensor([bool(key) for key in batch.keys])
        self._clips += torch.stack([present.cpu().sum(), (~present.cpu() & named).sum()])
        parts = self.outputs.split(output)
        if self.classes is not None:
            self.classes.update(parts.labels, batch)
        if self.outputs.units:
            self._units.update(parts.units, batch.extra["units"], present)
        if self.outputs.affect:
            self._affect.update(parts.affect, batch.extra["affect"], present)

    def compute(self, reduce: Reduce) -> dict[str, float]:
        """Figures over all ranks: of classes see `ClassificationMeter.compute`, of action units and
        affect see above; without classes `clips`, `unread` and `coverage` of all clips.

        Raises:
            ValueError: nothing is known of any clip that `Outputs.selected_by` measures.
        """
        answered, unread = reduce(self._clips).cpu().tolist()
        share = answered / max(answered + unread, 1.0)
        found = {"clips": answered, "unread": unread, "coverage": share}
        if self.classes is not None:
            found = self.classes.compute(reduce)
        if self.outputs.units:
            found |= self._units.compute(reduce)
        if self.outputs.affect:
            found |= self._affect.compute(reduce)
        if self.outputs.selected_by not in found:
            raise ValueError(
                f"no clip tells what {self.outputs.selected_by} measures ({answered:.0f} clips "
                "read): check data.shards and data.split, or ingest again with these annotations"
            )
        return found

    def _check(self, output: Tensor, present: Tensor, keys: list[str]) -> None:
        wild = present & ~output.isfinite().all(1)
        if wild.any():
            raise ValueError(f"the answer for {keys[int(wild.nonzero()[0])]!r} is not finite")


def _concordance(x: float, y: float, xx: float, yy: float, xy: float) -> float:
    """From means of x, y, x², y² and xy."""
    spread = (xx - x * x) + (yy - y * y) + (x - y) ** 2
    return 2 * (xy - x * y) / spread if spread > 1e-12 else 0.0
