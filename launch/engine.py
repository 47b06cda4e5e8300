"""The training loop and the evaluation loop: the only ones.

Owns what happens in a step, when something is due, how bad steps are met, and the figures of speed.
Refuses to know what a batch holds, what a task computes, and how DeepSpeed, Ray or MLflow are
called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from launch.checkpoint import Checkpoints
from launch.cluster import WorkerContext
from launch.rates import Clock, peak_tflops
from launch.schedule import lr_at, scaled_lr
from launch.state import Diverged, Evaluator, State, Summary
from launch.step import OpenBatches, Source, Tally, sum_over_ranks
from launch.task import Batch, Meter, Tracker
from launch.zero import Precision, Zero, autocast

__all__ = ["Diverged", "Evaluator", "OpenBatches", "RunConfig", "Summary", "due", "evaluate", "fit"]


@dataclass(frozen=True)
class RunConfig:
    epochs: float | None = None
    """Length of the run in epochs of the training data. Set this or steps."""
    steps: int | None = None
    """Length of the run in optimiser steps. Set this or epochs."""
    global_batch: int = 64
    """Clips of one optimiser step, over all workers and all micro-batches."""
    micro_batch: int = 8
    """Clips that one worker computes at once; global_batch is reached by accumulation. It changes
    memory; results only where clips of a micro-batch meet: mixup, batch statistics, drop path."""
    seed: int = 0
    """Seed of initialisation, dropout and masks."""
    base_lr: float = 1.5e-4
    """Peak learning rate for 256 clips a step; the rate used is base_lr * global_batch / 256."""
    min_lr: float = 1e-5
    """Learning rate for 256 clips a step that the cosine ends at; scaled like base_lr."""
    warmup: float = 0.05
    """Share of the run over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW, for the groups that the task decays."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of its two moments."""
    clip_grad: float | None = None
    """Largest global L2 norm of the gradient. None = no clipping."""
    precision: Precision = "fp32"
    """Precision of matrix products. Weights, losses and sums stay fp32."""
    compile: bool = False
    """Let torch.compile have the network: faster steps after a minute of compilation. Random
    numbers, such as which blocks are dropped, are then others."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed ZeRO: 0 nothing, 1 optimiser state, 2 also gradients are spread over the
    workers."""
    log_every: int = 10
    """Steps between two lines of progress."""
    save_every: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    eval_every: int = 0
    """Steps between two evaluations; the end of the run is always evaluated. 0 = only there."""
    keep_checkpoints: int = 3
    """How many checkpoints stay on disk."""
    allow_change: bool = False
    """Go on from a checkpoint with other settings than it was made with (learning rate, masking,
    augmentation, losses, precision, what picks the best step), which then hold from there on.
    Without it they are refused. The network's own, such as drop path, never change in a run."""
    max_bad_steps: int = 5
    """After this many steps in a row without a finite loss and gradient the run goes back to its
    last checkpoint, once."""
    peak_tflops: float | None = None
    """Peak of one device in TFLOP/s, for utilisation. None = from a table of GPU names, where that
    is known."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                "set exactly one of epochs and steps, the other to None; they are "
                f"{self.epochs} and {self.steps}"
            )
        for name in (
            "epochs",
            "steps",
            "global_batch",
            "micro_batch",
            "log_every",
            "save_every",
            "max_bad_steps",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} {value} must be positive")
        if not 0.0 <= self.warmup < 1.0:
            raise ValueError(f"warmup {self.warmup} is a share of the run: 0 ≤ warmup < 1")
        if self.eval_every < 0 or self.keep_checkpoints < 1:
            raise ValueError("eval_every must be at least 0 and keep_checkpoints at least 1")
        if self.clip_grad is not None and self.clip_grad <= 0:
            raise ValueError(
                f"clip_grad {self.clip_grad} must be positive; use None for no clipping"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run, at least 1."""
        if self.steps is not None:
            return self.steps
        return max(1, round(cast(float, self.epochs) * steps_per_epoch))

    def lr_at(self, step: int, total_steps: int) -> float:
        """The scheduled learning rate of a step, counted from 0."""
        peak = scaled_lr(self.base_lr, self.global_batch)
        floor = scaled_lr(self.min_lr, self.global_batch)
        return lr_at(step, steps=total_steps, peak=peak, floor=floor, warmup=self.warmup)

    def accumulation(self, world: int) -> int:
        """Micro-batches of one step on each of `world` workers. Raises ValueError where they do not
        divide the batch."""
        if self.global_batch % (world * self.micro_batch) == 0:
            return self.global_batch // (world * self.micro_batch)
        share = self.global_batch // world
        if self.global_batch % world == 0:
            works = [m for m in range(1, share + 1) if share % m == 0]
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide the {share} clips that each of "
                f"{world} workers has of global_batch {self.global_batch}; micro_batch can be "
                f"{', '.join(map(str, works))}"
            )
        works = [w for w in range(1, self.global_batch + 1) if self.global_batch % w == 0]
        raise ValueError(
            f"{world} workers do not divide global_batch {self.global_batch}; workers can be "
            f"{', '.join(map(str, works))}"
        )


