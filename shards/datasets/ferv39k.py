"""FERV39k: 38,935 clips of 22 kinds of scenes, 7 emotions, one split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shards.datasets import wild
from shards.datasets.contract import Dataset, Expected, Options, Variant, refused
from shards.datasets.folds import Listed
from shards.ingest.inputs import Collected, Refused
from shards.ingest.tables import lines


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    variant, frames = dataset.frames(root, options)
    below = frames.relative_to(root).as_posix()
    clips: dict[str, Listed] = {}
    no: list[Refused] = []
    for split in ("test", "train"):
        file = dataset.file(root, f"4_setups/All_scenes/{split}_All.csv", f"{split}_All.csv")
        for line, text in lines(file):
            name, _, label = text.rpartition(" ")  # "Action/Sad/0010 Sad"
            listed = Listed(name.strip(), label, line, file, split)
            if clips.get(listed.name, listed).split != split:
                no.append(refused(name, "is in the test list too", line=line, file=file))
            elif listed.name in clips:
                no.append(refused(name, "is listed twice", line=line, file=file))
            else:
                clips[listed.name] = replace(listed, split=split)
    found = wild.items(
        dataset,
        root,
        options,
        listed=list(clips.values()),
        place=lambda name: f"{below}/{name}",
        source=lambda name: name.partition("/")[0],
    )
    found.refused.extend(no)
    found.settings["detector"] = variant.detector
    return found


DATASET = Dataset(
    name="ferv39k",
    title="FERV39k",
    about="38,935 clips, 22 kinds of scenes, 7 classes, one split",
    licence="FERV39k licence agreement: non-commercial research",
    ask="https://wangyanckxx.github.io/Proj_CVPR2022_FERV39k.html",
    layout=(
        "4_setups/All_scenes/{train,test}_All.csv",
        "2_ClipsforFaceCrop/<Scene>/<Emotion>/0010/*.jpg",
    ),
    read=_read,
    honours=("fps",),
    classes=("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear"),
    expected=Expected(clips=38_935, splits={"train": 31_088, "test": 7_847}),
    variants=(
        Variant(
            name="faces",
            folders=("2_ClipsforFaceCrop*/2_ClipsforFaceCrop", "2_ClipsforFaceCrop*"),
            detector="none",
        ),
    ),
    settings=wild.SETTINGS,
)
