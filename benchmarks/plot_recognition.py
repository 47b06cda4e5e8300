"""Draw docs/study.png and write the tables of docs/study.md from the newest rows of a CSV.

    python -m benchmarks.plot_recognition [--rows FILE.csv] [--out FILE.png] [--docs FILE.md]

UF1 over the strength of the expressions, a line a network with its interval over people and seeds.
It measures nothing.
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.recognition_figures import AGAINST

RESULTS = Path(__file__).parent / "results" / "recognition.csv"
PICTURE = Path(__file__).parents[1] / "docs" / "study.png"
DOCS = Path(__file__).parents[1] / "docs" / "study.md"
BEGIN, END = "<!-- rows: written by benchmarks.plot_recognition -->", "<!-- end of rows -->"
COLOURS = {
    "plain": "#555555",
    "mira_exact": "#c8501e",
    "mira_flashlite": "#1f5fbf",
    "hsta": "#3a8f4d",
    "hsta_flashlite": "#8fbf3a",
    "facesleuth": "#8a4fbf",
}
Rows = list[dict[str, str]]


def newest(rows: Rows, scale: str) -> dict[str, dict[str, dict[str, str]]]:
    """Network → strength → its last row at a scale. ValueError where their budgets differ."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["scale"] == scale:
            found.setdefault(row["model"], {})[row["strength"]] = row
    last = [row for by_strength in found.values() for row in by_strength.values()]
    for name in ("device", "torch", "steps", "batch", "folds"):
        if len(values := sorted({row[name] for row in last})) > 1:
            raise ValueError(
                f"the newest rows differ in {name} ({', '.join(values)}): run all anew"
            )
    return found


def picture(rows: Rows, out: Path, *, scale: str) -> None:
    """Draw the lines into a PNG."""
    found = newest(rows, scale)
    figure, axes = pyplot.subplots(figsize=(9.5, 4.8))
    strengths = [s for s in next(iter(found.values())) if s != "all"]
    for number, (model, by_strength) in enumerate(found.items()):
        x = [i + (number - len(found) / 2) * 0.07 for i in range(len(strengths))]
        y = [float(by_strength[s]["uf1"]) for s in strengths]
        ends = ("uf1_low", "uf1_high")
        low, high = ([float(by_strength[s][end]) for s in strengths] for end in ends)
        below, above = (
            [b - a for a, b in zip(low, y, strict=True)],
            [a - b for a, b in zip(high, y, strict=True)],
        )
        axes.errorbar(
            x, y, [below, above], label=model, color=COLOURS[model], marker="o", capsize=3
        )
    commonest = [float(next(iter(found.values()))[s]["commonest_uf1"]) for s in strengths]
    axes.plot(range(len(strengths)), commonest, color="#aaaaaa", linestyle=":", zorder=0)
    axes.annotate(
        "always the commonest class",
        (0, commonest[0]),
        color="#888888",
        va="top",
        xytext=(0, -4),
        textcoords="offset points",
    )
    axes.set_xticks(range(len(strengths)), strengths)
    axes.set_xlabel("strength of the expression (1: full; 0.3 and 0.15: brief and faint)")
    axes.set_ylabel("UF1, people not trained on")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(found), loc="lower center", bbox_to_anchor=(0.5, 1))
    figure.tight_layout()
    figure.savefig(out, dpi=130)


def tables(rows: Rows, *, scale: str) -> str:
    """Markdown: recognition, then where the networks look and what the order of frames is worth."""
    found = newest(rows, scale)
    first = next(iter(found.values()))["all"]
    strengths = [s for s in next(iter(found.values())) if s != "all"]
    text = f"{first['device']}, torch {first['torch']}, {first['date']}; {first['clips']} clips of "
    text += f"{first['people']} people, {first['folds']} folds by person; "
    text += (
        f"{first['first_steps']} steps on {first['first_people']} others at full strength, then "
    )
    text += f"{first['steps']}, of {first['batch']} clips. Intervals: 95 % over people and "
    text += f"seeds. Always the commonest class: UF1 {float(first['commonest_uf1']):.2f}.\n\n"
    text += _head(
        *("network", "told of a test clip", "parameters", "seeds", "s a fold, at best"),
        "UF1",
        "worst … best seed",
        *("UAR", *(f"UF1 at {s}" for s in strengths)),
    )
    for model, by in found.items():
        row = by["all"]
        cells = [
            model,
            row["told"] or "its frames alone",
            f"{int(row['parameters']) / 1e6:.2f} M",
            row["seeds"],
            row["seconds_a_fold"],
            _figure(row, "uf1"),
            f"{float(row['uf1_worst_seed']):.2f} … {float(row['uf1_best_seed']):.2f}",
            f"{float(row['uar']):.2f}",
        ]
        text += _line([*cells, *(_figure(by[s], "uf1") for s in strengths)])
    text += "\n" + _head("change of UF1", "all", *(f"at {s}" for s in strengths))
    for model, by in found.items():
        if by["all"]["change"]:
            cells = [_figure(row, "change", signed=True) for row in by.values()]
            text += _line([f"{model}, against {AGAINST[model]}", *cells])
    for name, what in (("spotted", "onset and apex spotted"), ("shuffled", "frames shuffled")):
        for model, by in found.items():
            if by["all"][name]:
                cells = [_figure(row, name, signed=True) for row in by.values()]
                text += _line([f"{model}, {what}", *cells])
    text += "\n" + _head(
        *("network", "apex hit", "best constant guess", "importance from onset to offset"),
        "equal shares put there",
    )
    for model, by in found.items():
        row = by["all"]
        if row["hit"]:
            hit, *rest = (_figure(row, n) for n in ("hit", "inside", "uniform"))
            text += _line([model, hit, f"{float(row['constant_hit']):.2f}", *rest])
    return text + "\n"


def _figure(row: dict[str, str], name: str, *, signed: bool = False) -> str:
    """A figure with its interval; a dash where there is none."""
    if not row[name]:
        return "–"
    form = "{:+.2f}" if signed else "{:.2f}"
    value, low, high = (
        form.format(float(row[key])) for key in (name, f"{name}_low", f"{name}_high")
    )
    return f"{value} ({low} … {high})"


def _head(*names: str) -> str:
    return _line(list(names)) + "|---" * len(names) + "|\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def main() -> None:
    """Draw the picture and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--docs", type=Path, default=DOCS, help="file whose tables are replaced")
    parser.add_argument("--scale", default="small")
    options = parser.parse_args()
    with options.rows.open(newline="") as file:
        rows = list(csv.DictReader(file))
    picture(rows, options.out, scale=options.scale)
    before, _, rest = options.docs.read_text().partition(BEGIN)
    written = tables(rows, scale=options.scale)
    options.docs.write_text(before + BEGIN + "\n\n" + written + END + rest.partition(END)[2])
    print(options.out, options.docs)


if __name__ == "__main__":
    main()
