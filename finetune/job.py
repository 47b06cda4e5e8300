"""A fine-tuning job: labelled shards and an encoder in, a registered classifier out.

Owns what the driver checks before it starts, what each worker builds, and which step's weights are
kept. The loop is `launch/engine.py`, the network `models/`, the objective `task.py`.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from finetune.best import Best
from finetune.feeding import (
    Known,
    check_labelled,
    check_measured,
    class_counts,
    open_split,
    open_train,
    settle,
)
from finetune.history import record_of
from finetune.models import build as build_network
from finetune.models import start
from finetune.models.configs import identity as network_identity
from finetune.predictor import Predictor
from finetune.predictor_config import artifact_folder, other_crops, weights_of
from finetune.predictor_package import package
from finetune.recipes import RECIPES, FinetuneConfig
from finetune.task import ClassifyTask
from launch import registry
from launch.checkpoint import Checkpoints
from launch.cluster import WorkerContext
from launch.config import absolute_paths, from_dict, parse, to_dict
from launch.engine import fit
from launch.fetching import fetch
from launch.job import agreement, attached, command, drive, summarise
from launch.store import store_uri
from launch.tracking import RunHandle
from shards.ledger import Ledger
from shards.plan.preflight import WaitWatch, preflight
from shards.stream import ClipStream
from shards.workers import WorkerDied, start_early


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/finetune.py`."""
    about = "Fine-tune a video transformer for expression recognition."
    return command(
        lambda: run(parse(RECIPES, argv, prog="launch/finetune.py", description=about)),
        told=(WorkerDied,),
    )


def run(config: FinetuneConfig, *, packed: bool = True) -> dict[str, Any]:
    """Check everything that can be checked here, then train on the cluster; returns the summary.

    Args:
        packed: whether the model that was selected is packed, and logged with the run; its weights
            lie in the output folder in any case.
    """
    config = absolute_paths(
        config, "data.shards", "data.splits", "data.skip", "data.cache", "cluster.output"
    )
    config = settle(config)
    world = max(1, config.cluster.workers)
    lost = held_out = None
    if config.validation_split is not None:
        with open_split(config, config.validation_split, rank=0, world=world) as held_out:
            lost = held_out.collection.told
    with open_train(config, rank=0, world=world, lost=lost) as stream:
        steps = config.run.total_steps(stream.steps_per_epoch)
        labels = stream.labels
        print(f"{stream.samples} clips of {len(stream.labels)} classes, {steps} steps")
        check_labelled(config, stream)
        if held_out is not None:
            check_measured(config, held_out)
        for line in other_crops(stream.collection.manifests):
            print(f"warning: {line}")
        batch = config.run.global_batch
        print(preflight(config.data_for(), stream, global_batch=batch, world=world))
        inputs: dict[str, Any] = dict(stream.inputs)
        lost = stream.collection.told
    if config.init is not None:
        uri = store_uri(config.tracking.uri, config.cluster.output)
        local = fetch(config.init, uri=uri, into=Path(config.cluster.output) / "init").absolute()
        config = replace(config, init=str(artifact_folder(local)))
        inputs["init"] = weights_of(local)
    return drive(
        train,
        config,
        seed=config.run.seed,
        inputs=inputs,
        checkpoints=lambda origin: checkpoints_of(config, labels, origin),
        publish=lambda *args: publish(config, *args) if packed else {},
        lost=lost,
    )


def train(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: build, fit, and on rank 0 write the classifier that was selected."""
    config = from_dict(FinetuneConfig, payload["config"])
    start_early(config.data.loader_workers)
    torch.manual_seed(config.run.seed)
    output = Path(config.cluster.output)
    with (
        attached(payload, context, files=[output / "ledger.jsonl"]) as tracker,
        open_train(config, rank=context.rank, world=context.world, lost=payload["lost"]) as probe,
    ):
        task = build(config, probe.labels, **facts(config, probe), verbose=context.rank == 0)
        task.flops_per_clip *= config.data.repeats
        tracker = WaitWatch(tracker, config.data, world=context.world)
        best = Best(config, output / "best", probe.labels, payload["origin"], lost=payload["lost"])
        ledger = Ledger(output / "ledger.jsonl", rank=context.rank)
        checkpoints = checkpoints_of(config, probe.labels, payload["origin"])
        if context.rank == 0:
            best.resume(anew=checkpoints.latest() is None)
        summary = fit(
            task,
            lambda step: Known(
                open_train(
                    config,
                    rank=context.rank,
                    world=context.world,
                    start_step=step,
                    ledger=ledger,
                    collection=probe.collection,
                ),
                task.outputs,
                votes=config.losses.votes,
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


def facts(config: FinetuneConfig, stream: ClipStream) -> dict[str, Any]:
    """What the objective must know of all training clips: class counts and number of subjects."""
    return {
        "counts": class_counts(stream) if config.losses.balance else None,
        "subjects": len(stream.subjects) if config.identity.weight else 0,
    }


def build(
    config: FinetuneConfig,
    labels: Sequence[str],
    *,
    counts: list[int] | None = None,
    subjects: int = 0,
    verbose: bool,
) -> ClassifyTask:
    """The task, its network from `config.init` or from random weights; see `facts`."""
    outputs, soa = config.outputs(tuple(labels)), config.heads.soa
    if config.init is None:
        model = build_network(config.encoder, outputs, soa=soa)
    else:
        model, report = start(config.init, config.encoder, outputs, soa=soa)
        if verbose:
            print(f"encoder from {config.init}: {report}")
    return ClassifyTask(
        model,
        config.mixing,
        layer_decay=config.layer_decay,
        outputs=outputs,
        losses=config.losses,
        counts=counts,
        identity=config.identity,
        subjects=subjects,
        augment=config.data.on_device,
    )


def checkpoints_of(
    config: FinetuneConfig, labels: Sequence[str], origin: Mapping[str, str]
) -> Checkpoints:
    """The run's checkpoints, which agree with its network, classes, data and inputs."""
    data = to_dict(config)
    return Checkpoints(
        Path(config.cluster.output, "checkpoints"),
        keep=config.run.keep_checkpoints,
        agreement=agreement(
            data, origin, network_identity(config.encoder) | {"labels": list(labels)}
        ),
    )


def publish(
    config: FinetuneConfig, handle: RunHandle, output: Path, summary: dict[str, Any]
) -> dict[str, Any]:
    """Log the selected model, and register it where a name was given for it; it must load.

    Raises ValueError where it does not.
    """
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
    Predictor.load(packed, device="cpu")  # before an alias leads anybody to it
    version = registry.publish(
        handle,
        packed,
        kind="predictor",
        weights=weights_of(packed),
        name=config.tracking.register,
        alias=config.tracking.alias,
        tags=tags_of(record_of(Path(summary["predictor"]))),
    )
    return {"model": version.uri}


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What a version says of itself in the registry: how its step was picked, and what it takes
    from annotations where it is measured."""
    told = record["privileged"]
    return {"selection": record["selection"]} | ({"privileged": ", ".join(told)} if told else {})
