"""Frozen evaluation of an encoder: features of every clip, nearest neighbours and a linear layer.

Owns the command, which clips are read, and what is written: `features.parquet`, `metrics.json`, a
confusion matrix a probe, and the run in MLflow. The loop is `launch/engine.py`, the network
`networks.py`, the table `features.py`, the probes `figures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.history import cautions, leaks, record_of
from finetune.inputs import carrying
from finetune.models.configs import privileged
from finetune.outputs import Outputs
from finetune.pictures import confusion_matrix_picture
from finetune.predictor_config import weights_of
from finetune.probes.features import FeatureMeter, Features, FeatureTask, joined
from finetune.probes.figures import probe
from finetune.probes.networks import Frozen, Sizes, open_network
from finetune.reading import ReadingConfig, ledger_of, measured, open_once, prepared
from launch.cluster import ClusterConfig, WorkerContext
from launch.config import from_dict, parse_one
from launch.fetching import fetched
from launch.job import attached, command, drive, write_json
from launch.store import store_uri
from launch.task import Tracker
from launch.tracking import TrackingConfig
from shards.augment import ViewConfig
from shards.config import DataConfig
from shards.opening import open_collection
from shards.reader import Collection
from shards.workers import WorkerDied


@dataclass(frozen=True)
class ProbeConfig(ReadingConfig):
    """Which encoder is probed on which clips."""

    model: str = ""
    """Folder that pretraining or fine-tuning wrote, `models:/NAME@ALIAS`, `runs:/RUN/PATH`, or a
    public checkpoint (VideoMAE, MARLIN, Hugging Face)."""
    random: bool = False
    """Fresh weights in the place of the model's: the control that says what they are worth."""
    train_split: str | None = "train"
    """The labelled clips that the probes learn from; None writes features and nothing else."""
    split: str | None = "test"
    """The clips that they are measured on; None, with train_split None, takes every clip."""
    sizes: Sizes = field(default_factory=Sizes)
    stride: int | None = None
    """Video frames from one frame of a clip to the next; None spreads them over the video."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """Features are averaged over views."""
    neighbours: tuple[int, ...] = (1, 3, 5)
    """How many of them vote."""
    seed: int = 0
    """Which subjects choose the linear probe's regularisation, and of random weights."""
    cluster: ClusterConfig = field(
        default_factory=lambda: ClusterConfig(workers=0, output="runs/probe")
    )
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(experiment="probe"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.neighbours or min(self.neighbours) < 1:
            raise ValueError(f"neighbours is {self.neighbours}: use one or more positive numbers")
        if self.train_split is not None and self.split in (None, self.train_split):
            raise ValueError(
                f"split is {self.split} and train_split {self.train_split!r}: measure on other "
                "clips than the probes learn from, or set train_split to None for features alone"
            )


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/probe.py`."""
    about = "Probe a frozen encoder: features, nearest neighbours, a linear layer."
    config = parse_one(ProbeConfig, argv, prog="launch/probe.py", description=about)
    return command(lambda: run(config), told=(WorkerDied,))


def run(config: ProbeConfig) -> dict[str, Any]:
    """Fetch the model, probe it, print the figures; returns the summary."""
    config = prepared(config)
    inputs: dict[str, Any] = {}
    lost: dict[str, str] | None = None
    for split in splits_of(config):
        collection = open_collection(data_of(config, split, streams=1), lost=lost)
        lost = collection.told
        inputs |= collection.inputs
        if split == config.train_split is not None:
            check_labelled(collection, config)
    output = Path(config.cluster.output)
    uri = store_uri(config.tracking.uri, str(output))
    with fetched(config.model, uri=uri, beside=output) as model:
        open_network(model, config.sizes, random=0 if config.random else None)  # errors told here
        inputs["model"] = weights_of(model)
        config = replace(config, model=str(model))
        result = drive(
            measure, config, seed=config.seed, inputs=inputs, publish=lambda *_: {}, lost=lost
        )
    tell(result, output)
    return result


def check_labelled(collection: Collection, config: ProbeConfig) -> None:
    """ValueError, before hours of reading, where the probes would have too little to learn from."""
    classes = np.concatenate(collection.classes)
    known = classes[classes >= 0]
    needed = max(2, *config.neighbours)
    if len(known) < needed or len(np.unique(known)) < 2:
        raise ValueError(
            f"split {config.train_split!r} has {len(known)} labelled clips of "
            f"{len(np.unique(known))} classes: the probes need {needed} of two; name another "
            "--train_split, fewer --neighbours, or --train_split None for features alone"
        )


def tell(result: dict[str, Any], output: Path) -> None:
    """Print what was found."""
    for split, found in result["read"].items():
        print(f"{split}: features of {found['clips']:.0f} clips ({found['coverage']:.1%} read)")
    for name, found in result["probes"].items():
        print(
            f"{name}: accuracy {found['war']:.1%}, mean recall {found['uar']:.1%}, "
            f"F1 {found['f1']:.3f} on {found['clips']:.0f} clips"
        )
    if result["probes"]:
        print(
            f"chance {1 / len(result['labels']):.1%}; always the commonest "
            f"{result['commonest']:.1%} accuracy"
        )
    for caution in cautions(result):
        print(caution)
    if result.get("shared_subjects"):
        print(f"warning: {result['shared_subjects']} subjects are in both splits")
    print(output)


def measure(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: features of its clips; rank 0 probes them and writes what was found."""
    config = from_dict(ProbeConfig, payload["config"])
    network = open_network(
        config.model, config.sizes, random=config.seed if config.random else None
    )
    task = FeatureTask(network).to(context.device)
    output = Path(config.cluster.output)
    tables: dict[str, Features] = {}
    read: dict[str, dict[str, float]] = {}
    labels: tuple[str, ...] = ()
    for split in splits_of(config):
        data = data_of(config, split, network=network, streams=context.world)
        with open_once(config, data, context, lost=payload["lost"]) as stream:
            labels = stream.labels
            meter = FeatureMeter(stream, split=split)
            name = split or "all"
            read[name] = measured(config, task, stream, meter, context)
            if meter.table is not None:
                tables[name] = meter.table
    stamp = {"labels": list(labels), "privileged": privileged(network.config)}
    known = {} if config.random else record_of(Path(config.model))
    stamp["leaks"] = leaks(known, config.split, payload["origin"])
    result: dict[str, Any] = {**stamp, "read": read, "probes": {}}
    with attached(payload, context, files=[ledger_of(config)]) as tracker:
        if context.rank == 0:
            joined(list(tables.values())).write(output / "features.parquet")
            if config.train_split is not None:
                train, test = tables[config.train_split], tables[str(config.split)]
                result |= probe(
                    train,
                    test,
                    labels,
                    neighbours=config.neighbours,
                    seed=config.seed,
                    device=context.device,
                )
            record(config, result, output, tracker)
    return result


def data_of(
    config: ProbeConfig, split: str | None, *, streams: int, network: Frozen | None = None
) -> DataConfig:
    """The clips of a split, with what the network takes beside them."""
    data = replace(config.data(split, streams=streams), stride=config.stride, views=config.views)
    if network is None:
        return data
    own = network.config
    data = replace(data, pair=own.pair, frames=own.frames, size=own.image_size)
    return carrying(data, own, Outputs())


def splits_of(config: ProbeConfig) -> list[str | None]:
    """The splits that are read."""
    wanted = [config.split]
    return wanted if config.train_split is None else [config.train_split, *wanted]


def record(config: ProbeConfig, result: dict[str, Any], output: Path, tracker: Tracker) -> None:
    """Everything to its file, and figures and pictures to MLflow."""
    write_json(output / "metrics.json", result)
    for split, found in result["read"].items():
        tracker.log({f"{split}/{name}": value for name, value in found.items()}, 0)
    for which, found in result["probes"].items():
        numbers = {k: v for k, v in found.items() if isinstance(v, float)}
        tracker.log({f"{which}/{name}": value for name, value in numbers.items()}, 0)
        image = confusion_matrix_picture(torch.tensor(found["confusion"]), result["labels"])
        tracker.figure(f"confusion_{which}", image, 0)
    for name in ("features.parquet", "metrics.json"):
        tracker.log_file(str(output / name), "")
