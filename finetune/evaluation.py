"""Evaluation of a registered or local classifier on a split of shards.

Owns what is written: `metrics.json`, `predictions.csv`, a confusion matrix, and the run in MLflow.
Clips are sampled, cropped and viewed as the predictor's own configuration says. The loop is
`launch/engine.py`, the figures are `metrics.py`.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from finetune.metrics import ClassificationMeter, LabelledBatch
from finetune.mixing import MixConfig
from finetune.pictures import confusion_matrix_picture
from finetune.predictor import Predictor
from finetune.task import ClassifyTask
from launch.cluster import ClusterConfig, WorkerContext
from launch.config import absolute_paths, from_dict
from launch.engine import evaluate
from launch.job import attached, command, drive, write_json
from launch.registry import fetch
from launch.store import store_uri
from launch.tracking import TrackingConfig
from shards.cache import DEFAULT_GB
from shards.ledger import Ledger
from shards.stream import DataConfig, TooManyFailures, open_clips, open_collection
from shards.workers import WorkerDied


@dataclass(frozen=True)
class EvaluateConfig:
    """Which model is measured on which clips."""

    model: str = ""
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder that fine-tuning wrote."""
    shards: tuple[str, ...] = ()
    """Shard folders: paths, or URLs."""
    split: str | None = "test"
    """The split that is measured; None takes every clip."""
    batch: int = 8
    """Clips a worker computes at once."""
    loader_workers: int = 2
    """Processes that decode, of each worker; 0 decodes in the worker itself."""
    max_failed_share: float = 0.01
    """The evaluation stops when more than this share of the clips cannot be read."""
    cache: str | None = None
    """Local folder for shards from a URL; None is ~/.cache/mira-video/shards."""
    cache_gb: float = DEFAULT_GB
    """Size it never exceeds."""
    cluster: ClusterConfig = field(
        default_factory=lambda: ClusterConfig(workers=0, output="runs/evaluate")
    )
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(experiment="evaluate"))

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}: use 1 or more")


class RecordingMeter(ClassificationMeter):
    """Counts, and keeps each clip's probabilities."""

    def __init__(self, labels: Sequence[str]):
        super().__init__(len(labels), labels)
        self.rows: list[tuple[str, int, list[float]]] = []
        """Key, label (-1 unknown), probabilities: this rank's clips, then those of all ranks."""

    def update(self, output: Tensor, batch: LabelledBatch) -> None:
        """Count one micro-batch; arguments as in `ClassificationMeter`."""
        super().update(output, batch)
        weights, labels = batch.weights.tolist(), batch.labels.tolist()
        for key, weight, label, row in zip(
            batch.keys, weights, labels, output.tolist(), strict=True
        ):
            if weight > 0:
                self.rows.append((key, label, row))

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures over all ranks; gathers the rows of all ranks, in order of their keys."""
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, self.rows)
        self.rows = sorted(row for rows in everyone for row in rows)
        return super().compute(reduce)


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/evaluate.py`."""
    about = "Measure a fine-tuned model on a split of shards."
    config = tyro.cli(EvaluateConfig, prog="launch/evaluate.py", description=about, args=list(argv))
    return command(lambda: run(config), told=(TooManyFailures, WorkerDied))


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Fetch the model, measure it, print the figures; returns the summary."""
    config = absolute_paths(config, "shards", "cache", "cluster.output")
    if not config.model:
        raise ValueError("model is empty: name one with --model models:/NAME@ALIAS or a folder")
    inputs = check_shards(config)
    output = Path(config.cluster.output)
    uri = store_uri(config.tracking.uri, str(output))
    local = fetch(config.model, uri=uri, into=output / ".fetched")
    config = replace(config, model=str(local.absolute()))
    result = drive(measure, config, seed=0, inputs=inputs, publish=lambda *_: {})
    chance = 1 / len(result["labels"])
    which = f"split {config.split}" if config.split else "all splits"
    print(
        f"{result['clips']:.0f} clips of {which} ({result['coverage']:.1%} answered): "
        f"accuracy {result['war']:.1%}, mean recall {result['uar']:.1%}, "
        f"F1 {result['f1']:.3f}; chance {chance:.1%}; {output}"
    )
    return result


def measure(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: predict its clips; rank 0 writes what was found."""
    config = from_dict(EvaluateConfig, payload["config"])
    predictor = Predictor.load(config.model, device=str(context.device))
    task = ClassifyTask(predictor.model, MixConfig())
    meter = RecordingMeter(predictor.config.labels)
    batch = config.batch * context.world
    with open_clips(
        data_of(config, predictor, streams=context.world),
        global_batch=batch,
        micro_batch=config.batch,
        rank=context.rank,
        world=context.world,
        train=False,
        ledger=Ledger(Path(config.cluster.output, "ledger.jsonl"), rank=context.rank),
    ) as stream:
        check_labels(stream.labels, predictor.config.labels)
        found = evaluate(task, stream, meter, context=context)
    result = {"labels": list(predictor.config.labels), **found}
    ledger = Path(config.cluster.output, "ledger.jsonl")
    with attached(payload, context, files=[ledger]) as tracker:
        tracker.log({f"{config.split or 'all'}/{name}": value for name, value in found.items()}, 0)
        if context.rank == 0:
            write(meter, result, Path(config.cluster.output))
            image = confusion_matrix_picture(meter.confusion, meter.labels)
            tracker.figure(f"confusion_{config.split or 'all'}", image, 0)
            tracker.log_file(str(Path(config.cluster.output, "predictions.csv")), "")
    return result


