"""Any collection with a table: CSV or Parquet with a column `path` and what is known of each."""

from __future__ import annotations

from pathlib import Path

from shards.datasets.contract import Dataset, Options
from shards.ingest.annotations import COLUMNS, read_annotations
from shards.ingest.inputs import Collected

NAMES = ("annotations.csv", "annotations.parquet", "labels.csv", "labels.parquet")


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    file = options.annotations
    if file is None:
        file = next((root / name for name in NAMES if (root / name).is_file()), None)
    if file is None:
        raise dataset.refuse(root, " or ".join(NAMES) + " (or name it by --annotations)")
    items, refused, unused = read_annotations(file, root, fps=options.fps)
    notes = [f"columns not used: {', '.join(unused)}"] * bool(unused)
    return Collected(items, refused, notes)


DATASET = Dataset(
    name="table",
    title="a table of yours",
    about="any videos or folders of pictures, listed in a CSV or Parquet file",
    licence="",
    ask="(yours)",
    layout=(
        "annotations.csv or annotations.parquet, with a column path",
        f"and any of {', '.join(COLUMNS[1:])}",
    ),
    own=True,
    read=_read,
    honours=("fps",),
)
