"""One pass over the clips for the temporal probes: every manipulation, and what attention looks at.

Owns what a network is asked of each batch and what is kept of each clip. Figures over clips are
`report.py`; manipulations and measures of attention have files of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from finetune.collecting import Clips, gathered, person
from finetune.inputs import inputs_of
from finetune.outputs import Outputs
from finetune.probes.apex import (
    Layer,
    Looked,
    Readings,
    apex_tubelets,
    framed,
    looked,
    read,
    within,
)
from finetune.probes.manipulations import AS_IS, manipulated, names
from mira.tubelets import normalise
from shards.batch import ClipBatch
from shards.index import IndexRow
from shards.marks import marked
from shards.stream import ClipStream


class Asked(NamedTuple):
    """What one batch of B clips gave, on the CPU."""

    answers: Tensor
    """int64 [B, M]: the likeliest class under every manipulation."""
    possible: Tensor
    """bool [B, M]"""
    changed: Tensor
    """bool [B, M]"""
    readings: Readings | None
    """Of the clips as they are; None where no layer sees several frames."""


@dataclass(frozen=True)
class Attention:
    """Where one clip's attention lies."""

    uniform: float
    """Share of the sampled frames from onset to offset: what equal importance puts there."""
    importance: Looked
    """Of the M layers with MiRA's core, and behind them of their mean."""
    received: Looked
    """Of all L layers, behind them of their mean, and last of the mean of the M layers above."""
    apex: tuple[int, ...]
    """The tubelet that holds the apex in each view that reaches it."""


@dataclass(frozen=True)
class Row:
    """One clip; manipulations by name."""

    dataset: str
    key: str
    person: str | None
    label: int
    """-1 unknown."""
    answers: dict[str, int]
    """The likeliest class, under every manipulation that the clip allows."""
    changed: dict[str, bool]
    attention: Attention | None
    """None without annotated onset, apex and offset, or without framed layers."""


class TemporalTask(nn.Module):
    """A fine-tuned network that is asked about manipulated clips.

    Args:
        network: see `finetune.models`.
        outputs: what its logits are; classes among them.
        seed: of the random orders.

    Raises:
        ValueError: a network that tells no classes.
    """

    def __init__(self, network: Any, outputs: Outputs, *, seed: int):
        super().__init__()
        if not outputs.labels:
            raise ValueError("the model tells no classes, which the temporal probes compare")
        self.network, self.outputs, self.seed = network, outputs, seed
        self.layers: list[Layer] = framed(network)
        self.names = names(frames=network.config.frames, pair=network.config.pair)

    def predict(self, batch: ClipBatch) -> Asked:
        """Ask about every manipulation of the batch."""
        answers, possible, changed, readings = [], [], [], None
        for name in self.names:
            frames = self.network.config.frames
            found = manipulated(name, batch, frames=frames, seed=self.seed)
            logits, seen = self._logits(found.batch, look=name == AS_IS and bool(self.layers))
            readings = seen or readings
            told = self.outputs.split(self.outputs.answers(logits, views=batch.views)).labels
            answers.append(told.argmax(1).cpu())
            possible.append(found.possible)
            changed.append(found.changed)
        stacked = [torch.stack(part, 1) for part in (answers, possible, changed)]
        return Asked(stacked[0], stacked[1], stacked[2], readings)

    def _logits(self, batch: ClipBatch, *, look: bool) -> tuple[Tensor, Readings | None]:
        x, inputs = normalise(batch.pixels), inputs_of(self.network, batch)
        if not look:
            return self.network(x, **inputs), None
        features, readings = read(self.network, x, self.layers, **inputs)
        return self.network.classify(features), readings


class TemporalMeter:
    """Keeps a row a clip; every clip that was not read is counted, none is replaced.

    Args:
        stream: the clips it will be fed, from the first batch on.
        task: what is asked of them.
    """

    def __init__(self, stream: ClipStream, task: TemporalTask):
        self._clips, self._task = Clips(stream), task
        self._own = [i for i, layer in enumerate(task.layers) if layer.attention.core.framewise]
        self._rows: list[Row] = []
        self.rows: list[Row] | None = None
        """Of all ranks, by data set and key; set by `compute`, on rank 0 alone."""

    def update(self, output: Any, batch: ClipBatch) -> None:
        """Take what `TemporalTask.predict` returned for a batch."""
        asked: Asked = output
        for i, row in enumerate(self._clips.of(batch)):
            if row is None:
                continue
            able = asked.possible[i].clone()
            if not marked(row.record):  # an apex that is merely the middle was not seen by anybody
                able &= torch.tensor([name != "apex_removed" for name in self._task.names])
            pick = [(name, m) for m, name in enumerate(self._task.names) if able[m]]
            self._rows.append(
                Row(
                    row.record.dataset,
                    row.key,
                    person(row),
                    int(batch.labels[i]),
                    {name: int(asked.answers[i, m]) for name, m in pick},
                    {name: bool(asked.changed[i, m]) for name, m in pick},
                    self._attention(i, row, asked.readings, batch),
                )
            )

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`clips`, `unread` and `coverage` over all ranks; rank 0 gets the rows."""
        found = self._clips.counted(reduce)
        everyone = gathered(self._rows)
        if everyone is not None:
            rows = [row for part in everyone for row in part]
            self.rows = sorted(rows, key=lambda row: (row.dataset, row.key))
        return found

    def _attention(
        self, i: int, row: IndexRow, readings: Readings | None, batch: ClipBatch
    ) -> Attention | None:
        marks = batch.extra["marks"][i].cpu().numpy()
        if readings is None or not marked(row.record) or (marks < 0).any():
            return None
        mine = slice(i * batch.views, (i + 1) * batch.views)
        frames = batch.extra["frames"][mine].cpu().numpy()
        own, shares = (part[mine].numpy() for part in readings)
        means = [own.mean(1, keepdims=True)] if self._own else []
        plain = [shares, shares.mean(1, keepdims=True)]
        if self._own:
            plain.append(shares[:, self._own].mean(1, keepdims=True))
        holds = apex_tubelets(frames, int(marks[1]), shares.shape[2])
        return Attention(
            float(within(frames, marks).mean()),
            looked(np.concatenate([own, *means], 1), frames, marks),
            looked(np.concatenate(plain, 1), frames, marks),
            tuple(at for at in holds if at is not None),
        )
