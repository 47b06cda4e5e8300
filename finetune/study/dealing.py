"""Groups of clips dealt to folds, or held out, so that every part has the classes in proportion.

Owns this arithmetic; the same numbers and seed give the same parts on any machine. Knows neither
clips nor what a group is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

G = TypeVar("G", bound=Hashable)
Counts = Mapping[G, Counter[str]]
"""Group → how many clips of each class it has."""


def deal(groups: Counts[G], k: int, seed: int) -> list[list[G]]:
    """`k` lists of groups: the largest first, each to the list that lacks its classes most.

    Raises ValueError for fewer groups than lists.
    """
    if len(groups) < k:
        raise ValueError(
            f"{k} folds of {len(groups)} groups: every fold needs one, use a smaller k"
        )
    order = sorted(shuffled(groups, seed), key=lambda group: -groups[group].total())
    shares = _shares(groups)
    have = np.zeros((k, len(_classes(groups))))  # share of each class that a list has
    lists: list[list[G]] = [[] for _ in range(k)]
    for left, group in zip(range(len(order), 0, -1), order, strict=True):
        empty = [i for i in range(k) if not lists[i]]
        among = empty if len(empty) == left else range(k)
        # Growth of the sum of squares, which is least where all lists have the same.
        cost = {
            i: (float((2 * have[i] + shares[group]) @ shares[group]), len(lists[i])) for i in among
        }
        best = min(among, key=lambda i: (*cost[i], i))
        lists[best].append(group)
        have[best] += shares[group]
    return lists


def hold_out(groups: Counts[G], share: float, seed: int) -> list[G]:
    """Groups that hold about `share` of every class: at least one, never all of them.

    Those that would take the last clips of a class are left, as long as others can be taken. Raises
    ValueError for fewer than two groups.
    """
    if len(groups) < 2:
        raise ValueError("a group cannot be held out where there is only one")
    order, shares = shuffled(groups, seed), _shares(groups)
    held: list[G] = []
    have = np.zeros(len(_classes(groups)))

    def miss(group: G) -> float:
        """How far from the aim it is with this group too; a class that is used up is far away."""
        then = have + shares[group]
        return float(((then - share) ** 2).sum() + 100 * (then > 1 - 1e-9).sum())

    for group in order:
        if len(held) < len(groups) - 1 and miss(group) < ((have - share) ** 2).sum():
            held.append(group)
            have += shares[group]
    return held or [min(order, key=miss)]


def shuffled(groups: Counts[G], seed: int) -> list[G]:
    """The groups in an order that depends on their names and the seed alone."""
    digest = {group: hashlib.sha256(f"{seed}\0{group!r}".encode()).digest() for group in groups}
    return sorted(groups, key=lambda group: digest[group])


def _classes(groups: Counts[G]) -> Sequence[str]:
    return sorted({label for counts in groups.values() for label in counts})


def _shares(groups: Counts[G]) -> dict[G, NDArray[np.float64]]:
    """Of each group the share of every class that it has: [classes]."""
    classes = _classes(groups)
    table = {group: np.array([n[label] for label in classes], float) for group, n in groups.items()}
    totals = np.sum(list(table.values()), axis=0)
    return {group: row / totals for group, row in table.items()}
