"""Does a fine-tuned model use time, and does its attention look where the expression is?

Owns the command and what is written: `metrics.json`, `clips.csv` with a row a clip, `temporal.png`,
and the run in MLflow. What is asked is `task.py`, the figures are `report.py`.
Clips are sampled, cropped and viewed as in evaluation.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune.evaluation import check_labels, data_of, located
from finetune.history import cautions, stamp
from finetune.predictor import Predictor
from finetune.probes.manipulations import AS_IS
from finetune.probes.picture import draw
from finetune.probes.report import attention_on, cost_of
from finetune.probes.task import Row, TemporalMeter, TemporalTask
from finetune.reading import ReadingConfig, ledger_of, measured, open_once
from launch.cluster import ClusterConfig, WorkerContext
from launch.config import from_dict, parse_one
from launch.job import attached, command, drive, write_json
from launch.tracking import TrackingConfig
from shards.workers import WorkerDied


@dataclass(frozen=True)
class TemporalConfig(ReadingConfig):
    """Which model is asked about which clips."""

    seed: int = 0
    """Of the random orders of frames, and of the draws of people."""
    cluster: ClusterConfig = field(
        default_factory=lambda: ClusterConfig(workers=0, output="runs/temporal")
    )
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(experiment="temporal"))


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/temporal.py`."""
    about = "Ask a fine-tuned model about clips whose frames were changed, and where it looks."
    config = parse_one(TemporalConfig, argv, prog="launch/temporal.py", description=about)
    return command(lambda: run(config), told=(WorkerDied,))


def run(config: TemporalConfig) -> dict[str, Any]:
    """Fetch the model, ask it, print the figures; returns the summary."""
    with located(config) as (config, inputs, lost):
        result = drive(
            measure, config, seed=config.seed, inputs=inputs, publish=lambda *_: {}, lost=lost
        )
    tell(result)
    print(config.cluster.output)
    return result


