"""Any folder of videos and of folders with numbered pictures; nothing else is known of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from shards.datasets.contract import Dataset, Options
from shards.ingest.inputs import Annotation, Collected, InputError, Item, scan, shown, unlisted
from shards.ingest.numbering import PICTURES, FrameFolder

FEWEST_PICTURES = 2
VIDEOS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".ts")
    + (".mts", ".m2ts", ".3gp", ".ogv", ".mxf", ".mjpeg", ".h264", ".hevc")
)
"""Suffixes that only a video has."""


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    folders = _picture_folders(root)
    if folders and options.fps is None:
        raise InputError(
            f"{root} has folders of pictures, such as {folders[0]}; give their rate by --fps"
        )
    pictures = [
        Item("", root / name, shown(name), Annotation(), FrameFolder(options.fps))
        for name in folders
        if options.fps
    ]
    try:
        videos, ignored = scan(root)
    except InputError:
        if not pictures:
            raise
        videos, ignored = [], 0
    notes = [f"{ignored} files beside the videos were ignored"] * bool(ignored and not pictures)
    return Collected([*(replace(v, key="") for v in videos), *pictures], notes=notes)


def _picture_folders(root: Path) -> list[str]:
    """Folders, below the root, with pictures and no video, whose thumbnails they would be; a single
    picture is no clip."""
    found = []
    for folder, folders, names in os.walk(root, onerror=unlisted):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        kinds = [os.path.splitext(name)[1].lower() for name in names if name[0] != "."]
        count = sum(kind in PICTURES for kind in kinds)
        if count >= FEWEST_PICTURES and VIDEOS.isdisjoint(kinds):
            found.append(Path(folder).relative_to(root).as_posix())
    return found


DATASET = Dataset(
    name="folder",
    title="a folder of yours",
    about="any videos or folders of numbered pictures, of which nothing is known",
    licence="",
    ask="(yours)",
    own=True,
    layout=("video files, at any depth", "folders of pictures: 0001.jpg … (with --fps)"),
    read=_read,
    honours=("fps",),
)
