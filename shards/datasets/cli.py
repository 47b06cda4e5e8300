"""`python -m shards datasets`: which there are, what each expects, and where to ask for it."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterator, Sequence

from shards.datasets import TABLE, dataset
from shards.datasets.contract import Dataset
from shards.ingest.inputs import InputError

WIDTH = 100
INDENT = 12


def main(argv: Sequence[str]) -> int:
    p = argparse.ArgumentParser(
        prog="python -m shards datasets", description="The data sets that ingest can read."
    )
    p.add_argument("name", nargs="?", help="say all about this one")
    name = p.parse_args(argv).name
    try:
        shown = [dataset(n) for n in ([name] if name else TABLE)]
    except InputError as error:
        print(f"datasets: {error}", file=sys.stderr)
        return 2
    for one in shown:
        print("\n".join(_short(one)))
    if name:
        print("\n".join(_more(shown[0])))
    else:
        print("\nAll about one: python -m shards datasets NAME")
        print("Ingest: python -m shards ingest --dataset NAME --root DIR --out DIR")
    return 0


def _short(one: Dataset) -> Iterator[str]:
    yield f"{one.name:<{INDENT}}{one.title}: {one.about}"
    for number, line in enumerate(one.layout):
        yield from _row("expects" if number == 0 else "", line)
    if not one.own:
        yield from _row("ask", one.ask)


def _more(one: Dataset) -> Iterator[str]:
    if one.licence:
        yield from _row("licence", one.licence)
    if one.classes:
        yield from _row("classes", ", ".join(one.classes))
    if one.honours:
        yield from _row("also", ", ".join(f"--{name}" for name in one.honours))
    if one.folds:
        yield from _row("folds", f"--fold 1 … {one.folds}; without, fold1 … as names of splits")
    for variant in one.variants:
        cropped = " (already cropped)" if variant.detector == "none" else ""
        yield from _row("variant", f"{variant.name}: {' or '.join(variant.folders)}{cropped}")
    for name, value in one.settings.items():
        yield from _row("setting", f"{name} {value}, unless given")
    for rule in one.rules:
        yield from _row("rule", rule)
    for patch in one.patches:
        marks = ", ".join(f"{n} → {v}" for n, v in patch.change.items()) or "left out"
        where = patch.clip or f"row {patch.row}"
        yield from _row(
            "patch", f"{patch.patch_id}: {where}: {marks}; {patch.why} [{patch.source}]"
        )


def _row(name: str, text: str) -> list[str]:
    lines = textwrap.wrap(
        text, WIDTH - 2 * INDENT, break_on_hyphens=False, break_long_words=False
    ) or [""]
    return [f"{'':<{INDENT}}{name if i == 0 else '':<{INDENT}}{t}" for i, t in enumerate(lines)]