def due(step: int, every: int, *, last: int) -> bool:
    """Whether something that happens every `every` steps (0 = never) and after the last is due
    after `step` steps."""
    return step == last or (every > 0 and step % every == 0)


def fit(
    task: nn.Module,
    open_batches: OpenBatches,
    run: RunConfig,
    *,
    tracker: Tracker,
    checkpoints: Checkpoints,
    context: WorkerContext,
    total_steps: int,
    evaluators: Sequence[Evaluator] = (),
) -> Summary:
    """Train `task` (see `launch.task.Task`) in place up to `total_steps`, from the newest
    checkpoint if there is one.

    The loss of a step is Σ w·loss / Σ w over the whole global batch, so it does not depend on the
    number of workers, on the micro-batch or on padding, as long as a sample's does not depend on
    those beside it (batch normalisation is the task's business). A step whose loss or gradient is
    not finite anywhere changes nothing anywhere, and neither does one in which no sample counts.
    Raises `Diverged` after too many of the former, ValueError where all steps are the latter, and
    CheckpointError where the checkpoint is of another network.
    """
    state, clock = State(context.rank, total_steps), _clock(task, run, context)
    source = Source(open_batches, run.accumulation(context.world))
    with closing(_build(task, run, context)) as zero, closing(source):
        state.resume(checkpoints, zero, source)
        while state.step < total_steps:
            task.train()
            _seed(run.seed, state.step, context.rank)

            micro_batches = clock.load(source.take)  # load
            tally = Tally(micro_batches, context, waited=clock.waited)  # weigh
            for batch in micro_batches:
                batch = batch.to(context.device)
                losses, metrics = zero.forward(batch)  # forward
                zero.backward(tally.add(losses, metrics, batch))  # backward
            result = zero.step(run.lr_at(state.step, total_steps), tally.weight)  # step
            figures = tally.reduce() | result.figures()
            clock.tick(tally.longest_wait())

            if not result.applied and state.is_lost(tally, result, run.max_bad_steps):
                state.go_back(checkpoints, zero, source)
                continue
            state.finish_step(figures, applied=result.applied)
            if due(state.step, run.log_every, last=total_steps):  # log
                state.log(figures, clock.read(), tracker)
            if due(state.step, run.save_every, last=total_steps) and state.may_save:  # save
                checkpoints.save(zero, state.step, state.progress())
            if due(state.step, run.eval_every, last=total_steps):  # evaluate
                state.evaluate(zero, evaluators, tracker)
        if state.evaluated_at != total_steps:  # an earlier job took the last step
            state.evaluate(zero, evaluators, tracker)
    return state.summary(clock)


def evaluate(
    task: nn.Module,
    batches: Iterable[Batch],
    meter: Meter,
    *,
    context: WorkerContext,
    precision: Precision = "fp32",
) -> dict[str, float]:
    """The meter's figures of `task.predict` over the batches of all ranks, exact: sums are reduced,
    not figures."""
    was_training = task.training
    task.eval()
    with torch.no_grad(), autocast(context.device, precision):
        for batch in batches:
            batch = batch.to(context.device)
            meter.update(cast(Any, task).predict(batch), batch)
    task.train(was_training)
    return meter.compute(lambda value: sum_over_ranks(value, context.device))


def _build(task: nn.Module, run: RunConfig, context: WorkerContext) -> Zero:
    if run.compile:
        task.compile()
    return Zero(
        task,
        device=context.device,
        stage=run.zero_stage,
        precision=run.precision,
        micro_batch=run.micro_batch,
        accumulation=run.accumulation(context.world),
        clip_grad=run.clip_grad,
        weight_decay=run.weight_decay,
        betas=run.betas,
    )


def _clock(task: nn.Module, run: RunConfig, context: WorkerContext) -> Clock:
    peak = run.peak_tflops
    if peak is None and context.device.type == "cuda" and run.precision != "fp32":
        peak = peak_tflops(torch.cuda.get_device_name(context.device))
    flops = cast(Any, task).flops_per_clip
    return Clock(
        clips=run.global_batch,
        flops_per_clip=flops,
        world=context.world,
        device=context.device,
        peak=peak,
    )


def _seed(seed: int, step: int, rank: int) -> None:
    """Seed torch from (seed, step, rank), so that resuming needs no state of any generator."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
