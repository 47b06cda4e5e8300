"""Figures of the temporal probes, from one row a clip: what each manipulation costs, and how much
of a network's attention lies where the expression is.

Owns the comparisons and their intervals (`bootstrap.py`: people are drawn, not clips). It knows no
network and no pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.bootstrap import figures_of, mean_interval, numbered, paired_differences
from finetune.probes.manipulations import AS_IS
from finetune.probes.task import Row

FIGURES = {"war": "war", "uar": "uar", "uf1": "f1"}
"""Names in the report, and those of `bootstrap.figures_of`."""


def cost_of(rows: Sequence[Row], name: str, *, classes: int, seed: int) -> dict[str, Any]:
    """One manipulation against the clips as they are, on the labelled clips that allow it.

    Returns:
        `clips`; `changed`, of how many other frames stood somewhere; `flipped`, the share that is
        answered differently; `war`, `uar`, `uf1` under it; `as_is` with the same of the clips as
        they are; `change` with differences and their intervals. With no such clip `clips` alone.
    """
    kept = [row for row in rows if row.label >= 0 and name in row.answers]
    if not kept:
        return {"clips": 0}
    truth = np.array([row.label for row in kept])
    before, after = (np.array([row.answers[n] for row in kept]) for n in (AS_IS, name))
    people = [row.person for row in kept]
    change = paired_differences(truth, before, after, people, classes=classes, seed=seed)
    return {
        "clips": len(kept),
        "people": int(numbered(people).max()) + 1,
        "changed": sum(row.changed[name] for row in kept),
        "flipped": float((before != after).mean()),
        **_figures(truth, after, classes),
        AS_IS: _figures(truth, before, classes),
        "change": {ours: change[theirs]._asdict() for ours, theirs in FIGURES.items()},
    }


def attention_on(
    rows: Sequence[Row], layers: Sequence[str], framewise: Sequence[bool], *, frames: int, seed: int
) -> dict[str, Any]:
    """Where attention lies, over the clips with annotated onset, apex and offset.

    Shares from onset to offset count clips with sampled frames both inside and outside: where all
    lie inside, any importance does. Hits count clips of which some view reaches the apex; what they
    are worth depends on how much the places of apexes differ, so the best constant guess stands
    beside them.

    Args:
        layers: names of the framed layers; framewise: which have MiRA's core.
        frames: F, tubelets along time.

    Returns:
        `clips`, `informative`; `equal_hit`, 1 / F, hits of equal importance; `constant_hit`, of the
        one tubelet that would hit most of the same clips, None without any; `uniform`; `received`
        of plain attention: the mean over layers; `layers` each; and with MiRA's core `importance`,
        the mean over its layers, and `importance_over_received`, against plain attention's mean
        over the same layers.
    """
    there = [row for row in rows if row.attention is not None]
    own = [name for name, mira in zip(layers, framewise, strict=True) if mira]
    report: dict[str, Any] = {
        "clips": len(there),
        "without_marks": len(rows) - len(there),
        "informative": sum(_informative(row) for row in there),
        "equal_hit": 1 / frames,
        "constant_hit": _constant_hit(there, frames),
        "people": len(set(numbered([row.person for row in there]))),
    }
    if not there:
        return report
    measure = _Measure(there, seed)
    report["uniform"] = measure.uniform()
    report["received"] = measure.of("received", len(layers))
    report["layers"] = [
        {"name": name, "received": measure.of("received", i)}
        | ({"importance": measure.of("importance", own.index(name))} if name in own else {})
        for i, name in enumerate(layers)
    ]
    if own:
        report["importance"] = measure.of("importance", len(own))
        report["received_there"] = measure.of("received", len(layers) + 1)
        report["importance_over_received"] = measure.gap(len(own), len(layers) + 1)
    return report


class _Measure:
    """Means with intervals over clips that have attention."""

    def __init__(self, rows: Sequence[Row], seed: int):
        self._seed = seed
        self._people = np.array([row.person for row in rows], dtype=object)
        self._uniform = np.array([_attention(row).uniform for row in rows])
        self._informative = np.array([_informative(row) for row in rows])
        self._values = {
            (which, what): np.array([getattr(getattr(_attention(r), which), what) for r in rows])
            for which in ("importance", "received")
            for what in ("inside", "hit")
        }  # [n, layers and means]

    def uniform(self) -> dict[str, Any] | None:
        """What equal importance puts inside."""
        return self._mean(self._uniform, self._informative)

    def of(self, which: str, column: int) -> dict[str, Any]:
        """`inside`, `over_uniform` (how much more than equal importance), `hit`."""
        inside, hit = (self._values[which, what][:, column] for what in ("inside", "hit"))
        return {
            "inside": self._mean(inside, self._informative),
            "over_uniform": self._mean(inside - self._uniform, self._informative),
            "hit": self._mean(hit, ~np.isnan(hit)),
        }

    def gap(self, importance: int, received: int) -> dict[str, Any]:
        """Importance less what plain attention gives, of the same clips."""
        pairs = {
            what: self._values["importance", what][:, importance]
            - self._values["received", what][:, received]
            for what in ("inside", "hit")
        }
        return {
            "inside": self._mean(pairs["inside"], self._informative),
            "hit": self._mean(pairs["hit"], ~np.isnan(pairs["hit"])),
        }

    def _mean(self, values: np.ndarray, kept: np.ndarray) -> dict[str, Any] | None:
        if not kept.any():
            return None
        found = mean_interval(values[kept].tolist(), self._people[kept].tolist(), seed=self._seed)
        return found._asdict()


def _attention(row: Row) -> Any:
    assert row.attention is not None
    return row.attention


def _informative(row: Row) -> bool:
    return 0 < _attention(row).uniform < 1


def _constant_hit(rows: Sequence[Row], frames: int) -> float | None:
    """The most hits that always naming one tubelet gets, a clip's views shared as in `looked`."""
    reached = [apex for row in rows if (apex := _attention(row).apex)]
    shares = [np.bincount(apex, minlength=frames) / len(apex) for apex in reached]
    return float(np.mean(shares, axis=0).max()) if shares else None


def _figures(truth: np.ndarray, answers: np.ndarray, classes: int) -> dict[str, float]:
    cells = np.bincount(truth * classes + answers, minlength=classes**2)
    found = figures_of(cells.reshape(classes, classes).astype(np.float64))
    return {ours: float(found[theirs]) for ours, theirs in FIGURES.items()}
