"""The picture of the temporal probes: what each manipulation costs, and where attention lies.

Owns its layout. It knows the report's numbers alone; matplotlib is imported where it is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DPI = 100
OURS, PLAIN, EVEN = "#c0392b", "#2471a3", "black"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write a PNG of `manipulations` and, where there is any, `attention`."""
    from matplotlib.figure import Figure

    attention = report.get("attention", {}).get("layers") or []
    shown = bool(attention) and attention[0]["received"]["inside"] is not None
    figure = Figure(figsize=(5.5 + 5 * shown, 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 1 + shown, squeeze=False)[0]
    _costs(panels[0], report["manipulations"])
    if shown:
        _layers(panels[1], report["attention"])
    figure.savefig(path)


def _costs(axes: Any, manipulations: dict[str, dict[str, Any]]) -> None:
    """The change of mean recall in points, with its interval."""
    costs = {name: cost for name, cost in manipulations.items() if cost["clips"]}
    for at, cost in enumerate(costs.values()):
        change = cost["change"]["uar"]
        axes.plot([100 * change["value"]], [at], "o", color=OURS)
        if change["low"] is not None:
            axes.plot([100 * change["low"], 100 * change["high"]], [at, at], color=OURS)
    axes.axvline(0, color=EVEN, linewidth=0.8, linestyle="--")
    words = [f"{n.replace('_', ' ')}\n{c['clips']} clips" for n, c in costs.items()]
    axes.set_yticks(range(len(costs)), words)
    axes.set_ylim(len(costs) - 0.5, -0.5)
    left, right = axes.get_xlim()
    axes.set_xlim(min(left, -5), max(right, 5))  # a change of nothing must not fill the picture
    axes.set_xlabel("change of mean recall, points, 95 % interval")
    axes.set_title("frames changed", fontsize=10)


def _layers(axes: Any, attention: dict[str, Any]) -> None:
    """Share of importance from onset to offset by layer, against equal shares."""
    layers = attention["layers"]
    rows = {"importance": ("MiRA frame importance", OURS, -0.08)}
    rows["received"] = ("plain attention received", PLAIN, 0.08)
    for which, (words, colour, shift) in rows.items():
        found = [(i, layer[which]["inside"]) for i, layer in enumerate(layers) if which in layer]
        at = [i + shift for i, _ in found]
        axes.plot(at, [100 * s["value"] for _, s in found], "o", color=colour, label=words)
        for x, (_, s) in zip(at, found, strict=True):
            if s["low"] is not None:
                axes.plot([x, x], [100 * s["low"], 100 * s["high"]], color=colour)
    even = 100 * attention["uniform"]["value"]
    axes.axhline(even, color=EVEN, linewidth=0.8, linestyle="--", label="equal shares")
    axes.set_xticks(range(len(layers)), [str(i + 1) for i in range(len(layers))])
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("attention layer")
    axes.set_ylabel("% from onset to offset")
    axes.margins(y=0.35)  # room for the legend
    axes.set_title(f"attention, {attention['informative']} clips", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