def data_of(config: EvaluateConfig, predictor: Predictor, *, streams: int) -> DataConfig:
    """The clips as the predictor's own configuration samples and views them."""
    own = predictor.config
    return DataConfig(
        shards=config.shards,
        split=config.split,
        streams=streams,
        frames=own.encoder.frames,
        stride=own.stride,
        size=own.encoder.image_size,
        loader_workers=config.loader_workers,
        max_failed_share=config.max_failed_share,
        cache=config.cache,
        cache_gb=config.cache_gb,
        views=own.views,
    )


def check_shards(config: EvaluateConfig) -> dict[str, tuple[str, str]]:
    """Place and sha256 of the manifests. ValueError unless there are whole shards with clips of the
    split, before anything starts."""
    if not config.shards:
        raise ValueError("shards is empty: name shard folders with --shards DIR …")
    data = DataConfig(
        shards=config.shards, split=config.split, cache=config.cache, cache_gb=config.cache_gb
    )
    manifests = enumerate(open_collection(data).manifests)
    return {f"manifest_{i}": manifest.origin for i, manifest in manifests}


def check_labels(found: Sequence[str], known: Sequence[str]) -> None:
    """ValueError unless the shards name the model's classes in the model's order."""
    if tuple(found) != tuple(known):
        raise ValueError(
            f"the shards have the labels {', '.join(found) or 'none'}, the model was trained on "
            f"{', '.join(known)}: evaluate on shards that were ingested with the same labels"
        )


def write(meter: RecordingMeter, result: dict[str, Any], folder: Path) -> None:
    """`metrics.json` with the confusion matrix, and `predictions.csv` with a row a clip."""
    write_json(folder / "metrics.json", {**result, "confusion": meter.confusion.tolist()})
    aside = folder / ".predictions.csv.writing"
    with aside.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "label", "prediction", *meter.labels])
        for key, label, shares in meter.rows:
            truth = meter.labels[label] if label >= 0 else ""
            best = meter.labels[max(range(len(shares)), key=shares.__getitem__)]
            rows.writerow([key, truth, best, *(f"{share:.6f}" for share in shares)])
    aside.replace(folder / "predictions.csv")
