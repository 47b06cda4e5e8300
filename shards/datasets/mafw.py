"""MAFW: 9,172 clips with a single emotion, 11 classes, 5 folds."""

from __future__ import annotations

from pathlib import Path

from shards.datasets import wild
from shards.datasets.contract import Dataset, Expected, Options, Variant
from shards.datasets.folds import Listed, folded
from shards.ingest.inputs import Collected
from shards.ingest.tables import lines


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    def read(fold: int, part: str) -> list[Listed]:
        below = f"single/no_caption/set_{fold}/{part}.txt"
        file = dataset.file(root, f"split/{below}", f"Train & Test Set/{below}", below)
        pairs = [(line, text.rpartition(" ")) for line, text in lines(file)]  # "00025.mp4 anger"
        return [Listed(name.strip(), label, line, file) for line, (name, _, label) in pairs]

    listed, refused, notes = folded(dataset, options, read)
    variant, frames = dataset.frames(root, options)
    below = frames.relative_to(root).as_posix()

    def place(name: str) -> str:
        return f"{below}/{name if variant.name == 'clips' else name.removesuffix('.mp4')}"

    found = wild.items(dataset, root, options, listed=listed, place=place)
    found.refused.extend(refused)
    found.notes.extend(notes)
    found.notes.append(f"frames {frames.relative_to(root)} (--variant {variant.name})")
    found.settings["detector"] = variant.detector
    return found


DATASET = Dataset(
    name="mafw",
    title="MAFW",
    about="9,172 clips with a single label, 11 classes, 5 folds",
    licence="MAFW terms: non-commercial research",
    ask="https://mafw-database.github.io/MAFW/",
    layout=(
        "split/single/no_caption/set_1 … set_5/{train,test}.txt",
        "data/clips/00025.mp4, or data/frames/00025/0000.png",
    ),
    read=_read,
    honours=("fps",),
    classes=(
        *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
        *("contempt", "anxiety", "helplessness", "disappointment"),
    ),
    expected=Expected(clips=9_172),
    folds=5,
    variants=(
        Variant(name="clips", folders=("data/clips", "clips")),
        Variant(name="frames", folders=("data/frames", "frames")),
    ),
    settings=wild.SETTINGS,
)
