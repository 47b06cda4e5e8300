"""`python -m shards plan`: the plan as a table for people, or as JSON.

Exit status: 0 it works, with or without warnings; 1 something cannot work; 2 the request is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from shards.config import DataConfig
from shards.plan import plan
from shards.plan.finding import Demand, Finding
from shards.wording import visible

STYLES = {"ok": "green", "warning": "yellow", "cannot": "bold red"}
NARROW = 120  # of a table that goes to a file
LARGEST = 1_000_000


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m shards plan",
        description="Do these shards feed that many GPUs? What is missing, and what to set.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("dirs", nargs="+", metavar="DIR", help="folder of shards, or its URL")
    p.add_argument("--gpus", type=_positive, default=64, help="training workers, one GPU each")
    p.add_argument("--gpus-per-node", type=_positive, default=8, help="of them on one machine")
    p.add_argument(
        "--clips-per-second",
        type=_rate,
        default=1000.0,
        help="that all GPUs together can train on, every view of a clip counted",
    )
    p.add_argument("--streams", type=_positive, default=64, help="data.streams")
    p.add_argument("--global-batch", type=_positive, metavar="N", help="run.global_batch")
    p.add_argument("--split", help="data.split; all clips if left out")
    p.add_argument("--splits", metavar="FILE", help="data.splits: CSV of each clip's split")
    p.add_argument(
        "--weights", type=_rate, nargs="+", metavar="W", help="data.weights, one a folder"
    )
    p.add_argument("--balance", type=_rate, help="data.balance: 1 makes classes equal")
    p.add_argument("--repeats", type=_positive, default=1, help="data.repeats: views a clip")
    p.add_argument("--frames", type=_frames, default=16, help="data.frames, 0 with --pair alone")
    p.add_argument("--stride", type=_positive, default=4, help="data.stride")
    p.add_argument("--size", type=_positive, default=224, help="data.size")
    p.add_argument("--pair", action="store_true", help="data.pair: onset and apex of every clip")
    p.add_argument("--seconds", type=_rate, default=3.0, help="how long to measure decoding")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    try:
        data = DataConfig(
            shards=tuple(args.dirs),
            split=args.split,
            splits=args.splits,
            pair=args.pair,
            weights=None if args.weights is None else tuple(args.weights),
            balance=args.balance,
            repeats=args.repeats,
            streams=args.streams,
            frames=args.frames,
            stride=args.stride,
            size=args.size,
        )
    except ValueError as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    demand = Demand(args.gpus, args.gpus_per_node, args.clips_per_second, args.global_batch)
    try:
        findings = plan(data, demand, seconds=args.seconds)
    except OSError as error:
        print(f"plan: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"verdict": worst(findings), "findings": [asdict(f) for f in findings]}))
    else:
        _print(findings)
    return 1 if worst(findings) == "cannot" else 0


def worst(findings: Sequence[Finding]) -> str:
    """The verdict on the whole."""
    seen = {finding.verdict for finding in findings}
    return next((verdict for verdict in ("cannot", "warning") if verdict in seen), "ok")


def _print(findings: Sequence[Finding]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=NARROW)
    table = Table(box=SIMPLE_HEAD, expand=False, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found and fix", overflow="fold")
    table.add_column("verdict", no_wrap=True)
    part = ""
    for finding in findings:
        told = [Text(visible(finding.found))]  # Text: names of files are no markup
        if finding.verdict != "ok" and finding.fix:
            told.append(Text(f"→ {visible(finding.fix)}", style=STYLES[finding.verdict]))
        if part and finding.part != part:
            table.add_section()
        table.add_row(
            finding.part if finding.part != part else "",
            finding.about,
            Group(*told),
            Text(finding.verdict, style=STYLES[finding.verdict]),
        )
        part = finding.part
    console.print(table)
    counts = Counter(finding.verdict for finding in findings)
    names = {"cannot": "cannot work", "warning": "to look at", "ok": "in order"}
    told = ", ".join(f"{counts[v]} {name}" for v, name in names.items() if counts[v])
    console.print(Text(told, style=STYLES[worst(findings)]))


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {LARGEST:,}")
    return int(text)


def _frames(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value
