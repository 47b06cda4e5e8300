"""A fine-tuning job: labelled shards and an encoder in, a registered classifier out.

Owns what the driver checks before it starts, what each worker builds, and which step's weights are
kept. The loop is `launch/engine.py`, the network `models/`, the objective `task.py`.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune.metrics import ClassificationMeter
from finetune.models.classifier import Classifier
from finetune.pictures import confusion_matrix_picture
from finetune.predictor import PredictorConfig, save_predictor
from finetune.predictor_package import package
from finetune.recipes import RECIPES, FinetuneConfig
from finetune.task import ClassifyTask
from launch.checkpoint import Checkpoints, fp32_state
from launch.cluster import WorkerContext
from launch.config import absolute_paths, from_dict, parse, to_dict
from launch.engine import evaluate, fit
from launch.job import attached, command, drive, identity, summarise
from launch.registry import fetch, register_predictor
from launch.store import store_uri
from launch.task import Tracker
from launch.tracking import RunHandle
from shards.batch import ClipBatch
from shards.ledger import Ledger
from shards.plan.preflight import WaitWatch, preflight
from shards.stream import ClipStream, TooManyFailures, open_clips
from shards.workers import WorkerDied

SELECTED_BY = "uar"  # the figure on the validation split that picks the best step


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/finetune.py`."""
    about = "Fine-tune a video transformer for expression recognition."
    return command(
        lambda: run(parse(RECIPES, argv, prog="launch/finetune.py", description=about)),
        told=(TooManyFailures, WorkerDied),
    )


def run(config: FinetuneConfig) -> dict[str, Any]:
    """Check everything that can be checked here, then train on the cluster; returns the summary."""
    config = absolute_paths(config, "data.shards", "data.skip", "data.cache", "cluster.output")
    world = max(1, config.cluster.workers)
    if config.validation_split is not None:
        open_split(config, config.validation_split, rank=0, world=world).close()
    with open_train(config, rank=0, world=world) as stream:
        steps = config.run.total_steps(stream.steps_per_epoch)
        labels = stream.labels
        print(f"{stream.samples} clips of {len(stream.labels)} classes, {steps} steps")
        check_labelled(config, stream)
        batch = config.run.global_batch
        print(preflight(config.data, stream, global_batch=batch, world=world))
        inputs: dict[str, Any] = dict(stream.inputs)
    if config.init is not None:
        uri = store_uri(config.tracking.uri, config.cluster.output)
        local = fetch(config.init, uri=uri, into=Path(config.cluster.output) / "init").absolute()
        config = replace(config, init=str(local))
        inputs["init"] = local / "model.safetensors" if local.is_dir() else local
    return drive(
        train,
        config,
        seed=config.run.seed,
        inputs=inputs,
        checkpoints=lambda origin: checkpoints_of(config, labels, origin),
        publish=lambda *args: publish(config, *args),
    )


