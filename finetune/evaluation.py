"""Evaluation of a registered or local network on a split of shards.

Owns what is written: `metrics.json`, a confusion matrix, the run in MLflow, and `predictions.csv`.
Clips are sampled, cropped and viewed as the predictor's own configuration says. The loop is
`launch/engine.py`, the figures are `metrics.py` and `measure.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune.collecting import Clips, check_read
from finetune.history import cautions, stamp
from finetune.inputs import carrying
from finetune.measure import AnnotatedBatch, Measure
from finetune.mixing import MixConfig
from finetune.outputs import Outputs
from finetune.pictures import confusion_matrix_picture
from finetune.predictions import Row, write_rows
from finetune.predictor import Predictor
from finetune.task import ClassifyTask
from launch.cluster import ClusterConfig, WorkerContext
from launch.config import absolute_paths, from_dict, parse_one
from launch.engine import evaluate
from launch.fetching import fetch
from launch.job import attached, command, drive, write_json
from launch.store import store_uri
from launch.tracking import TrackingConfig
from launch.zero import Precision
from shards.cache import DEFAULT_GB
from shards.ledger import Ledger
from shards.marks import cut_at_marks
from shards.reader import Collection
from shards.stream import ClipStream, DataConfig, TooManyFailures, open_clips, open_collection
from shards.wording import count
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
    splits: str | None = None
    """A CSV file `dataset,key,split` (path or URL) that replaces the splits stored in the shards;
    clips that it does not name are left out."""
    precision: Precision = "fp32"
    """Of the network's matrix products."""
    batch: int = 8
    """Clips a worker computes at once."""
    loader_workers: int = 2
    """Processes that decode, of each worker; 0 decodes in the worker itself."""
    max_failed_share: float = 0.01
    """The evaluation stops when more than this share of the clips cannot be read."""
    skip: tuple[str, ...] = ()
    """Ledgers of earlier runs: the clips they name are not tried and do not count as failed."""
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


Asked = TypeVar("Asked", bound=EvaluateConfig)


