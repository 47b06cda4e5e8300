"""DFEW: 11,697 clips of films, 7 emotions, 5 folds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shards.datasets import wild
from shards.datasets.contract import Dataset, Expected, Options, Variant
from shards.datasets.folds import Listed, folded
from shards.ingest.inputs import Collected, InputError
from shards.ingest.tables import table

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    def read(fold: int, part: str) -> list[Listed]:
        folder = f"EmoLabel_DataSplit/{part}"
        names_of_file = (f"{folder}(single-labeled)/set_{fold}.csv", f"{folder}/set_{fold}.csv")
        file = dataset.file(root, *names_of_file)
        names, rows = table(file)
        if not {"video_name", "label"} <= set(names) or not rows:
            raise InputError(f"{file} has no rows of video_name,label; take the original list")
        return [Listed(row["video_name"], row["label"], line, file) for line, row in rows]

    listed, refused, notes = folded(dataset, options, read)
    variant, frames = dataset.frames(root, options)
    place = _videos(root, frames) if variant.name == "original" else _folders(root, frames)
    found = wild.items(dataset, root, options, listed=listed, place=place, label=_label)
    found.refused.extend(refused)
    found.notes.extend(notes)
    found.notes.append(f"frames {frames.relative_to(root)} (--variant {variant.name})")
    found.settings["detector"] = variant.detector
    return found


def _number(name: str) -> int:
    stem = name.removesuffix(".mp4")
    if not stem.isdecimal() or len(stem) > 9:
        raise InputError(f"video_name is {name!r}, not a number")
    return int(stem)


def _label(cell: str) -> str:
    if cell not in {str(n) for n in range(1, len(CLASSES) + 1)}:
        raise InputError(f"label is {cell!r}, not 1 to {len(CLASSES)}")
    return CLASSES[int(cell) - 1]


def _videos(root: Path, frames: Path) -> Callable[[str], str]:
    """N → part_k/N.mp4, wherever it is."""
    known = {
        path.stem: path.relative_to(root).as_posix()
        for below in ("*.mp4", "*/*.mp4")
        for path in sorted(frames.glob(below))
    }

    def place(name: str) -> str:
        number = _number(name)
        found = known.get(str(number)) or known.get(f"{number:05d}")
        if found is None:
            raise InputError(f"no {number}.mp4 below {frames}")
        return found

    return place


def _folders(root: Path, frames: Path) -> Callable[[str], str]:
    """N → the folder of five digits."""
    below = frames.relative_to(root).as_posix()
    return lambda name: f"{below}/{_number(name):05d}"


DATASET = Dataset(
    name="dfew",
    title="DFEW",
    about="11,697 clips with a single label, 7 classes, 5 folds",
    licence="DFEW licence agreement: non-commercial research",
    ask="https://dfew-dataset.github.io",
    layout=(
        "EmoLabel_DataSplit/{train,test}(single-labeled)/set_1.csv … set_5.csv",
        "Clip/original/part_k/N.mp4, or pictures: Clip/{clip_224x224,jpg_256,…_16f}/00001/1.jpg",
    ),
    read=_read,
    honours=("fps",),
    classes=CLASSES,
    expected=Expected(clips=11_697),
    folds=5,
    variants=(
        Variant(name="original", folders=("Clip/original", "original")),
        Variant(name="clip_224x224", folders=("Clip/clip_224x224",), detector="none"),
        Variant(name="jpg_256", folders=("Clip/jpg_256",), detector="none"),
        Variant(
            name="clip_224x224_16f",
            folders=("Clip/clip_224x224_16f", "Clip/clip_224x16f"),
            detector="none",
        ),
    ),
    settings=wild.SETTINGS,
)
