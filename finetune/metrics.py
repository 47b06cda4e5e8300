"""Figures of expression recognition: WAR, UAR, F1, recalls, confusion matrix; exact over ranks.

Owns the counts and the formulas. Refuses to know models, how clips are dealt to ranks, and who
prints the figures. Everything derives from one matrix of counts, so figures of several folds come
from the sum of their matrices, never from an average of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class LabelledBatch(Protocol):
    """What a meter reads of a batch of B slots."""

    labels: Tensor  # int64 [B], -1 unknown
    weights: Tensor  # float32 [B], 0 for padding and for clips that could not be read
    keys: list[str]  # B names, "" for padding


class ClassificationMeter:
    """Counts (truth, prediction) pairs.

    Args:
        num_classes: C.
        labels: names of the classes in order, for the names of figures.
    """

    def __init__(self, num_classes: int, labels: Sequence[str]):
        if len(labels) != num_classes or len(set(labels)) != num_classes:
            raise ValueError(
                f"{num_classes} classes need as many different names, got {len(labels)}: {labels}"
            )
        self.labels = tuple(labels)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        """float64 [C, C], rows truth, columns prediction, over all ranks; set by `compute`."""
        self._counts = torch.zeros_like(self.confusion)  # of this rank
        self._left_out = torch.zeros(2, dtype=torch.float64)  # unread, unlabelled

    def update(self, output: Tensor, batch: LabelledBatch) -> None:
        """Count one micro-batch.

        Args:
            output: probabilities [B, C], already averaged over a clip's views.

        Raises:
            ValueError: an output is not finite or a label is none of the classes; names the clip.
        """
        output, labels = output.detach().cpu(), batch.labels.cpu()
        present = batch.weights.cpu() > 0
        named = torch.tensor([bool(key) for key in batch.keys])
        counted = present & (labels >= 0)
        self._left_out += torch.stack([(~present & named).sum(), (present & (labels < 0)).sum()])
        self._check(output, labels, counted, batch.keys)
        if counted.any():
            predicted = output[counted].argmax(1)
            self._counts += confusion_matrix(predicted, labels[counted], len(self.labels))

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures over all ranks, see `figures`; how many clips were unread or had no label, and
        `coverage`: the share of all clips, labelled or not, that were answered.

        Args:
            reduce: the sum of a tensor over all ranks.

        Raises:
            ValueError: no rank has seen a labelled clip.
        """
        counts = reduce(torch.cat([self._counts.flatten(), self._left_out])).cpu()
        self.confusion = counts[:-2].view_as(self.confusion)
        if not self.confusion.any():
            raise ValueError(
                f"no labelled clip to evaluate ({counts[-2]:.0f} unread, {counts[-1]:.0f} without "
                "label): check data.shards and data.split"
            )
        left_out = {"unread": float(counts[-2]), "unlabelled": float(counts[-1])}
        left_out["coverage"] = float(1 - counts[-2] / counts.sum())
        return figures(self.confusion, self.labels) | left_out

    def _check(self, output: Tensor, labels: Tensor, counted: Tensor, keys: list[str]) -> None:
        wild = counted & ~output.isfinite().all(1)
        if wild.any():
            raise ValueError(f"probabilities of {_first(keys, wild)} are not finite")
        foreign = counted & (labels >= len(self.labels))
        if foreign.any():
            raise ValueError(
                f"label {int(labels[foreign][0])} of {_first(keys, foreign)} is none of the "
                f"{len(self.labels)} classes {', '.join(self.labels)}"
            )


def confusion_matrix(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Counts int64 [C, C], rows truth, columns prediction, of class numbers int64 [n]."""
    return (truth * classes + predicted).bincount(minlength=classes**2).view(classes, classes)


def figures(confusion: Tensor, labels: Sequence[str]) -> dict[str, float]:
    """Figures of a matrix of counts (of one evaluation, or the sum over folds).

    WAR is accuracy. UAR is the mean recall of the classes that occur. F1 is the mean of
    2 TP / (2 TP + FP + FN) over the classes that occur or are predicted: a class that is absent but
    predicted counts 0, one that is neither has no F1 (the rule of scikit-learn's macro average).

    Args:
        confusion: [C, C], rows truth, columns prediction, at least one count.

    Returns:
        `war`, `uar`, `f1`, `clips`, and `recall/NAME` of each class that occurs; shares in 0..1.
    """
    confusion = confusion.double()
    hits, actual, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    occurs, either = actual > 0, actual + predicted > 0
    recalls = hits[occurs] / actual[occurs]
    f1 = 2 * hits[either] / (actual + predicted)[either]
    names = [label for label, there in zip(labels, occurs.tolist(), strict=True) if there]
    return {
        "war": float(hits.sum() / confusion.sum()),
        "uar": float(recalls.mean()),
        "f1": float(f1.mean()),
        "clips": float(confusion.sum()),
    } | {f"recall/{name}": float(r) for name, r in zip(names, recalls, strict=True)}


def _first(keys: list[str], chosen: Tensor) -> str:
    return repr(keys[int(chosen.nonzero()[0])])
