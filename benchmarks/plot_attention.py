"""Draw docs/attention.png and write the tables of docs/kernels.md from the newest rows of a CSV.

    python -m benchmarks.plot_attention [--rows FILE.csv] [--out FILE.png] [--docs FILE.md]

One row of panels a device: time forward, time forward and backward, peak memory, each as a multiple
of PyTorch's attention without bias, over the number of tokens. It measures nothing.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.attention_check import Case, parse

RESULTS = Path(__file__).parent / "results" / "attention.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "attention.png"
DOCS = Path(__file__).parents[1] / "docs" / "kernels.md"
BEGIN, END = "<!-- rows: written by benchmarks.plot_attention -->", "<!-- end of rows -->"
PANELS = (
    ("forward", "p50_ms", "time forward"),
    ("forward+backward", "p50_ms", "time forward + backward"),
    ("forward+backward", "peak_bytes", "peak memory, forward + backward"),
)
BLUE, ORANGE, GREEN = "#1f5fbf", "#c8501e", "#3a8f4d"
STYLES: dict[str, dict[str, Any]] = {
    "published exact": {"color": ORANGE, "linestyle": "--", "alpha": 0.6, "marker": "o"},
    "ours exact": {"color": ORANGE, "marker": "o", "linewidth": 2.4},
    "published flashlite": {"color": BLUE, "linestyle": "--", "alpha": 0.6, "marker": "s"},
    "flex with bias": {"color": GREEN, "linestyle": ":", "marker": "^"},
    "ours flashlite": {"color": BLUE, "marker": "s", "linewidth": 2.4},
    "ours flashlite, kernel alone": {"color": BLUE, "linestyle": ":", "marker": ".", "alpha": 0.9},
}
Rows = list[dict[str, str]]
Found = dict[tuple[str, str, str], dict[str, str]]
"""(case, contestant, direction) → row."""


def newest(rows: Rows) -> dict[str, Found]:
    """Device → the last rows of the device's last date."""
    found: dict[str, Found] = {}
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        last = max(row["date"] for row in own)
        found[device] = {
            (row["case"], row["contestant"], row["direction"]): row
            for row in own
            if row["date"] == last
        }
    return found


def drawn(cases: set[str]) -> list[Case]:
    """The cases of the picture: of the precision that reaches the most tokens, bf16 if both do."""
    return max(
        (largest_batches(cases, precision) for precision in ("bf16", "fp32")),
        key=lambda found: found[-1].tokens if found else 0,
    )


def largest_batches(cases: set[str], precision: str) -> list[Case]:
    """One case for each number of tokens: 12 heads of 64, the largest batch."""
    parsed = [case for case in map(parse, cases) if (case.heads, case.dim) == (12, 64)]
    best: dict[int, Case] = {}
    for case in parsed:
        if case.precision == precision and case.batch >= getattr(best.get(case.tokens), "batch", 0):
            best[case.tokens] = case
    return [best[tokens] for tokens in sorted(best)]


def panel(
    axes: Axes,
    rows: Found,
    cases: list[Case],
    direction: str,
    column: str,
) -> None:
    """Lines of one quantity; a band from p20 to p80 where it is a time."""
    axes.axhline(1.0, color="#333333", linewidth=1.2)
    highest = 1.5
    for name, style in STYLES.items():
        x, y, low, high = [], [], [], []
        for case in cases:
            row = rows.get((str(case), name, direction))
            base = rows.get((str(case), "sdpa", direction))
            if row is None or base is None:
                continue
            unit = float(base[column])
            x.append(case.tokens)
            y.append(float(row[column]) / unit)
            if column == "p50_ms":
                low.append(float(row["p20_ms"]) / unit)
                high.append(float(row["p80_ms"]) / unit)
        if x:
            axes.plot(x, y, label=name, markersize=5, **{"linewidth": 1.5} | style)
            highest = max(highest, *y)
            if low:
                axes.fill_between(x, low, high, color=style["color"], alpha=0.10, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator([case.tokens for case in cases]))
    steps = [v for v in (0.5, 1, 1.5, 2, 3, 5, 10, 20, 40, 80, 160) if v <= highest * 1.3]
    axes.yaxis.set_major_locator(FixedLocator(steps))
    axes.set_ylim(0.8, highest * 1.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)


