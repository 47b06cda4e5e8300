"""The figures of `benchmarks.recognition`: what networks said of their test clips, as rows.

Owns what is compared with what. It trains nothing and reads no videos.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.bootstrap import Interval, figures_interval, figures_of, mean_interval
from finetune.bootstrap import paired_differences as paired

AGAINST = {"mira_exact": "plain", "mira_flashlite": "plain", "hsta_flashlite": "hsta"}
"""Networks that differ in nothing but attention, and the one they are compared with."""


@dataclass(frozen=True)
class Told:
    """What one training of a network said of a clip it was not trained on."""

    seed: int
    fold: str
    clip: str
    subject: str
    label: str
    strength: str
    as_is: str
    shuffled: str = ""
    """Of its frames in a random order; "" for a network without frames."""
    spotted: str = ""
    """With onset and apex spotted in the frames; "" for a network that needs none."""
    uniform: float | None = None
    inside: float | None = None
    hit: float | None = None
    apex: str = ""
    """The tubelet that holds the apex, by its place; "" where none does."""


def read(fold: Path, *, seed: int, strengths: Mapping[str, str]) -> list[Told]:
    """A fold's `clips.csv` of the temporal probe and, where there are such, its answers with
    spotted onset and apex."""
    spotted: dict[str, str] = {}
    if (file := fold / "spotted" / "predictions.csv").is_file():
        spotted = {row["key"]: row["prediction"] for row in _rows(file)}
    return [
        Told(
            seed=seed,
            fold=fold.name,
            clip=row["key"],
            subject=row["subject"],
            label=row["label"],
            strength=strengths[row["key"]],
            as_is=row["as_is"],
            shuffled=row.get("shuffled", ""),
            spotted=spotted.get(row["key"], ""),
            uniform=_number(row["uniform"]),
            inside=_number(row["inside"]),
            hit=_number(row["hit"]),
            apex=row["apex_place"],
        )
        for row in _rows(fold / "temporal" / "clips.csv")
    ]


def rows_of(
    told: Mapping[str, Sequence[Told]], strengths: Sequence[str]
) -> dict[str, list[dict[str, object]]]:
    """For every network a row of all strengths together and one for each."""
    found: dict[str, list[dict[str, object]]] = {}
    for model in told:
        base = told.get(AGAINST.get(model, ""))
        found[model] = [_figures("all", told[model], base)]
        for strength in strengths:
            mine, theirs = (
                None if part is None else [t for t in part if t.strength == strength]
                for part in (told[model], base)
            )
            found[model].append(_figures(strength, mine or [], theirs))
    return found


def _figures(strength: str, told: Sequence[Told], base: Sequence[Told] | None) -> dict[str, object]:
    """Means over seeds with intervals over people and seeds, and what they are worth; where the
    network looks; what the order of frames and given marks are worth."""
    asked = Answers(told)
    matrix = np.diag(np.bincount(asked.truth, minlength=len(asked.labels)))
    always = np.zeros_like(matrix)
    always[:, matrix.sum(1).argmax()] = matrix.sum(1)
    figures = figures_interval(asked.truth, asked.of("as_is"), asked.people, **asked.fixed)
    each = asked.uf1()
    found: dict[str, object] = {"strength": strength, "clips": len(asked.truth)}
    found |= {"people": len(set(asked.people)), "seeds": len(each)}
    found |= {"commonest_uf1": f"{figures_of(always.astype(float))['f1']:.4f}"}
    for name, theirs in (("uf1", "f1"), ("uar", "uar"), ("war", "war")):
        found |= _interval(name, figures[theirs])
    found |= {"uf1_worst_seed": f"{min(each):.4f}", "uf1_best_seed": f"{max(each):.4f}"}
    found |= _interval("change", None if base is None else _change(asked, Answers(base)))
    for name in ("shuffled", "spotted"):
        found |= _interval(name, _after(asked, name))
    for name in ("hit", "inside", "uniform"):
        found |= _interval(name, asked.mean(name))
    return found | {"constant_hit": _constant(told)}


class Answers:
    """The answers of R trainings to the same n clips.

    Raises ValueError where a training did not answer every clip.
    """

    def __init__(self, told: Sequence[Told]):
        self._by = {(t.seed, t.clip): t for t in told}
        self.seeds = sorted({t.seed for t in told})
        self.clips = sorted({t.clip for t in told})
        if len(self._by) != len(self.seeds) * len(self.clips):
            raise ValueError(
                f"{len(self.seeds)} trainings gave {len(self._by)} answers to {len(self.clips)} "
                "clips: each has to answer every clip once"
            )
        first = [self._by[self.seeds[0], clip] for clip in self.clips]
        self.labels = sorted({t.label for t in first})
        self._at = {label: i for i, label in enumerate(self.labels)}
        self.truth = np.array([self._at[t.label] for t in first])
        self.people = [t.subject for t in first]
        self.fixed: dict[str, Any] = {"classes": len(self.labels), "seed": 0}

    def has(self, name: str) -> bool:
        """Whether every answer of a field is there."""
        return all(getattr(t, name) for t in self._by.values())

    def uf1(self) -> list[float]:
        """Of each training."""
        count = len(self.labels)
        cells = [self.truth * count + told for told in self.of("as_is")]
        matrices = [np.bincount(one, minlength=count**2).reshape(count, count) for one in cells]
        return [float(figures_of(matrix.astype(float))["f1"]) for matrix in matrices]

    def mean(self, name: str) -> Interval | None:
        """Of a number, over the clips of which every training has one; None without such."""
        each = [[getattr(self._by[s, clip], name) for s in self.seeds] for clip in self.clips]
        known = [(row, who) for row, who in zip(each, self.people, strict=True) if None not in row]
        if not known:
            return None
        rows, people = zip(*known, strict=True)
        return mean_interval(np.array(rows).T, people, seed=0)

    def of(self, name: str) -> NDArray[np.int64]:
        """int64 [R, n]: the answers that a field of `Told` holds."""
        rows = [[self._by[s, clip] for clip in self.clips] for s in self.seeds]
        return np.array([[self._at[getattr(t, name)] for t in row] for row in rows])


def _change(mine: Answers, base: Answers) -> Interval:
    """UF1 less that of the network it is compared with, on the same clips, people and seeds."""
    if (mine.clips, mine.seeds) != (base.clips, base.seeds):
        raise ValueError("two networks were asked about other clips or trained with other seeds")
    before, after = base.of("as_is"), mine.of("as_is")
    return paired(mine.truth, before, after, mine.people, **mine.fixed)["f1"]


def _after(asked: Answers, name: str) -> Interval | None:
    """By how much UF1 changes when the clips are shown in another way."""
    if not asked.has(name):
        return None
    before, after = asked.of("as_is"), asked.of(name)
    return paired(asked.truth, before, after, asked.people, **asked.fixed)["f1"]


def _constant(told: Sequence[Told]) -> str:
    """How often the apex lies in the tubelet where it lies most: a hit without looking."""
    places = [t.apex for t in told if t.apex]
    return f"{max(Counter(places).values()) / len(places):.4f}" if places else ""


def _interval(name: str, found: Interval | None) -> dict[str, object]:
    value, low, high = found or (None, None, None)
    each = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {key: "" if number is None else f"{number:.4f}" for key, number in each.items()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _number(text: str) -> float | None:
    return float(text) if text not in ("", "nan") else None
