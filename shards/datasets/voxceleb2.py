"""VoxCeleb2: 1,092,009 clips of 5,994 speakers for training, more for testing; no labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shards.datasets.contract import Dataset, Expected, Options
from shards.ingest.inputs import Annotation, Collected, Item, shown

PARTS = {"dev": "train", "test": "test"}


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    items = [item for part, split in PARTS.items() for item in _clips(root, part, split)]
    if not items:
        raise dataset.refuse(root, "file dev/mp4/id00012/<video>/00113.mp4")
    return Collected(items)


def _clips(root: Path, part: str, split: str) -> Iterator[Item]:
    """root/part/mp4/person/video/clip.mp4"""
    for person in _folders(root / part / "mp4"):
        for video in _folders(person):
            known = Annotation(subject_id=person.name, source_id=shown(video.name), split=split)
            for name in sorted(os.listdir(video)):
                if name.endswith(".mp4") and not name.startswith("."):
                    path = video / name
                    relative = shown(path.relative_to(root).as_posix())
                    yield Item("", path, relative, known)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


DATASET = Dataset(
    name="voxceleb2",
    title="VoxCeleb2",
    about="1,092,009 clips for training, no labels, identities",
    licence="VoxCeleb2 terms: the videos belong to their owners; research",
    ask="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox2.html",
    layout=("dev/mp4/id00012/<video>/00113.mp4", "and, if wanted, test/mp4/…"),
    read=_read,
    expected=Expected(splits={"train": 1_092_009}),
    disjoint_subjects=True,
)