def picture(rows: Rows, out: Path) -> None:
    """Draw all devices of some rows into a PNG; ValueError if there is nothing to draw."""
    devices = {
        device: found
        for device, found in newest(rows).items()
        if drawn({case for case, _, _ in found})
    }
    if not devices:
        raise ValueError("no row of 12 heads × 64 in fp32 or bf16, which is what the picture shows")
    height = 4.2 * len(devices) + 0.5
    figure, grid = pyplot.subplots(len(devices), 3, figsize=(12.5, height), squeeze=False)
    for line, (device, found) in zip(grid, devices.items(), strict=True):
        cases = drawn({case for case, _, _ in found})
        row = next(iter(found.values()))
        batches = ", ".join(str(case.batch) for case in cases)
        batches = batches if len({case.batch for case in cases}) > 1 else str(cases[0].batch)
        setting = f"{cases[0].precision}, batch {batches}, 12 heads × 64"
        where = f"{device}, torch {row['torch']}, {row['date']}: {setting}"
        for axes, (direction, column, title) in zip(line, PANELS, strict=True):
            panel(axes, found, cases, direction, column)
            axes.set_title(title, fontsize=11, loc="left")
            axes.set_xlabel("tokens")
        line[0].set_ylabel("× SDPA without bias")
        line[0].annotate(where, (0, 1.12), xycoords="axes fraction", fontsize=12, fontweight="bold")
    lines, labels = grid[-1, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="lower center", ncols=6, frameon=False, fontsize=10)
    edges = {"bottom": 1.05 / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(left=0.06, right=0.985, wspace=0.17, hspace=0.42, **edges)
    figure.savefig(out, dpi=130)


def tables(rows: Rows) -> str:
    """Markdown: a table a device, fp32 and bf16."""
    devices = newest(rows)
    text = ""
    if not any(row["clock"] == "events" for row in rows):
        text += "GPU: not measured on a GPU yet.\n\n"
    for device, found in devices.items():
        row = next(iter(found.values()))
        where = f"{device}, threads: {row['threads']}" if row["clock"] != "events" else device
        text += f"{where}, torch {row['torch']}, triton {row['triton']}, {row['date']}"
        text += ", processor time" if row["clock"] == "cpu" else ""
        text += "; medians, × SDPA without bias in brackets:\n\n"
        text += "| case | | forward, ms | forward + backward, ms | peak memory, MiB |\n"
        text += "|---|---|---|---|---|\n"
        measured = {case for case, _, _ in found}
        for case in [c for p in ("fp32", "bf16") for c in largest_batches(measured, p)]:
            names = [name for c, name, way in found if c == str(case) and way == "forward"]
            for name in names:
                text += f"| {case} | {name} | {cells(found, str(case), name)} |\n"
        text += "\n"
    return text


def cells(found: Found, case: str, name: str) -> str:
    """Times forward, forward and backward, and peak memory, of a contestant; a dash if none."""
    empty = dict.fromkeys(("p50_ms", "ratio_turns_p50", "peak_bytes", "peak_ratio"), "nan")
    forward, both = (found.get((case, name, way), empty) for way in ("forward", "forward+backward"))
    times = [
        f"{milliseconds(r['p50_ms'])} ({float(r['ratio_turns_p50']):.2f})" for r in (forward, both)
    ]
    peak = f"{float(both['peak_bytes']) / 2**20:.0f} ({float(both['peak_ratio']):.2f})"
    return " | ".join((*times, peak)).replace("nan (nan)", "–")


def milliseconds(value: str) -> str:
    """Three digits, or all before the point."""
    return f"{float(value):.0f}" if float(value) >= 100 else f"{float(value):.3g}"


def main() -> None:
    """Draw the picture and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--docs", type=Path, default=DOCS, help="file whose tables are replaced")
    options = parser.parse_args()
    with options.rows.open(newline="") as file:
        rows = list(csv.DictReader(file))
    picture(rows, options.out)
    before, _, rest = options.docs.read_text().partition(BEGIN)
    options.docs.write_text(before + BEGIN + "\n\n" + tables(rows) + END + rest.partition(END)[2])
    print(options.out, options.docs)


if __name__ == "__main__":
    main()
