"""A pretraining job: shards in, an encoder out.

Owns what the driver checks before it starts and what each worker builds. The loop is
`launch/engine.py`, the model `model.py`, the objective `task.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launch import registry
from launch.checkpoint import Checkpoints, fp32_state
from launch.cluster import WorkerContext
from launch.config import absolute_paths, from_dict, parse, to_dict
from launch.engine import evaluate, fit
from launch.job import agreement, attached, command, drive, summarise
from launch.task import Tracker
from launch.tracking import RunHandle
from mira.encoder import Encoder, EncoderConfig
from mira.loading import load_weights
from mira.tubelets import normalise
from mira.weights import load_artifact, save_artifact
from pretrain.masking import tube_mask
from pretrain.model import VideoMAE
from pretrain.pictures import reconstruction_strip
from pretrain.recipes import RECIPES, PretrainConfig
from pretrain.task import LossMeter, PretrainTask
from shards.ledger import Ledger
from shards.plan.preflight import WaitWatch, preflight
from shards.presence import Lost
from shards.reader import Collection
from shards.stream import ClipStream, open_clips, open_collection
from shards.workers import WorkerDied, start_early

PICTURED = 4  # clips in the picture of reconstructions


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/pretrain.py`."""
    about = "Pretrain a video transformer on face-video shards."
    return command(
        lambda: run(parse(RECIPES, argv, prog="launch/pretrain.py", description=about)),
        told=(WorkerDied,),
    )


def run(config: PretrainConfig) -> dict[str, Any]:
    """Check everything that can be checked here, then train on the cluster; returns the summary."""
    paths = ("data.shards", "data.splits", "data.skip", "data.cache", "cluster.output")
    config = absolute_paths(config, *paths)
    gpu = bool(config.cluster.gpus_per_worker)
    config = replace(config, data=config.data.settled(gpu=gpu))
    with torch.device("meta"):  # sizes that do not fit show before a cluster starts
        build(config)
    world = max(1, config.cluster.workers)
    with open_train(config, rank=0, world=world) as stream:
        steps = config.run.total_steps(stream.steps_per_epoch)
        print(f"{stream.samples} clips, {stream.steps_per_epoch} steps an epoch, {steps} steps")
        batch = config.run.global_batch
        print(preflight(config.data, stream, global_batch=batch, world=world))
        inputs, lost = stream.inputs, stream.collection.told
    return drive(
        train,
        config,
        seed=config.run.seed,
        inputs=inputs,
        checkpoints=lambda origin: checkpoints_of(config, origin),
        publish=lambda *args: publish(config, *args),
        lost=lost,
    )


def train(payload: dict[str, Any], context: WorkerContext) -> dict[str, Any]:
    """One worker: build, fit, and on rank 0 write the encoder."""
    config = from_dict(PretrainConfig, payload["config"])
    start_early(config.data.loader_workers)
    torch.manual_seed(config.run.seed)
    task = build(config)
    task.flops_per_clip *= config.data.repeats
    output = Path(config.cluster.output)
    ledger = Ledger(output / "ledger.jsonl", rank=context.rank)
    with (
        attached(payload, context, files=[ledger.path]) as tracker,
        open_train(config, rank=context.rank, world=context.world, lost=payload["lost"]) as probe,
    ):
        tracker = WaitWatch(tracker, config.data, world=context.world)
        held_out = probe.collection
        if split := config.validation_split:
            held_out = open_collection(replace(config.data, split=split), lost=payload["lost"])
        summary = fit(
            task,
            lambda step: open_train(
                config,
                rank=context.rank,
                world=context.world,
                start_step=step,
                ledger=ledger,
                collection=probe.collection,
            ),
            config.run,
            tracker=tracker,
            checkpoints=checkpoints_of(config, payload["origin"]),
            context=context,
            total_steps=config.run.total_steps(probe.steps_per_epoch),
            evaluators=[
                lambda _, step: measure(config, task, step, tracker, context, ledger, held_out)
            ],
        )
        if context.rank == 0:
            save_encoder(config, task, output / "encoder", payload["origin"], summary.steps)
    return summarise(summary)


def build(config: PretrainConfig) -> PretrainTask:
    """The task, from random weights. Raises ValueError where its sizes do not fit together."""
    model = VideoMAE(config.encoder, config.decoder)
    return PretrainTask(model, config.mask, config.data.on_device)


