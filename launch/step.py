"""What one optimiser step is made of: its micro-batches, the weight of each sample, sums over all
ranks.

Owns the arithmetic that makes a step's loss independent of workers, micro-batches and padding.
Refuses to know optimisers, schedules and logs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launch.cluster import WorkerContext
from launch.task import Batch

OpenBatches = Callable[[int], Iterable[Batch]]
"""Opens the micro-batches of this rank from a step on, in the order of the steps."""


def sum_over_ranks(value: Tensor, device: torch.device) -> Tensor:
    """The sum of a tensor over all ranks, on `device` (the one that the process group talks
    from)."""
    total = value.detach().to(device, copy=True)
    dist.all_reduce(total)
    return total


class Source:
    """The micro-batches of a run, a step at a time, from any step on."""

    def __init__(self, open_batches: OpenBatches, micro_batches_per_step: int):
        self._open, self._count = open_batches, micro_batches_per_step
        self._batches: Iterable[Batch] = ()

    def start(self, step: int) -> None:
        self.close()
        self._batches = self._open(step)
        self._iterator = iter(self._batches)

    def take(self) -> list[Batch]:
        taken = list(itertools.islice(self._iterator, self._count))
        if len(taken) < self._count:
            raise ValueError(
                f"the data ended inside a step: {len(taken)} of {self._count} micro-batches came"
            )
        return taken

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()


def _left_out(batch: Batch) -> int:
    """Samples that do not count, each once however many views it has."""
    return len({k for k, w in zip(batch.keys, batch.weights.tolist(), strict=True) if k and not w})


class Tally:
    """Weighs the losses of one step and adds up its figures, over micro-batches and ranks."""

    def __init__(self, micro_batches: list[Batch], context: WorkerContext, *, waited: float = 0.0):
        """`waited`: seconds that this rank waited for the micro-batches."""
        weight = torch.stack([b.weights.double().sum() for b in micro_batches]).sum()
        waits = torch.zeros(context.world, dtype=torch.float64)
        waits[context.rank] = waited
        total = sum_over_ranks(torch.cat([weight.cpu()[None], waits]), context.device)
        self.weight, self._waits = total[0], total[1:]
        """Of all samples of all ranks, float64; 0 where none counts."""
        self._left_out = sum(_left_out(batch) for batch in micro_batches)
        self._context = context
        self._sums: dict[str, Tensor] = {}
        self._bad: list[tuple[Tensor, list[str]]] = []

    def add(self, losses: Tensor, metrics: dict[str, Tensor], batch: Batch) -> Tensor:
        """This micro-batch's share of the loss, times the number of ranks that DeepSpeed averages
        over."""
        if losses.shape != batch.weights.shape:
            raise ValueError(
                f"the task returned losses {list(losses.shape)} for {len(batch)} samples"
            )
        # Where nothing counts there is no mean: nan makes every rank drop the step.
        weights = torch.where(self.weight == 0, float("nan"), batch.weights)
        counted = weights != 0  # a weight of 0 must also silence a loss that is not finite
        share = (weights * torch.where(counted, losses, 0.0)).sum()
        bad = counted & ~torch.isfinite(losses.detach())
        self._bad.append((bad, batch.keys))
        for name, values in {"loss": losses, **metrics}.items():
            kept = torch.where(counted, values.detach().double(), 0.0)
            self._sums[name] = self._sums.get(name, 0.0) + (weights * kept).sum()
        # A loss that is not finite may still have a finite gradient.
        poison = torch.where(bad.any(), float("nan"), 1.0)
        return share * (self._context.world / self.weight).float() * poison

    def reduce(self) -> dict[str, float]:
        """Weighted means over the whole global batch, `loss` among them, and `left_out`: how many
        samples have weight 0, because they could not be read or have no target."""
        names = sorted(self._sums)
        left_out = torch.tensor(float(self._left_out), dtype=torch.float64)
        sums = torch.stack([*(self._sums[name] for name in names), left_out.to(self.weight.device)])
        *sums, left_out = sum_over_ranks(sums, self._context.device)
        means = {name: float(s / self.weight) for name, s in zip(names, sums, strict=True)}
        return means | {"left_out": float(left_out)}

    def longest_wait(self) -> float:
        """Seconds that the slowest rank waited for its data: all others waited for it."""
        return float(self._waits.max())

    def verdict(self) -> tuple[bool, str]:
        """Of a dropped step: whether a loss was not finite, and what to tell, with the keys of all
        ranks' samples. Every rank calls this."""
        bad = self.named(bad=True)
        if bad:
            return True, f"loss is not finite for {bad}"
        return False, f"gradient is not finite, every loss is, among {self.named()}"

    def named(self, *, bad: bool = False) -> str:
        """The keys of all ranks' samples, or only of those with a bad loss; the first 20.
        Every rank calls this."""
        mine = []
        for flags, keys in self._bad:
            wanted = flags.tolist() if bad else [bool(key) for key in keys]
            mine += itertools.compress(keys, wanted)
        everyone: list[Any] = [None] * self._context.world
        dist.all_gather_object(everyone, mine)
        keys = [key for part in everyone for key in part]
        more = f" and {len(keys) - 20} more" if len(keys) > 20 else ""
        return ", ".join(keys[:20]) + more
