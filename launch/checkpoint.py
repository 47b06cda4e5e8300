"""Checkpoints of a run: what resuming needs, on disk, whole or not at all.

Owns the folder `checkpoints/` of a run: `step_000100/` holds DeepSpeed's files and meta.json, is
written aside, written through to the disk and renamed once every rank is done, so a folder of that
name is complete. One that was damaged later is set aside, and the run goes on from the one before.
Refuses to know the loop, the network and the data; never publishes weights (`fp32_state` gives them
to whoever does).
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch import durable
from launch.agreement import Agreement, CheckpointError, shapes
from launch.durable import check_shared, damage, from_rank0
from launch.failures import mended_by_restart
from launch.zero import Zero

SCHEMA = "face-checkpoint/1"
_ASIDE = ".writing-"
_DAMAGED = "damaged-"


@dataclass(frozen=True)
class Resumed:
    """Where a checkpoint left off."""

    step: int
    """Steps completed; the next step to run has this number."""
    progress: dict[str, Any]
    """What the loop wrote beside the weights: plain JSON values."""
    changed: dict[str, tuple[str, str]]
    """Settings that were others until here: as they were, and as they are."""


class Damaged(CheckpointError):
    """A checkpoint that nobody can continue from: its files are not what was written."""

    def __init__(self, path: Path, why: Any):
        super().__init__(path, str(why))  # its arguments, so that it travels between processes
        told = str(why).strip() or type(why).__name__
        self.path, self.what = path, f"{path} is damaged ({told.splitlines()[0]})"

    def __str__(self) -> str:
        return f"{self.what}; restore it, or delete this folder to go on without it"


class Checkpoints:
    """The newest `keep` checkpoints in `folder`, which every rank can read and write.

    A checkpoint of a run that is not `agreement`'s is refused.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, agreement: Agreement | None = None):
        if keep < 1:
            raise ValueError(
                f"keep {keep} must be at least 1: a restart continues from the newest checkpoint"
            )
        self.folder, self.keep = Path(folder), keep
        self.agreement = agreement or Agreement()

    def latest(self) -> Path | None:
        """The newest complete checkpoint, None before the first."""
        found = self._complete()
        return found[-1] if found else None

    def resumable(self) -> dict[str, Any] | None:
        """meta.json of the checkpoint that a run would continue from. Raises CheckpointError where
        it is of another run; asked before anything starts, by one process."""
        damaged = None
        for path in reversed(self._complete()):
            try:
                meta = read_meta(path)
                self.agreement.check(path, meta)
            except Damaged as error:  # the workers set it aside
                damaged = damaged or error
            else:
                return meta
        if damaged:
            raise damaged
        return None

    def drop(self) -> None:
        """Remove every checkpoint of a run that is over, damaged and half-written ones too; the
        files beside them stay."""
        for path in self.folder.glob("*/"):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, zero: Zero, step: int, progress: dict[str, Any]) -> Path:
        """Write the checkpoint of `step` completed steps and drop the oldest beyond `keep`; every
        rank calls this.

        Raises OSError where the disk is too small, before or while writing; nothing half-written
        stays.
        """
        final, aside = self.folder / f"step_{step:06d}", self.folder / f"{_ASIDE}step_{step:06d}"
        if problem := from_rank0(self._lacks_room(zero) if dist.get_rank() == 0 else None):
            raise OSError(errno.ENOSPC, problem)
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
        dist.barrier()
        zero.settle_buffers()
        try:
            sizes = durable.through(zero.save(aside), aside)
        except (OSError, RuntimeError) as error:
            full, number = self._lacks_room(zero), durable.why_unwritten(error, self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            what = f"checkpoint of step {step} could not be written: {full or error}"
            raise OSError(errno.ENOSPC if full else number, what) from error
        meta = self._meta(zero, step, progress) | {"files": sizes}
        if dist.get_rank() == 0:
            self._publish(aside, final, meta)
        dist.barrier()
        return final

    def restore(self, zero: Zero) -> Resumed | None:
        """Bring `zero` to the newest sound checkpoint, None where there is none; all ranks call it.

        The number of ranks may differ from when it was written. Damaged ones that are newer are
        set aside. Raises CheckpointError naming the field or tensor where the checkpoint is of
        another network, or where each is damaged, and OSError where ranks see different folders.
        """
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"{_ASIDE}*"):
                shutil.rmtree(left, ignore_errors=True)
        check_shared(self.folder)
        damaged: list[Damaged] = []
        for path in from_rank0(self._complete()[::-1] if dist.get_rank() == 0 else None):
            try:
                meta = _inspected(path)
            except Damaged as error:
                damaged.append(error)
                continue
            self.agreement.check(path, meta)
            if damaged and dist.get_rank() == 0:
                self._set_aside(damaged, going_on=path)
            return self._load(zero, path, meta)
        if damaged:
            raise damaged[0]
        return None

    def _set_aside(self, damaged: list[Damaged], *, going_on: Path) -> None:
        """Take damaged checkpoints out of the way, and say so."""
        for error in damaged:
            aside = error.path.with_name(f"{_DAMAGED}{error.path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            error.path.rename(aside)
            print(f"{error.what}; kept as {aside.name}, going on from {going_on.name}", flush=True)

    def _load(self, zero: Zero, path: Path, meta: dict[str, Any]) -> Resumed:
        self.agreement.check_tensors(path, meta, zero.task, zero.stage)
        try:
            if zero.stage == 0 or meta["world"] == dist.get_world_size():
                zero.load(path)
            else:
                zero.load_repartitioned(path, meta["world"])
        except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
            if isinstance(error, torch.OutOfMemoryError) or mended_by_restart(error):
                raise  # of the device or the storage; the files were found sound
            raise Damaged(path, error) from error
        zero.resume_scaling(meta["loss_scale"], meta.get("good_steps", 0))
        dist.barrier()
        return Resumed(meta["step"], meta["progress"], self.agreement.changes(meta))

    def _meta(self, zero: Zero, step: int, progress: dict[str, Any]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "step": step,
            "world": dist.get_world_size(),
            "zero_stage": zero.stage,
            "loss_scale": zero.loss_scale,
            "good_steps": zero.good_steps,
            "model": self.agreement.model,
            "recipe": self.agreement.recipe,
            "tensors": shapes(zero.task),
            "progress": progress,
        }

    def _publish(self, aside: Path, final: Path, meta: dict[str, Any]) -> None:
        durable.write_through(aside / "meta.json", json.dumps(meta, indent=1, allow_nan=False))
        replaced = self.folder / f"{_ASIDE}replaced"
        if final.exists():  # a run that went back to an earlier checkpoint comes by again
            final.rename(replaced)
        durable.rename_through(aside, final)
        for old in [replaced, *self._complete()[: -self.keep]]:
            shutil.rmtree(old, ignore_errors=True)

    def _complete(self) -> list[Path]:
        names = re.compile(r"step_(\d+)")
        found = [
            (names.fullmatch(p.name), p)
            for p in self.folder.glob("step_*")
            if (p / "meta.json").is_file()
        ]
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def _lacks_room(self, zero: Zero) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        need = checkpoint_bytes(zero.task)
        free = shutil.disk_usage(self.folder).free
        if free >= need:
            return None
        return (
            f"no room for a checkpoint in {self.folder}: it takes {need / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free; free some space, lower --run.keep_checkpoints or "
            "choose another --cluster.output"
        )


def checkpoint_bytes(network: nn.Module) -> int:
    """Size of a checkpoint: weights, fp32 masters and AdamW's two moments, four fp32 numbers a
    parameter (stage 0 has no second copy)."""
    return 16 * sum(p.numel() for p in network.parameters())


def read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint. Raises CheckpointError for another schema."""
    try:
        meta = json.loads((path / "meta.json").read_text())
    except (ValueError, OSError) as error:
        raise Damaged(path, error) from error
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: schema {meta.get('schema')!r}, this version reads {SCHEMA!r}; "
            f"continue with the version that wrote it, or start afresh in another --cluster.output"
        )
    return meta


def _inspected(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint whose files are as they were written; the same on every rank."""
    try:
        meta: Any = read_meta(path) if dist.get_rank() == 0 else None
    except CheckpointError as error:
        meta = error
    meta = from_rank0(meta)
    if isinstance(meta, CheckpointError):
        raise meta
    if what := damage(path, meta.get("files", {})):  # without a list: by an earlier version
        raise Damaged(path, what)
    return meta


def fp32_state(task: nn.Module) -> dict[str, Tensor]:
    """A trained task's parameters and buffers on the CPU, contiguous, floating point as fp32, by
    the task's own names.

    The parameters of the module are the fp32 master weights on every rank (see `launch.zero`), so
    nothing is gathered.
    """
    state = {}
    for name, value in task.state_dict().items():
        value = value.detach().to(
            "cpu", torch.float32 if value.is_floating_point() else value.dtype
        )
        state[name] = value.clone(memory_format=torch.contiguous_format)
    return state