def checkpoints_of(config: PretrainConfig, origin: Mapping[str, str]) -> Checkpoints:
    """The run's checkpoints, which agree with its network, data and inputs."""
    data = to_dict(config)
    return Checkpoints(
        Path(config.cluster.output, "checkpoints"),
        keep=config.run.keep_checkpoints,
        # What is measured beside the training changes nothing in it.
        agreement=agreement(
            {k: v for k, v in data.items() if k != "validation_split"},
            origin,
            config.encoder.identity() | {"decoder": data["decoder"]},
        ),
    )


def open_train(
    config: PretrainConfig,
    *,
    rank: int,
    world: int,
    start_step: int = 0,
    ledger: Ledger | None = None,
    collection: Collection | None = None,
    lost: Lost | None = None,
) -> ClipStream:
    """The training clips of one rank; `collection` and `lost` as for `open_clips`."""
    return open_clips(
        config.data,
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=rank,
        world=world,
        start_step=start_step,
        train=True,
        pinned=bool(config.cluster.gpus_per_worker),
        ledger=ledger,
        collection=collection,
        lost=lost,
    )


def open_held_out(
    config: PretrainConfig, context: WorkerContext, ledger: Ledger, collection: Collection
) -> ClipStream:
    """Clips to look at and to measure on, once each."""
    return open_clips(
        config.data,
        global_batch=config.run.global_batch,
        micro_batch=config.run.micro_batch,
        rank=context.rank,
        world=context.world,
        train=False,
        pinned=bool(config.cluster.gpus_per_worker),
        ledger=ledger,
        collection=collection,
    )


def measure(
    config: PretrainConfig,
    task: PretrainTask,
    step: int,
    tracker: Tracker,
    context: WorkerContext,
    ledger: Ledger,
    held_out: Collection,
) -> dict[str, float]:
    """The loss on `held_out`, if a split is named for it, and a picture of what the model sees.

    `held_out` is the validation split, or without one training's, opened once, whatever the
    evaluations.
    """
    if context.rank == 0:
        with open_held_out(config, context, ledger, held_out) as stream:
            seen = next((batch for batch in stream if batch.weights.any()), None)
        if seen is not None:
            tracker.figure("reconstruction", picture(task, seen.to(context.device)), step)
    if config.validation_split is None:
        return {}
    with open_held_out(config, context, ledger, held_out) as stream:
        found = evaluate(task, stream, LossMeter(), context=context, precision=config.run.precision)
    return {f"{config.validation_split}/{name}": value for name, value in found.items()}


@torch.no_grad()
def picture(task: PretrainTask, batch) -> Any:
    """Input, masked input and reconstruction of a few clips, uint8 [h, w, 3]."""
    task.eval()
    shown = (batch.weights > 0).nonzero().flatten()[:PICTURED].cpu()
    x = normalise(batch.pixels[shown.to(batch.pixels.device)])
    mask = tube_mask(task.mask, task.model.grid, batch.seeds.cpu()[shown])
    rebuilt = task.model(x, mask)
    return reconstruction_strip(x, mask.to(x.device), rebuilt, grid=task.model.grid)


def save_encoder(
    config: PretrainConfig, task: PretrainTask, folder: Path, origin: dict[str, str], steps: int
) -> None:
    """What passes to fine-tuning: the encoder's state dict in the public layout, and its origin."""
    state = fp32_state(task.model.encoder)
    save_artifact(folder, state, to_dict(config)["encoder"], {**origin, "step": str(steps)})


def publish(
    config: PretrainConfig, handle: RunHandle, output: Path, summary: dict[str, Any]
) -> dict[str, Any]:
    """Log the encoder with its run, and register it where a name was given for it; it must load.

    Raises ValueError where it does not.
    """
    saved = load_artifact(output / "encoder")  # before an alias leads anybody to it
    load_weights(Encoder(from_dict(EncoderConfig, saved.config)), saved.state_dict)
    version = registry.publish(
        handle,
        output / "encoder",
        kind="encoder",
        weights=output / "encoder/model.safetensors",
        name=config.tracking.register,
        alias=config.tracking.alias,
    )
    return {"encoder": str(output / "encoder"), "model": version.uri}