def measure(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: ask about its clips; rank 0 writes what was found."""
    config = from_dict(TemporalConfig, payload["config"])
    predictor = Predictor.load(config.model, device=str(context.device))
    task = TemporalTask(predictor.model, predictor.config.outputs, seed=config.seed)
    output = Path(config.cluster.output)
    data = data_of(config, predictor, streams=context.world)
    data = replace(data, extra=(*data.extra, "marks"))
    with open_once(config, data, context, lost=payload["lost"]) as stream:
        labels = stream.labels
        check_labels(labels, predictor.config.labels)
        meter = TemporalMeter(stream, task)
        found = measured(config, task, stream, meter, context)
    result: dict[str, Any] = (
        stamp(config.model, predictor.config, config.split, payload["origin"]) | found
    )
    with attached(payload, context, files=[ledger_of(config)]) as tracker:
        if meter.rows is not None:
            result |= report(meter.rows, task, classes=len(labels), seed=config.seed)
            write_json(output / "metrics.json", result)
            write_rows(output / "clips.csv", meter.rows, task.names, labels)
            draw(result, output / "temporal.png")
            tracker.log(flat(result), 0)
            tracker.figure("temporal", str(output / "temporal.png"), 0)
            for name in ("metrics.json", "clips.csv"):
                tracker.log_file(str(output / name), "")
    return result


def report(rows: Sequence[Row], task: TemporalTask, *, classes: int, seed: int) -> dict[str, Any]:
    """`manipulations` by name, and `attention` of networks with framed layers.

    Raises:
        ValueError: no clip has a label.
    """
    costs = {n: cost_of(rows, n, classes=classes, seed=seed) for n in task.names}
    if not costs[AS_IS]["clips"]:
        raise ValueError(f"none of {len(rows)} clips has a label: check shards and split")
    result: dict[str, Any] = {AS_IS: costs.pop(AS_IS)[AS_IS], "manipulations": costs}
    if task.layers:
        result["attention"] = attention_on(
            rows,
            [layer.name for layer in task.layers],
            [layer.attention.core.framewise for layer in task.layers],
            frames=task.layers[0].attention.frames,
            seed=seed,
        )
    return result


def tell(result: dict[str, Any]) -> None:
    """Print what was found."""
    as_is = result[AS_IS]
    print(
        f"{result['clips']:.0f} clips ({result['coverage']:.1%} read), as they are: accuracy "
        f"{as_is['war']:.1%}, mean recall {as_is['uar']:.1%}, UF1 {as_is['uf1']:.3f}"
    )
    for caution in cautions(result):
        print(caution)
    for name, cost in result["manipulations"].items():
        if not cost["clips"]:
            print(f"  {name}: no clip allows it (it needs annotated marks, and frames outside)")
            continue
        print(
            f"  {name}: mean recall {cost['uar']:.1%}, {points(cost['change']['uar'])}; "
            f"{cost['flipped']:.0%} of {cost['clips']} clips answered differently"
        )
    attention = result.get("attention", {})
    if attention.get("informative"):
        even, equal = attention["uniform"]["value"], attention["equal_hit"]
        print(
            f"  from onset to offset: equal shares put {even:.1%} there, hit the apex {equal:.1%}"
        )
        if (constant := attention["constant_hit"]) is not None:
            print(f"    always the same tubelet, the best one, hits the apex {constant:.1%}")
        for which in ("importance", "received"):
            if found := attention.get(which):
                over = points(found["over_uniform"])
                print(f"    {which}: {100 * found['inside']['value']:.1f} %, {over}{hits(found)}")


def hits(found: dict[str, Any]) -> str:
    """How often the most important tubelet holds the apex."""
    return "" if found["hit"] is None else f"; hits the apex {found['hit']['value']:.1%}"


def points(change: dict[str, Any]) -> str:
    """A difference of shares in points, with its interval."""
    told = f"{100 * change['value']:+.1f} points"
    if change["low"] is None:
        return f"{told} (one person: no interval)"
    return f"{told} ({100 * change['low']:+.1f} … {100 * change['high']:+.1f})"


def flat(result: dict[str, Any]) -> dict[str, float]:
    """The figures for MLflow."""
    found = {f"{AS_IS}/{name}": value for name, value in result[AS_IS].items()}
    for name, cost in result["manipulations"].items():
        found |= {f"{name}/{f}": cost[f] for f in ("war", "uar", "uf1") if f in cost}
    for which in ("importance", "received"):
        reading = result.get("attention", {}).get(which, {})
        found |= {f"{which}/{what}": v["value"] for what, v in reading.items() if v is not None}
    if (constant := result.get("attention", {}).get("constant_hit")) is not None:
        found["constant_hit"] = constant
    return found | {name: result[name] for name in ("clips", "unread", "coverage")}


def write_rows(
    path: Path, rows: Sequence[Row], names: Sequence[str], labels: Sequence[str]
) -> None:
    """A row a clip: its answer under every manipulation, where attention lay, and `apex_place`, the
    tubelet that holds the apex, of the first view that reaches it."""
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w", newline="") as file:
        table = csv.writer(file)
        looks = ("uniform", "inside", "hit", "apex_place")
        table.writerow(["dataset", "key", "subject", "label", *names, *looks])
        for row in rows:
            answers = [labels[row.answers[n]] if n in row.answers else "" for n in names]
            truth = labels[row.label] if row.label >= 0 else ""
            looked = row.attention
            where = [""] * len(looks)
            if looked is not None:  # the mean over MiRA's layers; of a plain network over all
                mean = looked.importance if len(looked.importance.inside) else looked.received
                last = [mean.inside[-1], mean.hit[-1]]
                first = str(looked.apex[0]) if looked.apex else ""
                where = [*(f"{x:.4f}" for x in (looked.uniform, *last)), first]
            table.writerow([row.dataset, row.key, row.person or "", truth, *answers, *where])
    aside.replace(path)
