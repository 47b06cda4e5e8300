"""MMEW: 300 micro-expressions, 90 frames a second."""

from __future__ import annotations

from pathlib import Path

from shards.datasets import micro
from shards.datasets.contract import Dataset, Expected, Options, Variant
from shards.datasets.patches import Patch
from shards.datasets.sheets import SheetRow, sheet_rows
from shards.ingest.inputs import Collected, InputError

COLUMNS = {
    "clip": ("Filename",),
    "onset": ("OnsetFrame",),
    "apex": ("ApexFrame",),
    "offset": ("OffsetFrame",),
    "label": ("Estimated Emotion",),
}
SLIPS = {  # row → apex, offset
    **{33: (40, 75), 35: (15, 54), 36: (46, 59), 37: (20, 98), 38: (25, 80), 39: (20, 93)},
    **{40: (23, 58), 41: (28, 61), 42: (32, 68), 142: (56, 88), 143: (32, 80), 145: (27, 85)},
    **{146: (22, 61), 148: (29, 108), 154: (31, 72), 156: (38, 106)},
}


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    file = dataset.file(root, "MMEW_Micro_Exp*.xlsx")
    variant, frames = dataset.frames(root, options)
    below = frames.relative_to(root).as_posix()

    def parse(row: SheetRow) -> list[micro.Coded]:
        clip = row.needed("clip")
        subject, _, more = clip.partition("-")  # S01-01-001: person, emotion, sample
        if not more:
            raise InputError(f"Filename is {clip!r}, not such as S01-01-001")
        label = row.needed("label").lower()
        return [
            micro.Coded(
                clip=clip,
                subject=subject,
                folder=f"{below}/{label}/{clip}",
                label=label,
                onset=row.frame("onset"),
                apex=row.frame("apex"),
                offset=row.frame("offset"),
                units=row.text("units"),
            )
        ]

    rows = sheet_rows(file, COLUMNS, more={"units": ("Action Units",)})
    coded, refused = micro.read_rows(rows, file, parse)
    found = micro.clips(dataset, root, options, coded=coded, file=file, fps=90)
    found.refused.extend(refused)
    found.settings["detector"] = variant.detector
    return found


DATASET = Dataset(
    name="mmew",
    title="MMEW",
    about="300 micro-expressions, 90 fps, 7 classes",
    licence="MMEW licence agreement: non-commercial research",
    ask="http://www.dpailab.com/database.html",
    layout=("MMEW_Micro_Exp.xlsx", "Micro_Expression/<emotion>/S01-01-001/1.jpg"),
    read=_read,
    honours=("context",),
    classes=("surprise", "disgust", "others", "happiness", "fear", "sadness", "anger"),
    expected=Expected(
        clips=300,
        labels={
            **{"surprise": 89, "disgust": 72, "others": 66, "happiness": 36},
            **{"fear": 16, "sadness": 13, "anger": 8},
        },
    ),
    variants=(Variant(name="frames", folders=("Micro_Expression", "*/Micro_Expression")),),
    settings=micro.SETTINGS,
    rules=micro.RULES,
    patches=tuple(
        Patch(
            patch_id=f"mmew-1/apex-offset-row-{row}",
            row=row,
            change={"apex": apex, "offset": offset},
            apex_source="spotted",
            why="apex and offset are slips; estimated from the pictures",
            source="github.com/tvaranka/meb, meb/datasets/datasets.py, MMEW",
        )
        for row, (apex, offset) in SLIPS.items()
    ),
)
