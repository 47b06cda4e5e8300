"""DeepSpeed behind five verbs: forward, backward, step, save, load.

Owns DeepSpeed's key names, its process-wide switches and its ways around a bad step. Refuses to
know schedules, data, checkpoint folders and what a task computes.

Parameters stay fp32 whatever the precision: bf16 and fp16 are autocast around the task's forward.
So the module's parameters are the master weights, statistics and losses keep full precision,
gradients are accumulated and reduced in fp32, and a result does not depend on how many workers
shared the sum.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from launch.repartition import repartition
from launch.schedule import set_lr

Precision = Literal["fp32", "bf16", "fp16"]
LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
TAG = "deepspeed"
"""The folder DeepSpeed's own files are in, inside a checkpoint."""

WEIGHTS = "mp_rank_00_model_states.pt"
"""The file with the weights, written by rank 0."""

_FIRST_LOSS_SCALE = 2.0**16
_GROW_EVERY = 2000


def deepspeed_config(
    *, stage: int, micro_batch: int, accumulation: int, clip_grad: float | None
) -> dict[str, Any]:
    """Our fields in DeepSpeed's words. Stage 0 is clipped by `Zero.step`, which also needs the norm
    that it takes."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if stage == 0 or clip_grad is None else clip_grad,
        # The default bucket of 5e8 elements reserves 2 GB of a device for models a hundredth of
        # that size.
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000},
        "steps_per_print": 10**9,
        # It would wait for the device at every micro-batch; `rates.Clock` takes the time.
        "timers": {"throughput": {"enabled": False}},
    }


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """The context a task's forward or predict runs in."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=LOW_PRECISION[precision])


class StepResult(NamedTuple):
    applied: bool
    """False: the gradient was not finite on some rank, and no rank changed anything."""
    lr: float
    grad_norm: float
    """Global L2 norm of the gradient before clipping; inf or nan where it was not finite."""
    loss_scale_may_be_why: bool = False
    """Whether a gradient that is not finite may be the fp16 loss scale's doing, which mends
    itself."""

    def figures(self) -> dict[str, float]:
        return {"lr": self.lr, "grad_norm": self.grad_norm}


