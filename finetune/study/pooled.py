"""Figures of a whole study: over all folds at once, with intervals, by subject, and by fold.

Owns pooling, the bootstrap and the table of errors. Everything comes from one list of answers: a
fold's figures are never averaged into a pooled one. Formulas are in `metrics.py`, draws in
`bootstrap.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.bootstrap import figures_interval
from finetune.metrics import figures

FIGURES = {"uf1": "f1", "uar": "uar", "war": "war"}
"""Unweighted F1, unweighted average recall, accuracy; and what `metrics.figures` calls them."""


@dataclass(frozen=True)
class Answer:
    """What a fold's model said of one test clip."""

    fold: str
    clip: str
    label: str
    prediction: str | None
    """None where the clip could not be read."""
    unit: str
    """The subject (else source, else the clip itself) that the bootstrap draws whole."""
    subject: str | None = None


def confusion_of(answers: Sequence[Answer], labels: Sequence[str]) -> NDArray[np.int64]:
    """Counts [C, C], rows truth, columns prediction; clips without an answer are not in it."""
    at = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for answer in answers:
        if answer.prediction is not None:
            matrix[at[answer.label], at[answer.prediction]] += 1
    return matrix


def pool(answers: Sequence[Answer], labels: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """The figures of all folds together, as JSON values.

    UF1 is the mean over classes of 2 TP / (2 TP + FP + FN), UAR the mean of TP / n, WAR the share
    of right answers, all from counts over every fold; `coverage` is the share of test clips that
    were answered, `commonest` what always naming the commonest class gets. The intervals hold 95 %
    of 2000 bootstrap samples, each as many units (subjects) as there are, drawn with replacement; a
    class that a sample lacks counts with its own figure of all folds (`bootstrap.figures_of`).

    Raises ValueError where nothing was answered.
    """
    matrix = confusion_of(answers, labels)
    if not matrix.any():
        raise ValueError("no test clip was answered: see the ledgers of the folds")
    found = figures(torch.from_numpy(matrix), labels)
    answered = int(matrix.sum())
    return {
        **_short(found),
        "interval": intervals(answers, labels, seed=seed),
        "units": len({answer.unit for answer in answers if answer.prediction is not None}),
        "clips": len(answers),
        "answered": answered,
        "coverage": answered / len(answers),
        "recall": {k.removeprefix("recall/"): v for k, v in found.items() if "/" in k},
        "commonest": _commonest(matrix, labels),
        "labels": list(labels),
        "confusion": matrix.tolist(),
    }


def intervals(
    answers: Sequence[Answer], labels: Sequence[str], *, seed: int
) -> dict[str, list[float] | None]:
    """[low, high] of the bootstrap interval of each figure, see `pool`; None for a single unit."""
    known = [(a.unit, a.label, a.prediction) for a in answers if a.prediction is not None]
    units, *pairs = zip(*sorted(known), strict=True)
    at = {label: i for i, label in enumerate(labels)}
    truth, told = (np.array([at[label] for label in each]) for each in pairs)
    found = figures_interval(truth, told, units, classes=len(labels), seed=seed)
    return {name: found[theirs].ends for name, theirs in FIGURES.items()}


def by_fold(answers: Sequence[Answer], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Figures of each fold by itself, in the order in which the folds come."""
    rows = []
    for fold in dict.fromkeys(answer.fold for answer in answers):
        mine = [answer for answer in answers if answer.fold == fold]
        matrix = confusion_of(mine, labels)
        found = _short(figures(torch.from_numpy(matrix), labels)) if matrix.any() else {}
        rows.append({"fold": fold, "clips": len(mine), "answered": int(matrix.sum()), **found})
    return rows


def mean_over_folds(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean of the folds' figures, as is usual for official folds; not the pooled figure."""
    known = [row for row in rows if "war" in row]
    return {name: float(np.mean([row[name] for row in known])) for name in FIGURES}


def by_subject(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Errors of each subject, the most first; none where subjects are not known."""
    rows = []
    for subject in sorted({a.subject for a in answers if a.subject is not None}):
        mine = [a for a in answers if a.subject == subject and a.prediction is not None]
        wrong = [(a.label, a.prediction) for a in mine if a.label != a.prediction]
        worst = max(sorted(set(wrong)), key=wrong.count, default=None)
        rows.append(
            {
                "subject": subject,
                "clips": len(mine),
                "errors": len(wrong),
                "share": len(wrong) / len(mine) if mine else None,
                "most": f"{worst[0]} → {worst[1]} ({wrong.count(worst)})" if worst else "",
            }
        )
    return sorted(rows, key=lambda row: (-row["errors"], row["subject"]))


def _commonest(matrix: NDArray[np.int64], labels: Sequence[str]) -> dict[str, Any]:
    """What always naming the commonest class of these clips would get: what a figure is worth."""
    at = int(matrix.sum(1).argmax())
    same = np.zeros_like(matrix)
    same[:, at] = matrix.sum(1)
    return {"label": labels[at], **_short(figures(torch.from_numpy(same), labels))}


def _short(found: dict[str, float]) -> dict[str, float]:
    return {name: found[theirs] for name, theirs in FIGURES.items()}
