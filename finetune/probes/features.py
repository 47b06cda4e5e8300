"""Features of clips as a table: collected over ranks, written to Parquet, read back.

Owns which clip a row is (data set, key, subject, label, split) and the file's form. It knows no
network and no probe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.collecting import Clips, gathered
from finetune.inputs import inputs_of
from mira.tubelets import normalise
from shards.batch import ClipBatch
from shards.stream import ClipStream

Row = tuple[str, str, str | None, str | None, str | None]
"""Data set, key, subject, label, split."""


@dataclass(frozen=True)
class Features:
    """One row a clip, in the order of (data set, key)."""

    values: NDArray[np.float32]
    """[n, E]"""
    keys: list[str]
    datasets: list[str]
    subjects: list[str | None]
    labels: list[str | None]
    splits: list[str | None]

    @classmethod
    def of(cls, rows: Sequence[Row], values: NDArray[np.float32]) -> Features:
        """Sorted, so that it does not depend on which rank read what."""
        order = sorted(range(len(rows)), key=lambda i: rows[i][:2])
        columns = [[rows[i][c] for i in order] for c in range(5)]
        datasets, keys, subjects, labels, splits = columns
        return cls(values[order], keys, datasets, subjects, labels, splits)  # pyright: ignore[reportArgumentType]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def people(self) -> list[str | None]:
        """Who each clip shows, as one name; None where unknown. Data sets share no people."""
        pairs = zip(self.datasets, self.subjects, strict=True)
        return [None if subject is None else f"{data}/{subject}" for data, subject in pairs]

    def classes(self, names: Sequence[str]) -> Tensor:
        """int64 [n]: each label's place in `names`, -1 without one."""
        place = {name: i for i, name in enumerate(names)}
        return torch.tensor([-1 if x is None else place[x] for x in self.labels], dtype=torch.int64)

    def where(self, kept: Tensor) -> Features:
        """The rows that bool [n] marks."""
        chosen = kept.nonzero().flatten().tolist()
        lists = [getattr(self, field.name) for field in fields(self)[1:]]
        return Features(self.values[chosen], *([column[i] for i in chosen] for column in lists))

    def write(self, path: Path) -> None:
        """Parquet with columns key, dataset, subject_id, label, split, f0 … f(E-1); written aside,
        then renamed."""
        names = ("key", "dataset", "subject_id", "label", "split")
        lists = (self.keys, self.datasets, self.subjects, self.labels, self.splits)
        columns: dict[str, Any] = {
            name: pa.array(column, pa.string()) for name, column in zip(names, lists, strict=True)
        }
        columns |= {f"f{e}": pa.array(self.values[:, e]) for e in range(self.values.shape[1])}
        aside = path.with_name(f".{path.name}.writing")
        try:
            pq.write_table(pa.table(columns), aside, compression="zstd")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | Path) -> Features:
        """The inverse of `write`."""
        table = pq.read_table(path)
        count = sum(name[1:].isdigit() for name in table.column_names)
        values = [table.column(f"f{e}").to_numpy() for e in range(count)]
        names = ("key", "dataset", "subject_id", "label", "split")
        lists = [table.column(name).to_pylist() for name in names]
        stacked = np.stack(values, axis=1) if values else np.empty((len(table), 0), np.float32)
        return cls(stacked, *lists)


def joined(parts: Sequence[Features]) -> Features:
    """Several tables below one another."""
    lists = [
        list(chain.from_iterable(getattr(part, field.name) for part in parts))
        for field in fields(Features)[1:]
    ]
    return Features(np.concatenate([part.values for part in parts]), *lists)


class FeatureTask(nn.Module):
    """A frozen network as the loop of evaluation takes it.

    Args:
        network: `features(x, **inputs)` gives [B · views, E].
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def predict(self, batch: ClipBatch) -> Tensor:
        """Features [B, E], float32: the mean over a clip's views."""
        x, network = normalise(batch.pixels), cast(Any, self.network)
        found = network.features(x, **inputs_of(network, batch))
        return found.float().unflatten(0, (-1, batch.views)).mean(1)


class FeatureMeter:
    """Collects rows and features; every clip that was not read is counted, none is replaced.

    Args:
        stream: the clips it will be fed, from the first batch on.
        split: name for the column; None takes what each record says.
    """

    def __init__(self, stream: ClipStream, *, split: str | None):
        self._clips, self._split = Clips(stream), split
        self._rows: list[Row] = []
        self._values: list[NDArray[np.float32]] = []
        self.table: Features | None = None
        """Of all ranks; set by `compute`, on rank 0 alone."""

    def update(self, output: Tensor, batch: ClipBatch) -> None:
        """Take the features [B, E] of one batch. ValueError where they are not finite."""
        for row, value in zip(self._clips.of(batch), output.cpu().numpy(), strict=True):
            if row is None:
                continue
            if not np.isfinite(value).all():
                raise ValueError(
                    f"features of {row.key!r} are not finite: check the weights, or compute with "
                    "--precision fp32"
                )
            facts = row.record
            split = self._split or facts.split
            self._rows.append((facts.dataset, row.key, facts.subject_id, facts.label, split))
            self._values.append(value)

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`clips`, `unread` and `coverage` over all ranks; rank 0 gets the table."""
        found = self._clips.counted(reduce)
        everyone = gathered((self._rows, self._values))
        if everyone is not None:
            rows = [row for part, _ in everyone for row in part]
            self.table = Features.of(rows, np.stack([v for _, part in everyone for v in part]))
        return found