class Zero:
    """A task, its AdamW optimiser and their DeepSpeed engine (ZeRO stage 0, 1 or 2).

    The process group must exist. `clip_grad` is the largest global L2 norm of a gradient, None for
    no clipping. Raises ValueError where the task's parameter groups cannot be trained.
    """

    def __init__(
        self,
        task: nn.Module,
        *,
        device: torch.device,
        stage: Literal[0, 1, 2],
        precision: Precision,
        micro_batch: int,
        accumulation: int,
        clip_grad: float | None,
        weight_decay: float,
        betas: tuple[float, float],
    ):
        self.task, self.stage, self.clip_grad = task.to(device), stage, clip_grad
        self.loss_scale = _FIRST_LOSS_SCALE if precision == "fp16" else 1.0
        self._dynamic, self.good_steps = precision == "fp16", 0
        self._buffers: list[Tensor] = []
        deepspeed = _import_deepspeed(device)
        groups = _checked_groups(cast(Any, task).param_groups(weight_decay))
        self.engine, *_ = deepspeed.initialize(
            model=_Autocast(task, device, precision),
            optimizer=torch.optim.AdamW(groups, lr=0.0, betas=betas),
            config=deepspeed_config(
                stage=stage, micro_batch=micro_batch, accumulation=accumulation, clip_grad=clip_grad
            ),
        )

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        if not self._buffers:
            self._buffers = [buffer.clone() for buffer in self.task.buffers()]
        return self.engine(batch)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's scalar loss; DeepSpeed averages over ranks after
        the last."""
        if self._dynamic and self.stage == 0:
            loss = loss * self.loss_scale
        elif self._dynamic:
            self.engine.optimizer.override_loss_scale(self.loss_scale)
        self.engine.backward(loss, scale_wrt_gas=False)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # changes no parameter here; it counts the micro-batch

    def step(self, lr: float, weight: Tensor | float = 1.0) -> StepResult:
        """Apply the accumulated gradient with the scheduled rate `lr`, on all ranks or on none.

        `weight` is that of all samples together: a step without any is no overflow in fp16.
        """
        set_lr(self.engine.optimizer.param_groups, lr)
        if self.stage == 0:
            applied, norm = self._plain_step()
        else:
            self.engine.step()
            applied = self.engine.was_step_applied()
            norm = float(self.engine.get_global_grad_norm())
        result = StepResult(applied, lr, norm, self._dynamic and self.loss_scale > 1.0)
        if not applied:
            for buffer, before in zip(self.task.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        self._buffers = []
        if applied or float(weight) > 0:
            self._adapt_loss_scale(applied)
        return result

    def _plain_step(self) -> tuple[bool, float]:
        parameters = [p for p in self.task.parameters() if p.grad is not None]
        grads = [cast(Tensor, p.grad) for p in parameters]
        if self.loss_scale != 1.0:
            for grad in grads:
                grad.mul_(1.0 / self.loss_scale)
        norm = torch.nn.utils.get_total_norm(grads)
        finite = _on_every_rank(torch.isfinite(norm))
        if not finite:
            self.engine.zero_grad()  # AdamW passes over parameters that have no gradient
        elif self.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        self.engine.step()
        return finite, float(norm)

    def _adapt_loss_scale(self, applied: bool) -> None:
        """Halve the fp16 loss scale after an overflow, double it after 2000 good steps
        (Micikevicius 2018)."""
        if not self._dynamic:
            return
        self.good_steps = self.good_steps + 1 if applied else 0
        if not applied:
            self.loss_scale = max(1.0, self.loss_scale / 2)
        elif self.good_steps % _GROW_EVERY == 0:
            self.loss_scale *= 2

    def settle_buffers(self) -> None:
        """Give every rank rank 0's buffers: statistics that a task keeps of the batches it saw."""
        for buffer in self.task.buffers():
            torch.distributed.broadcast(buffer, src=0)

    def resume_scaling(self, loss_scale: float, good_steps: int) -> None:
        """Go on with the loss scale of a checkpoint; one that was trained without has 1."""
        if self._dynamic and loss_scale > 1.0:
            self.loss_scale, self.good_steps = loss_scale, good_steps

    def save(self, folder: Path) -> list[Path]:
        """Write DeepSpeed's files to `folder`/TAG; every rank calls this. Returns those of this
        rank."""
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        rank = torch.distributed.get_rank()
        mine = list((folder / TAG).glob(f"*pp_rank_{rank}_*.pt"))
        return [*mine, folder / TAG / WEIGHTS] if rank == 0 else mine

    def load(self, folder: Path) -> None:
        """Read `folder`/TAG, written by as many ranks as there are now and, for stage 0, by any
        number."""
        own = self._settings()
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        assert path is not None, f"DeepSpeed read nothing from {folder}"
        for group, settings in zip(self.engine.optimizer.param_groups, own, strict=True):
            group.update(settings)

    def _settings(self) -> list[dict[str, Any]]:
        """What this run asks of each parameter group: a checkpoint brings its own."""
        names = ("weight_decay", "betas", "lr_scale")
        return [{n: group[n] for n in names} for group in self.engine.optimizer.param_groups]

    def load_repartitioned(self, folder: Path, world: int) -> None:
        """Read `folder`/TAG as `world` ranks wrote it, on any number of ranks (stages 1 and 2)."""
        repartition(self.engine, folder / TAG, world)

    def close(self) -> None:
        """Give back DeepSpeed's buffers and hooks; the task keeps its trained parameters."""
        self.engine.destroy()


def release_process_group() -> None:
    """Take down torch's default process group together with the references DeepSpeed holds to
    it."""
    if "deepspeed" in sys.modules and sys.modules["deepspeed"].comm.is_initialized():
        sys.modules["deepspeed"].comm.destroy_process_group()
    elif torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Autocast(nn.Module):
    """The task under its precision. Autocast has to be inside: DeepSpeed switches it off around its
    own forward."""

    def __init__(self, task: nn.Module, device: torch.device, precision: Precision):
        super().__init__()
        self.task = task
        self._device = device
        self._precision: Precision = precision

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(self._device, self._precision):
            return self.task(batch)


def _on_every_rank(flag: Tensor) -> bool:
    everywhere = flag.to(torch.uint8)
    torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MIN)
    return bool(everywhere)


def _import_deepspeed(device: torch.device) -> Any:
    os.environ["DS_ACCELERATOR"] = (
        device.type
    )  # read once, at import; keeps auto-detection and its warning away
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(deepspeed|torch\.distributed)\b.*"
    )
    import deepspeed

    deepspeed.utils.logger.setLevel(
        logging.ERROR
    )  # it warns of every step that is dropped; the loop says why
    if device.type == "cpu":
        # This extension only serves inference, yet every initialisation would compile it for a
        # minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _checked_groups(groups: list[dict]) -> list[dict]:
    for group in groups:
        missing = {"params", "weight_decay", "lr_scale", "name"} - set(group)
        if missing:
            raise ValueError(
                f"parameter group {group.get('name', '?')!r} lacks {', '.join(sorted(missing))}"
            )
    kept = [group for group in groups if len(group["params"])]
    if not kept:
        raise ValueError("the task's param_groups() hold no parameter: nothing can be trained")
    return kept
