"""CASME II: 255 micro-expressions of 26 people, 200 frames a second."""

from __future__ import annotations

from pathlib import Path

from shards.datasets import micro
from shards.datasets.contract import Dataset, Expected, Options, Variant
from shards.datasets.patches import Patch
from shards.datasets.sheets import SheetRow, sheet_rows
from shards.ingest.inputs import Collected, InputError

COLUMNS = {
    "subject": ("Subject",),
    "clip": ("Filename",),
    "onset": ("OnsetFrame",),
    "apex": ("ApexFrame",),
    "offset": ("OffsetFrame",),
    "label": ("Estimated Emotion",),
}


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    file = dataset.file(root, "CASME2-coding-*.xlsx")
    variant, frames = dataset.frames(root, options)
    below = frames.relative_to(root).as_posix()

    def parse(row: SheetRow) -> list[micro.Coded]:
        subject = _subject(row.needed("subject"))
        clip = row.needed("clip")
        return [
            micro.Coded(
                clip=clip,
                subject=subject,
                folder=f"{below}/{subject}/{clip}",
                label=row.needed("label"),
                onset=row.frame("onset"),
                apex=row.frame("apex"),
                offset=row.frame("offset"),
                units=row.text("units"),
            )
        ]

    rows = sheet_rows(file, COLUMNS, more={"units": ("Action Units",)})
    coded, refused = micro.read_rows(rows, file, parse)
    found = micro.clips(dataset, root, options, coded=coded, file=file, fps=200)
    found.refused.extend(refused)
    found.notes.extend(dataset.chosen(root, file, variant, frames))
    found.settings["detector"] = variant.detector
    return found


def _subject(cell: str) -> str:
    digits = cell.lower().removeprefix("sub")
    if not digits.isdecimal():
        raise InputError(f"subject is {cell!r}, not a number")
    return f"sub{int(digits):02d}"


DATASET = Dataset(
    name="casme2",
    title="CASME II",
    about="255 micro-expressions, 26 people, 200 fps, 7 classes",
    licence="CASME II licence agreement: non-commercial research",
    ask="http://casme.psych.ac.cn/casme/e2",
    layout=(
        "CASME2-coding-20140508.xlsx",
        "CASME2_RAW_selected/sub01/EP02_01f/img46.jpg, or Cropped/sub01/EP02_01f/reg_img46.jpg",
    ),
    read=_read,
    honours=("context",),
    version="coding of 2014-05-08",
    classes=("others", "disgust", "happiness", "repression", "surprise", "sadness", "fear"),
    expected=Expected(
        clips=255,
        subjects=26,
        labels={
            **{"others": 99, "disgust": 63, "happiness": 32, "repression": 27},
            **{"surprise": 25, "sadness": 7, "fear": 2},
        },
    ),
    variants=(
        Variant(
            name="raw",
            folders=(
                "CASME2_RAW_selected/CASME2_RAW_selected",
                "CASME2_RAW_selected",
                "CASME2-RAW",
            ),
        ),
        Variant(name="cropped", folders=("Cropped/Cropped", "Cropped"), detector="none"),
    ),
    settings=micro.SETTINGS,
    rules=micro.RULES,
    patches=(
        Patch(
            patch_id="casme2-1/offset-row-60",
            row=60,
            change={"offset": 91},
            why="the offset is a slip; 91 by the pictures",
            source="github.com/tvaranka/meb, meb/datasets/datasets.py, Casme2",
        ),
    ),
)
