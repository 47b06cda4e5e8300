"""A task of a few thousand parameters and batches held in memory, for tests of the loop around
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from launch.cluster import ClusterConfig, WorkerContext, launch

FEATURES, CLASSES = 12, 4


@dataclass
class ToyBatch:
    """pixels float32 [B, 12], labels int64 [B], weights float32 [B]."""

    pixels: Tensor
    labels: Tensor
    weights: Tensor
    keys: list[str]

    def to(self, device: torch.device) -> ToyBatch:
        tensors = (x.to(device) for x in (self.pixels, self.labels, self.weights))
        return ToyBatch(*tensors, self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class ToyTask(nn.Module):
    """One hidden layer, a buffer that every forward moves, two parameter groups of unequal
    rates."""

    flops_per_clip = 1e6

    def __init__(
        self,
        width: int = 32,
        *,
        dropout: float = 0.0,
        loss_factor: float = 1.0,
        cliff: str = "",
    ):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(FEATURES, width), nn.GELU(), nn.LayerNorm(width), nn.Dropout(dropout)
        )
        self.head = nn.Linear(width, CLASSES)
        self.register_buffer("mean", torch.zeros(()))
        self.loss_factor, self.cliff = loss_factor, cliff

    def forward(self, batch: ToyBatch) -> tuple[Tensor, dict[str, Tensor]]:
        self.mean.lerp_(batch.pixels.mean(), 0.1)
        logits = self.predict(batch)
        losses = F.cross_entropy(logits, batch.labels, reduction="none") * self.loss_factor
        over = batch.pixels.amax(1) > 50
        if self.cliff == "gradient":  # there: a finite loss whose gradient is not
            losses = losses + torch.sqrt(torch.where(over, logits.sum(1) * 0.0, 1.0))
        if self.cliff == "loss":  # there: a loss that is not finite, whose gradient is
            losses = losses + torch.where(over, float("inf"), 0.0)
        return losses, {"accuracy": (logits.argmax(1) == batch.labels).float()}

    def param_groups(self, weight_decay: float) -> list[dict]:
        body, head = list(self.body.parameters()), list(self.head.parameters())
        return [
            {"params": body, "weight_decay": weight_decay, "lr_scale": 0.5, "name": "body"},
            {"params": head, "weight_decay": 0.0, "lr_scale": 1.0, "name": "head"},
        ]

    def predict(self, batch: ToyBatch) -> Tensor:
        return self.head(self.body(batch.pixels)).float()


def slots(step: int, numbers: list[int]) -> ToyBatch:
    """The given slots of a step; what a slot holds is a function of step and number alone."""
    rows = []
    for i in numbers:
        row = torch.randn(FEATURES, generator=torch.Generator().manual_seed(1000 * step + i))
        row[i % CLASSES] += 2.0
        rows.append(row)
    labels = torch.tensor([i % CLASSES for i in numbers])
    return ToyBatch(
        torch.stack(rows), labels, torch.ones(len(rows)), [f"s{step}.{i}" for i in numbers]
    )


@dataclass
class ToyStream:
    """Micro-batches of one rank from any step on; slot i of a step belongs to rank i % world."""

    global_batch: int
    micro_batch: int
    context: WorkerContext
    fill: dict[str, float] = field(default_factory=dict)
    """Samples, by key, whose pixels are all of one value."""
    missing: tuple[str, ...] = ()
    """Samples that could not be read: pixels of zero, weight 0."""

    def open(self, start_step: int) -> Iterator[ToyBatch]:
        mine = list(range(self.context.rank, self.global_batch, self.context.world))
        step = start_step
        while True:
            for first in range(0, len(mine), self.micro_batch):
                yield self._spoil(slots(step, mine[first : first + self.micro_batch]))
            step += 1

    def _spoil(self, batch: ToyBatch) -> ToyBatch:
        for i, key in enumerate(batch.keys):
            if key in self.fill:
                batch.pixels[i] = self.fill[key]
            if key in self.missing:
                batch.pixels[i], batch.weights[i] = 0.0, 0.0
        return batch


class MemoryTracker:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.rows[step] = self.rows.get(step, {}) | metrics

    def log_file(self, path: str, artifact_dir: str) -> None:
        raise AssertionError("the engine logs no files")

    def figure(self, name: str, image: Any, step: int) -> None:
        raise AssertionError("the engine logs no figures")

    @property
    def losses(self) -> list[float]:
        return [row["train/loss"] for _, row in sorted(self.rows.items())]


class Accuracy:
    """A meter: the share of right answers among the samples that count."""

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, output: Tensor, batch: ToyBatch) -> None:
        right = (output.argmax(1) == batch.labels) * batch.weights
        self.sums += torch.stack([right.sum(), batch.weights.sum()]).double()

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        right, count = reduce(self.sums).tolist()
        return {"accuracy": right / count, "samples": count}


def here(work: Callable[[WorkerContext], Any]) -> Any:
    """Run `work` as the only worker, in this process."""
    return launch(lambda _, context: {"it": work(context)}, {}, ClusterConfig(workers=0))["it"]
