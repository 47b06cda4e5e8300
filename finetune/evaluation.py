"""Evaluation of a registered or local network on a split of shards.

Owns what is written: `metrics.json`, a confusion matrix, the run in MLflow, and `predictions.csv`.
Clips are sampled, cropped and viewed as the predictor's own configuration says. The loop is
`launch/engine.py`, the figures are `metrics.py` and `measure.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.collecting import Clips
from finetune.history import cautions, stamp
from finetune.inputs import carrying
from finetune.measure import AnnotatedBatch, Measure
from finetune.mixing import MixConfig
from finetune.outputs import Outputs
from finetune.pictures import confusion_matrix_picture
from finetune.predictions import Row, write_rows
from finetune.predictor import Predictor
from finetune.predictor_config import weights_of
from finetune.reading import Reading, ReadingConfig, ledger_of, measured, open_once, prepared
from finetune.task import ClassifyTask
from launch.cluster import ClusterConfig, WorkerContext
from launch.config import from_dict, parse_one
from launch.fetching import fetched
from launch.job import attached, command, drive, write_json
from launch.store import store_uri
from launch.tracking import TrackingConfig
from shards.config import DataConfig
from shards.marks import cut_at_marks
from shards.opening import open_collection
from shards.stream import ClipStream
from shards.wording import count
from shards.workers import WorkerDied


@dataclass(frozen=True)
class EvaluateConfig(ReadingConfig):
    """Which model is measured on which clips."""

    cluster: ClusterConfig = field(
        default_factory=lambda: ClusterConfig(workers=0, output="runs/evaluate")
    )
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(experiment="evaluate"))


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
    return command(lambda: run(config), told=(WorkerDied,))


def run(config: EvaluateConfig) -> dict[str, Any]:
    """Fetch the model, measure it, print the figures; returns the summary."""
    with located(config) as (config, inputs, lost):
        result = drive(measure, config, seed=0, inputs=inputs, publish=lambda *_: {}, lost=lost)
    which = f"split {config.split}" if config.split else "all splits"
    print(
        f"{result['clips']:.0f} clips of {which} ({answered(result)}): "
        f"{'; '.join(in_words(result))}; {config.cluster.output}"
    )
    return result


def answered(result: dict[str, Any]) -> str:
    """Which share of the clips the figures are about, in words."""
    lost = result["rejected"]
    told = f"{result['coverage']:.1%} answered"
    return told + (f", {count(lost, 'video')} rejected by ingest included" if lost else "")


@contextmanager
def located(config: Reading) -> Iterator[tuple[Reading, dict[str, Any], dict[str, str]]]:
    """With absolute paths and the model as a local folder, as long as this lasts; place and sha256
    of the manifests, and the file of the weights; and `Collection.told` of the shards.

    Raises ValueError where model or shards are not named, or not one whole shard has clips of the
    split, and like `fetch`.
    """
    config = prepared(config)
    collection = open_collection(config.data(config.split))
    output = config.cluster.output
    with fetched(config.model, uri=store_uri(config.tracking.uri, output), beside=output) as model:
        inputs = {**collection.inputs, "model": weights_of(model)}
        yield replace(config, model=str(model)), inputs, collection.told


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
    found = open_collection(config.data(config.split))
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
    data = data_of(config, predictor, streams=context.world)
    with open_once(config, data, context, lost=payload["lost"]) as stream:
        if outputs.labels:
            check_labels(stream.labels, outputs.labels)
        meter = RecordingMeter(outputs, stream)
        found = measured(config, task, stream, meter, context)
        rejected = stream.collection.rejected
    found["coverage"] *= stream.samples / (stream.samples + rejected)
    how = stamp(config.model, predictor.config, config.split, payload["origin"])
    if found["cut_at_marks"] > 0.5:
        how["privileged"] += ["where each clip begins and ends"]
    result = how | {"rejected": rejected} | found
    with attached(payload, context, files=[ledger_of(config)]) as tracker:
        tracker.log({f"{config.split or 'all'}/{name}": value for name, value in found.items()}, 0)
        if context.rank == 0:
            write(meter, result, Path(config.cluster.output))
            if meter.classes is not None:
                image = confusion_matrix_picture(meter.classes.confusion, outputs.labels)
                tracker.figure(f"confusion_{config.split or 'all'}", image, 0)
            tracker.log_file(str(Path(config.cluster.output, "predictions.csv")), "")
    return result


def data_of(config: ReadingConfig, predictor: Predictor, *, streams: int) -> DataConfig:
    """The clips as the predictor's own configuration samples and views them."""
    own = predictor.config
    data = replace(
        config.data(config.split, streams=streams),
        frames=own.encoder.frames,
        pair=own.encoder.pair,
        stride=own.stride,
        size=own.encoder.image_size,
        views=own.views,
    )
    return carrying(data, own.encoder, own.outputs)


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
