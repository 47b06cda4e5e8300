"""What frozen features tell: nearest neighbours, and one linear layer on top.

Owns the two classifiers and how the linear one's regularisation is chosen. It knows plain tensors;
no network, no files and no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

PENALTIES = tuple(10.0**power for power in range(1, -6, -1))
"""Of the squared weights, strongest first: of two that do equally well the stronger is taken."""
HELD_OUT = 0.25  # share of the training clips that chooses the penalty
QUERIES = 1024  # clips compared with all training clips at once
STEPS = 1000  # L-BFGS iterations at most


@dataclass(frozen=True)
class Standard:
    """Mean and deviation of every feature over the training clips, float64 [E] each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standard:
        """From training features [n, E]; a feature that never changes keeps its size."""
        values = features.double()
        std = values.std(0, correction=0)
        return cls(values.mean(0), torch.where(std > 0, std, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """[n, E] to float64 [n, E], of mean 0 and variance 1 on the training clips."""
        return (features.double() - self.mean) / self.std


def nearest(
    train: Tensor, labels: Tensor, asked: Tensor, *, ks: Sequence[int], classes: int
) -> dict[int, Tensor]:
    """Majority of the k most similar training clips, by cosine.

    Equal votes go to the class whose neighbours are more similar in sum.

    Args:
        train: [n, E]; labels: int64 [n], each 0 … classes - 1.
        asked: [m, E].
        ks: how many neighbours vote.

    Returns:
        predictions int64 [m] by k.

    Raises:
        ValueError: fewer training clips than the largest k.
    """
    if len(train) < max(ks):
        raise ValueError(
            f"{max(ks)} neighbours are asked for and {len(train)} labelled training clips are "
            "there: set --neighbours to less, or give more shards"
        )
    known = functional.normalize(train, dim=1)
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    for part in functional.normalize(asked, dim=1).split(QUERIES):
        similar, index = (part @ known.T).topk(max(ks), dim=1)  # descending
        votes = functional.one_hot(labels[index], classes).double()  # [m, k, C]
        for k in ks:
            count, sums = votes[:, :k].sum(1), (votes * similar[..., None])[:, :k].sum(1)
            # Sums lie in ±k, so they never outweigh a vote.
            found[k].append((count + sums / (4 * k)).argmax(1))
    empty = labels.new_empty(0)
    return {k: torch.cat([empty, *parts]) for k, parts in found.items()}


class Linear(NamedTuple):
    """Multinomial logistic regression."""

    weight: Tensor  # [C, E]
    bias: Tensor  # [C], -inf for classes that training never saw

    def predict(self, features: Tensor) -> Tensor:
        """[m, E] to classes, int64 [m]."""
        return (features @ self.weight.T + self.bias).argmax(1)


def fit_linear(
    features: Tensor, labels: Tensor, *, classes: int, penalty: float, start: Linear | None = None
) -> Linear:
    """Minimise mean cross entropy + penalty / 2 · ‖weight‖² by L-BFGS; biases are free.

    The problem is convex, so the result does not depend on the start. scikit-learn's `C` is
    1 / (penalty · n).

    Args:
        features: float64 [n, E]; labels: int64 [n].
        start: an earlier solution of the same classes, for speed.
    """
    seen = labels.unique()
    target = torch.searchsorted(seen, labels)
    weight, bias = features.new_zeros(len(seen), features.shape[1]), features.new_zeros(len(seen))
    if start is not None:
        weight, bias = start.weight[seen].clone(), start.bias[seen].clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = functional.cross_entropy(features @ weight.T + bias, target)
        value = value + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # pyright: ignore[reportArgumentType]  (a Tensor does for a float)
    whole = features.new_zeros(classes, features.shape[1])
    free = features.new_full((classes,), -torch.inf)
    whole[seen], free[seen] = weight.detach(), bias.detach()
    return Linear(whole, free)


class Chosen(NamedTuple):
    """A penalty, and what it was chosen on."""

    penalty: float
    held_out: str
    """`subjects`, or `clips` where subjects are unknown or only one is there."""
    uar: float
    """Mean recall on the clips that were held out for the choice."""


def choose_penalty(
    features: Tensor, labels: Tensor, subjects: Sequence[str | None], *, classes: int, seed: int
) -> Chosen:
    """The penalty with the best mean recall on subjects of the training clips that are held out.

    Args:
        features: float64 [n, E], n ≥ 2; labels: int64 [n].
        subjects: of each clip; those without one count as a subject each.
        seed: decides which are held out.
    """
    groups, what = _groups(subjects)
    aside = held_out(groups, share=HELD_OUT, seed=seed).to(labels.device)
    best, model = None, None
    for penalty in PENALTIES:
        model = fit_linear(
            features[~aside], labels[~aside], classes=classes, penalty=penalty, start=model
        )
        uar = mean_recall(model.predict(features[aside]), labels[aside])
        if best is None or uar > best.uar:
            best = Chosen(penalty, what, uar)
    assert best is not None
    return best


def held_out(groups: Tensor, *, share: float, seed: int) -> Tensor:
    """bool [n]: whole groups, drawn until they hold `share` of all; at least one, never all.

    Args:
        groups: int64 [n], 0 … G - 1, of at least two groups.
    """
    count = int(groups.max()) + 1
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    sizes = groups.bincount(minlength=count)[drawn].cumsum(0)
    taken = 1 + int((sizes < share * len(groups)).sum())
    return torch.isin(groups, drawn[: min(taken, count - 1)])


def mean_recall(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the share that is found."""
    hit = (predicted == labels).double()
    return float(torch.stack([hit[labels == c].mean() for c in labels.unique()]).mean())


def _groups(subjects: Sequence[str | None]) -> tuple[Tensor, str]:
    """int64 [n] numbers of the groups, and what they are."""
    known = {subject for subject in subjects if subject is not None}
    if len(known) < 2:
        return torch.arange(len(subjects)), "clips"
    number: dict[object, int] = {}
    each = [i if subject is None else subject for i, subject in enumerate(subjects)]
    return torch.tensor([number.setdefault(group, len(number)) for group in each]), "subjects"
