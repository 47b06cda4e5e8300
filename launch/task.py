"""The contract between an objective and the loop that trains it.

Owns the protocols of what the engine calls: a batch, a task, a meter, a tracker. Refuses to know
faces, video, networks, DeepSpeed, Ray or MLflow; anything that offers these few members can be
trained, measured and logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor


class Batch(Protocol):
    """One micro-batch of B slots. The engine touches nothing but these members."""

    keys: list[str]
    """The name of each slot's sample, "" for padding; named in messages about bad samples."""
    weights: Tensor
    """float32 [B]; 0 takes a slot out of the loss exactly (a padding slot, or a sample that could
    not be read)."""

    def to(self, device: torch.device) -> Self: ...

    def __len__(self) -> int: ...


@runtime_checkable
class Task(Protocol):
    """A model together with its objective: an `nn.Module` with these four members.

    Its `compile` is called where the run asks for it, and may compile parts instead of the whole.
    """

    flops_per_clip: float
    """Floating-point operations of one training step on one clip (3 × forward); 0 where it is not
    known."""

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of the slots, float32 [B] with their graph, and metrics of the slots, each [B]
        without one.

        A slot's loss must not depend on the other slots of the micro-batch where results are to be
        independent of `micro_batch`, and must stay finite on a slot of zero pixels, whose weight is
        0.
        """
        ...

    def param_groups(self, weight_decay: float) -> list[dict]:
        """Groups for the optimiser, each with `params`, `weight_decay`, `lr_scale` (1.0 = the
        scheduled rate), `name`."""
        ...

    def predict(self, batch: Any) -> Tensor:
        """What a meter is fed in evaluation; the first dimension is B."""
        ...


class Meter(Protocol):
    """Accumulates sums on one rank and turns the sums of all ranks into figures, so that a figure
    is exact."""

    def update(self, output: Tensor, batch: Any) -> None: ...

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Figures by name. `reduce` returns the sum of a tensor over all ranks; every rank calls it
        equally often."""
        ...


class Tracker(Protocol):
    """Where figures, files and pictures of a run go. The engine calls it on rank 0 alone."""

    def log(self, metrics: dict[str, float], step: int) -> None: ...

    def log_file(self, path: str, artifact_dir: str) -> None: ...

    def figure(self, name: str, image: Any, step: int) -> None:
        """`image`: the path of a PNG, or an array uint8 [h, w, 3]."""
        ...
