"""From tables of frozen features to figures: both probes, judged on clips they have not seen.

Owns what is compared with what. The probes are `frozen.py`, the figures `metrics.py`. It knows no
network and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.metrics import confusion_matrix, figures
from finetune.probes.features import Features
from finetune.probes.frozen import Standard, choose_penalty, fit_linear, nearest


def probe(
    train: Features,
    test: Features,
    labels: Sequence[str],
    *,
    neighbours: Sequence[int],
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Both probes, from tables of clips; rows without a label do not count.

    Args:
        labels: names of the classes in order.
        neighbours: how many of them vote, each of these numbers.
        seed: which subjects choose the linear probe's regularisation.

    Returns:
        `probes`: figures and confusion of each by name; `linear`: how its regularisation was
        chosen; `commonest`: accuracy of always answering training's commonest class; clips;
        `shared_subjects`: how many subjects both splits have.

    Raises:
        ValueError: too few labelled clips.
    """
    (train, truth), (test, wanted) = labelled(train, labels), labelled(test, labels)
    if len(truth.unique()) < 2 or not len(wanted):
        raise ValueError(
            f"{len(truth)} labelled clips of {len(truth.unique())} classes to learn from and "
            f"{len(wanted)} to measure on: the probes need two classes and one clip"
        )
    shared = {person for person in train.people if person is not None} & set(test.people)
    scale = Standard.of(torch.from_numpy(train.values).to(device))
    known, asked = (scale(torch.from_numpy(t.values).to(device)) for t in (train, test))
    truth_here, classes = truth.to(device), len(labels)
    votes = nearest(known, truth_here, asked, ks=neighbours, classes=classes)
    answers = {f"knn_{k}": found.cpu() for k, found in votes.items()}
    chosen = choose_penalty(known, truth_here, train.people, classes=classes, seed=seed)
    linear = fit_linear(known, truth_here, classes=classes, penalty=chosen.penalty)
    answers["linear"] = linear.predict(asked).cpu()
    commonest = truth.bincount().argmax()
    return {
        "probes": {name: judged(found, wanted, labels) for name, found in answers.items()},
        "linear": chosen._asdict(),
        "commonest": float((wanted == commonest).double().mean()),
        "train_clips": len(train),
        "test_clips": len(test),
        "features": train.values.shape[1],
        "shared_subjects": len(shared),
    }


def labelled(table: Features, labels: Sequence[str]) -> tuple[Features, Tensor]:
    """The rows with a label, and their classes int64 [n]."""
    classes = table.classes(labels)
    return table.where(classes >= 0), classes[classes >= 0]


def judged(predicted: Tensor, truth: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """Figures of predictions int64 [n], with their confusion matrix."""
    counts = confusion_matrix(predicted, truth, len(labels))
    return {**figures(counts, labels), "confusion": counts.tolist()}