def train(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: build, fit, and on rank 0 write the classifier that was selected."""
    config = from_dict(FinetuneConfig, payload["config"])
    torch.manual_seed(config.run.seed)
    output = Path(config.cluster.output)
    with (
        attached(payload, context, files=[output / "ledger.jsonl"]) as tracker,
        open_train(config, rank=context.rank, world=context.world) as probe,
    ):
        task = build(config, probe.labels, verbose=context.rank == 0)
        task.flops_per_clip *= config.data.repeats
        tracker = WaitWatch(tracker, config.data, world=context.world)
        best = Best(config, output / "best", probe.labels, payload["origin"])
        ledger = Ledger(output / "ledger.jsonl", rank=context.rank)
        checkpoints = checkpoints_of(config, probe.labels, payload["origin"])
        if context.rank == 0 and checkpoints.latest() is None:
            best.forget()
        summary = fit(
            task,
            lambda step: Labelled(
                open_train(
                    config, rank=context.rank, world=context.world, start_step=step, ledger=ledger
                )
            ),
            config.run,
            tracker=tracker,
            checkpoints=checkpoints,
            context=context,
            total_steps=config.run.total_steps(probe.steps_per_epoch),
            evaluators=[best.evaluator(tracker, context, ledger)],
        )
        if context.rank == 0:
            best.write(output / "last", task, summary.steps, selection="last")
    return summarise(summary) | best.chosen()


def build(config: FinetuneConfig, labels: Sequence[str], *, verbose: bool) -> ClassifyTask:
    """The task, its encoder from `config.init` or from random weights."""
    if config.init is None:
        model = Classifier(config.encoder, num_classes=len(labels))
    else:
        model, report = Classifier.from_encoder(
            config.init, config.encoder, num_classes=len(labels)
        )
        if verbose:
            print(f"encoder from {config.init}: {report}")
    return ClassifyTask(model, config.mixing, layer_decay=config.layer_decay)


def checkpoints_of(
    config: FinetuneConfig, labels: Sequence[str], origin: Mapping[str, str]
) -> Checkpoints:
    """The run's checkpoints, which agree with its network, classes, data and inputs."""
    data = to_dict(config)
    return Checkpoints(
        Path(config.cluster.output, "checkpoints"),
        keep=config.run.keep_checkpoints,
        model=config.encoder.identity() | {"labels": list(labels)} | identity(data, origin),
    )


class Best:
    """Keeps the weights of the best step on the validation split, on disk, across restarts."""

    def __init__(
        self, config: FinetuneConfig, folder: Path, labels: Sequence[str], origin: dict[str, str]
    ):
        self.config, self.folder, self.labels, self.origin = config, folder, labels, origin

    def evaluator(self, tracker: Tracker, context: WorkerContext, ledger: Ledger):
        """What the engine calls when an evaluation is due."""

        def measure(task: Any, step: int) -> dict[str, float]:
            split = self.config.validation_split
            if split is None:
                return {}
            meter = ClassificationMeter(len(self.labels), self.labels)
            with open_split(
                self.config, split, rank=context.rank, world=context.world, ledger=ledger
            ) as stream:
                found = evaluate(
                    task, stream, meter, context=context, precision=self.config.run.precision
                )
            if context.rank == 0:
                image = confusion_matrix_picture(meter.confusion, self.labels)
                tracker.figure(f"confusion_{split}", image, step)
                before = self.score()
                if before is None or found[SELECTED_BY] > before:
                    self.write(
                        self.folder,
                        task,
                        step,
                        selection=f"best {SELECTED_BY} on {split}",
                        score=found[SELECTED_BY],
                    )
            return {f"{split}/{name}": value for name, value in found.items()}

        return measure

    def forget(self) -> None:
        """A run that starts from the beginning does not compete with the one that was here."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def score(self) -> float | None:
        """The best figure so far; None before the first."""
        origin = self.folder / "provenance.json"
        return json.loads(origin.read_text())["score"] if origin.is_file() else None

    def write(
        self, folder: Path, task: ClassifyTask, step: int, *, selection: str, score=None
    ) -> None:
        """Everything that the predictor needs, with how it was selected."""
        origin = {**self.origin, "step": step, "selection": selection, "score": score}
        predictor = PredictorConfig.of(
            encoder=self.config.encoder, data=self.config.data, labels=tuple(self.labels)
        )
        save_predictor(folder, fp32_state(task.model), predictor, origin)

    def chosen(self) -> dict[str, Any]:
        """Which weights are published: the best on validation, or without one the last."""
        name = "best" if self.config.validation_split and self.score() is not None else "last"
        return {"predictor": str(self.folder.with_name(name)), "selection": name}


def open_train(
    config: FinetuneConfig, *, rank: int, world: int, start_step: int = 0, ledger=None
) -> ClipStream:
    """The training clips of one rank. Raises ValueError where they have no labels."""
    stream = open_clips(
        config.data,
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        start_step=start_step,
        train=True,
        ledger=ledger,
    )
    if len(stream.labels) < 2:
        stream.close()
        raise ValueError(
            f"{', '.join(config.data.shards)}: fine-tuning needs at least two labels, found "
            f"{list(stream.labels)}; ingest again with --annotations and a label column"
        )
    return stream


def check_labelled(config: FinetuneConfig, stream: ClipStream) -> None:
    """Say how many training clips have no label. Raises ValueError where none has one."""
    bare = sum(int((classes < 0).sum()) for classes in stream.collection.classes)
    if bare == stream.samples:
        raise ValueError(
            f"none of the {bare} clips of split {config.data.split} in "
            f"{', '.join(config.data.shards)} has a label; ingest again with --annotations that "
            "label them"
        )
    if bare:
        print(f"{bare} of these clips have no label and do not count")


class Labelled:
    """Training batches in which clips without a label do not count: there is no target for them."""

    def __init__(self, stream: ClipStream):
        self.stream = stream

    def __iter__(self) -> Iterator[ClipBatch]:
        for batch in self.stream:
            yield replace(batch, weights=batch.weights * (batch.labels >= 0))

    def close(self) -> None:
        """End the loader processes."""
        self.stream.close()


def open_split(
    config: FinetuneConfig, split: str, *, rank: int, world: int, ledger: Ledger | None = None
) -> ClipStream:
    """Each clip of a split once, with its views."""
    return open_clips(
        replace(config.data, split=split),
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        train=False,
        ledger=ledger,
    )


def publish(
    config: FinetuneConfig, handle: RunHandle, output: Path, summary: dict[str, Any]
) -> dict[str, Any]:
    """Log the selected model, and register it where a name was given for it."""
    try:
        packed = package(summary["predictor"], output / "model")
    except Exception as error:  # a full disk comes as it is, or inside an error of MLflow
        disk = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(disk, OSError):
            raise
        first = disk.args[0][0][2] if isinstance(disk, shutil.Error) else disk
        raise OSError(
            f"{output / 'model'} could not be written ({first}); free some space and give the same "
            "command again: the training is finished and kept"
        ) from error
    version = register_predictor(
        handle,
        packed,
        name=config.tracking.register,
        alias=config.tracking.alias,
    )
    return {"model": version.uri}
