"""`predictions.csv`: what a network said of every clip, and what is known of it.

Owns the form of the table. It knows no network and no loop.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from finetune.outputs import AFFECT, Outputs

Row = tuple[str, str, int, list[float], list[float]]
"""Of a clip: data set and key, label (-1 unknown), answers [O], then annotated units and affect
(NaN unknown)."""


def write_rows(folder: Path, outputs: Outputs, found: Sequence[Row]) -> None:
    """Write the table of some clips; a stopped process leaves none half-written."""
    aside = folder / ".predictions.csv.writing"
    with aside.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns(outputs))
        for dataset, key, label, answers, truth in found:
            known = ["" if math.isnan(value) else f"{value:g}" for value in truth]
            named = verdict(outputs.labels, label, answers)
            rows.writerow([dataset, key, *named, *(f"{value:.6f}" for value in answers), *known])
    aside.replace(folder / "predictions.csv")


def columns(outputs: Outputs) -> list[str]:
    """Of `predictions.csv`: a class by its name, what is annotated with `true` before it."""
    told = [*(f"unit {name}" for name in outputs.units), *(AFFECT if outputs.affect else ())]
    classes = ["label", "prediction", *outputs.labels] if outputs.labels else []
    return ["dataset", "key", *classes, *told, *(f"true {name}" for name in told)]


def verdict(labels: Sequence[str], label: int, answers: Sequence[float]) -> list[str]:
    """The true class, empty where unknown, and the likeliest; nothing where none is told."""
    if not labels:
        return []
    best = max(range(len(labels)), key=answers.__getitem__)
    return [labels[label] if label >= 0 else "", labels[best]]