class RecordingMeter(Measure):
    """Measures, and keeps each clip's answer beside what is known of it.

    Args:
        stream: the clips it will be fed, from the first batch on.
    """

    def __init__(self, outputs: Outputs, stream: ClipStream):
        super().__init__(outputs)
        self._records = Clips(stream)
        self.rows: list[Row] = []
        """This rank's clips, then those of all ranks."""
        self._cut = torch.zeros(2, dtype=torch.float64)  # clips that marks cut, all that were read

    def update(self, output: Tensor, batch: AnnotatedBatch) -> None:
        """Take in one micro-batch; arguments as in `Measure`."""
        super().update(output, batch)
        annotated = [batch.extra[name] for name in self.annotated]
        truth = torch.cat([output.new_zeros(len(output), 0), *annotated], 1)
        values = (batch.labels, output, truth)
        clips = self._records.of(batch)
        for clip, *told in zip(clips, *(v.tolist() for v in values), strict=True):
            if clip is not None:
                self.rows.append((clip.record.dataset, clip.key, *told))
                self._cut += torch.tensor([cut_at_marks(clip.record), True])

    @property
    def annotated(self) -> list[str]:
        """Names in `ClipBatch.extra` of what is told beside classes."""
        told = {"units": bool(self.outputs.units), "affect": self.outputs.affect}
        return [name for name, there in told.items() if there]

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures over all ranks, and `cut_at_marks`, the share of clips that annotations cut;
        gathers the rows of all ranks, by data set and key."""
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, self.rows)
        self.rows = sorted((row for rows in everyone for row in rows), key=lambda row: row[:2])
        cut, read = reduce(self._cut).tolist()
        return super().compute(reduce) | {"cut_at_marks": cut / max(read, 1.0)}


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/evaluate.py`."""
    about = "Measure a fine-tuned model on a split of shards."
    config = parse_one(EvaluateConfig, argv, prog="launch/evaluate.py", description=about)
    return command(lambda: run(config), told=(TooManyFailures, WorkerDied))


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Fetch the model, measure it, print the figures; returns the summary."""
    config, inputs, lost = located(config)
    output = Path(config.cluster.output)
    result = drive(measure, config, seed=0, inputs=inputs, publish=lambda *_: {}, lost=lost)
    which = f"split {config.split}" if config.split else "all splits"
    print(
        f"{result['clips']:.0f} clips of {which} ({answered(result)}): "
        f"{'; '.join(in_words(result))}; {output}"
    )
    return result


def answered(result: dict[str, Any]) -> str:
    """Which share of the clips the figures are about, in words."""
    lost = result["rejected"]
    told = f"{result['coverage']:.1%} answered"
    return told + (f", {count(lost, 'video')} rejected by ingest included" if lost else "")


def located(config: Asked) -> tuple[Asked, dict[str, Any], dict[str, str]]:
    """With absolute paths and the model as a local folder; place and sha256 of the manifests; and
    `Collection.told` of the shards.

    Raises ValueError where model or shards are not named, and like `check_shards` and `fetch`.
    """
    config = absolute_paths(config, "shards", "splits", "skip", "cache", "cluster.output")
    if not config.model:
        raise ValueError("model is empty: name one with --model models:/NAME@ALIAS or a folder")
    collection = check_shards(config)
    output = config.cluster.output
    uri = store_uri(config.tracking.uri, output)
    local = fetch(config.model, uri=uri, into=Path(output, ".fetched"))
    return replace(config, model=str(local.absolute())), collection.inputs, collection.told


def in_words(result: dict[str, Any]) -> list[str]:
    """The figures that a person looks at first."""
    parts = []
    if "war" in result:
        parts.append(
            f"accuracy {result['war']:.1%}, mean recall {result['uar']:.1%}, "
            f"F1 {result['f1']:.3f}; chance {1 / len(result['labels']):.1%}"
        )
    if "units/f1" in result:
        parts.append(f"F1 of action units {result['units/f1']:.3f}")
    if "affect/ccc" in result:
        parts.append(f"concordance of valence and arousal {result['affect/ccc']:.3f}")
    return parts + cautions(result)


def all_skipped(config: EvaluateConfig) -> bool:
    """Whether ledgers name every clip of the split: there is nothing to measure."""
    if not config.skip:
        return False
    found = check_shards(config)
    rows = ((shard, i) for shard, n in enumerate(found.counts) for i in range(n))
    return all(found.skips(shard, found.row(shard, i).key) for shard, i in rows)


def unanswered(config: EvaluateConfig) -> dict[str, Any]:
    """What is written and found where all clips are skipped: a table without rows, no figures."""
    folder = Path(config.cluster.output)
    folder.mkdir(parents=True, exist_ok=True)
    outputs = Predictor.load(config.model, device="cpu").config.outputs
    write_rows(folder, outputs, [])
    return dict.fromkeys(("war", "uar", "f1")) | {"clips": 0.0, "coverage": 0.0}


def measure(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: predict its clips; rank 0 writes what was found."""
    config = from_dict(EvaluateConfig, payload["config"])
    predictor = Predictor.load(config.model, device=str(context.device))
    outputs = predictor.config.outputs
    task = ClassifyTask(predictor.model, MixConfig(), outputs=outputs)
    batch = config.batch * context.world
    with open_clips(
        data_of(config, predictor, streams=context.world),
        global_batch=batch,
        micro_batch=config.batch,
        rank=context.rank,
        world=context.world,
        train=False,
        pinned=bool(config.cluster.gpus_per_worker),
        ledger=Ledger(Path(config.cluster.output, "ledger.jsonl"), rank=context.rank),
        lost=payload["lost"],
    ) as stream:
        if outputs.labels:
            check_labels(stream.labels, outputs.labels)
        meter = RecordingMeter(outputs, stream)
        found = evaluate(task, stream, meter, context=context, precision=config.precision)
        check_read(stream)
        rejected = stream.collection.rejected
    found["coverage"] *= stream.samples / (stream.samples + rejected)
    how = stamp(config.model, predictor.config, config.split, payload["origin"])
    if found["cut_at_marks"] > 0.5:
        how["privileged"] += ["where each clip begins and ends"]
    result = how | {"rejected": rejected} | found
    ledger = Path(config.cluster.output, "ledger.jsonl")
    with attached(payload, context, files=[ledger]) as tracker:
        tracker.log({f"{config.split or 'all'}/{name}": value for name, value in found.items()}, 0)
        if context.rank == 0:
            write(meter, result, Path(config.cluster.output))
            if meter.classes is not None:
                image = confusion_matrix_picture(meter.classes.confusion, outputs.labels)
                tracker.figure(f"confusion_{config.split or 'all'}", image, 0)
            tracker.log_file(str(Path(config.cluster.output, "predictions.csv")), "")
    return result


def data_of(config: EvaluateConfig, predictor: Predictor, *, streams: int) -> DataConfig:
    """The clips as the predictor's own configuration samples and views them."""
    own = predictor.config
    data = DataConfig(
        shards=config.shards,
        split=config.split,
        splits=config.splits,
        streams=streams,
        frames=own.encoder.frames,
        pair=own.encoder.pair,
        stride=own.stride,
        size=own.encoder.image_size,
        loader_workers=config.loader_workers,
        max_failed_share=config.max_failed_share,
        skip=config.skip,
        cache=config.cache,
        cache_gb=config.cache_gb,
        views=own.views,
    )
    return carrying(data, own.encoder, own.outputs)


def check_shards(config: EvaluateConfig) -> Collection:
    """What is read. ValueError unless there are whole shards with clips of the split, before
    anything starts."""
    if not config.shards:
        raise ValueError("shards is empty: name shard folders with --shards DIR …")
    data = DataConfig(
        shards=config.shards,
        split=config.split,
        splits=config.splits,
        skip=config.skip,
        cache=config.cache,
        cache_gb=config.cache_gb,
    )
    return open_collection(data)


def check_labels(found: Sequence[str], known: Sequence[str]) -> None:
    """ValueError unless the shards name the model's classes in the model's order."""
    if tuple(found) != tuple(known):
        raise ValueError(
            f"the shards have the labels {', '.join(found) or 'none'}, the model was trained on "
            f"{', '.join(known)}: evaluate on shards that were ingested with the same labels"
        )


def write(meter: RecordingMeter, result: dict[str, Any], folder: Path) -> None:
    """`metrics.json`, with the confusion matrix of classes, and `predictions.csv`, a row a clip."""
    classes = {} if meter.classes is None else {"confusion": meter.classes.confusion.tolist()}
    write_json(folder / "metrics.json", {**result, **classes})
    write_rows(folder, meter.outputs, meter.rows)
