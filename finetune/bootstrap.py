"""How far figures may be trusted: intervals by resampling people, not clips.

Clips of one person resemble one another, so people are drawn with replacement, each with all of
their clips (a cluster bootstrap); the interval is that of the percentiles. Owns the draws and the
figures of many confusion matrices at once. It knows no files, models or clips.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DRAWS = 2000
COVER = 0.95


class Interval(NamedTuple):
    """A figure and the ends of its interval; None with fewer than two people."""

    value: float
    low: float | None
    high: float | None


def numbered(people: Sequence[Hashable]) -> Array:
    """int64 [n]: a number for each person; a clip whose person is None counts as one of its own."""
    number: dict[Hashable, int] = {}
    names = [("clip", i) if who is None else ("person", who) for i, who in enumerate(people)]
    return np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)


def draws(people: int, *, seed: int, count: int = DRAWS) -> Array:
    """float64 [count, people]: how often each is drawn, `people` times with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(people, np.full(people, 1 / people), size=count).astype(np.float64)


def mean_interval(values: Sequence[float], people: Sequence[Hashable], *, seed: int) -> Interval:
    """The mean of one number a clip.

    Args:
        values: n of them, at least one.
        people: who each clip shows, None where unknown.
    """
    numbers = numbered(people)
    sums = np.bincount(numbers, weights=np.asarray(values, dtype=np.float64))
    sizes = np.bincount(numbers).astype(np.float64)
    weights = draws(len(sizes), seed=seed)
    return _interval(sums.sum() / sizes.sum(), (weights @ sums) / (weights @ sizes), len(sizes))


def paired_differences(
    truth: Array,
    before: Array,
    after: Array,
    people: Sequence[Hashable],
    *,
    classes: int,
    seed: int,
) -> dict[str, Interval]:
    """By how much each figure changes, `after` - `before`, on the same clips and the same draws.

    Args:
        truth, before, after: int64 [n] classes: the right ones, and two answers to every clip.
        people: who each clip shows, None where unknown.

    Returns:
        differences of `war`, `uar` and `f1`.
    """
    numbers = numbered(people)
    count = int(numbers.max()) + 1
    weights = draws(count, seed=seed)
    whole, drawn = [], []
    for answers in (before, after):
        cells = (numbers * classes + truth) * classes + answers
        each = np.bincount(cells, minlength=count * classes**2).astype(np.float64)  # [G · C · C]
        each = each.reshape(count, -1)
        whole.append(figures_of(each.sum(0).reshape(classes, classes)))
        drawn.append(figures_of((weights @ each).reshape(-1, classes, classes)))
    return {
        name: _interval(whole[1][name] - whole[0][name], drawn[1][name] - drawn[0][name], count)
        for name in whole[0]
    }


def figures_of(confusion: Array) -> dict[str, Array]:
    """`war`, `uar`, `f1` of matrices [..., C, C] at once, by the rules of `metrics.figures`."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    actual, predicted = confusion.sum(-1), confusion.sum(-2)
    return {
        "war": hits.sum(-1) / actual.sum(-1),
        "uar": _mean_ratio(hits, actual),
        "f1": _mean_ratio(2 * hits, actual + predicted),
    }


def _mean_ratio(above: Array, below: Array) -> Array:
    """The mean of above / below [..., C] over the classes where below is not 0."""
    there = below > 0
    ratios = np.divide(above, below, out=np.zeros_like(above), where=there)
    return ratios.sum(-1) / there.sum(-1)


def _interval(value: float | Array, drawn: Array, people: int) -> Interval:
    if people < 2:
        return Interval(float(value), None, None)
    low, high = np.quantile(drawn, [(1 - COVER) / 2, (1 + COVER) / 2])
    return Interval(float(value), float(low), float(high))
