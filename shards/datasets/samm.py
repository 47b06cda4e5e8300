"""SAMM: 159 micro-expressions, grey, 200 frames a second."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from shards.datasets import micro
from shards.datasets.contract import Dataset, Expected, Options, Variant
from shards.datasets.patches import Patch
from shards.datasets.sheets import SheetRow, sheet_rows
from shards.ingest.inputs import Collected, InputError

COLUMNS = {
    "subject": ("Subject",),
    "clip": ("Filename",),
    "onset": ("Onset Frame",),
    "apex": ("Apex Frame",),
    "offset": ("Offset Frame",),
    "label": ("Estimated Emotion",),
}
MORE = {"units": ("Action Units",), "objective": ("Objective Classes", "Objective Class")}
INVALID_APEX = "the apex lies outside onset and offset; counted as not annotated"


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    file = dataset.file(root, "SAMM_Micro_FACS_Codes_v*.xlsx", "SAMM_*Micro_FACS_Codes*.xlsx")
    variant, people = dataset.frames(root, options)
    frames = people.parent
    below = PurePosixPath(frames.relative_to(root))

    def parse(row: SheetRow) -> list[micro.Coded]:
        subject = row.needed("subject")
        if not subject.isdecimal():
            raise InputError(f"subject is {subject!r}, not a number")
        clip = row.needed("clip")
        return [
            micro.Coded(
                clip=clip,
                subject=f"{int(subject):03d}",
                folder=(below / f"{int(subject):03d}" / clip).as_posix(),
                label=row.needed("label"),
                onset=row.frame("onset"),
                apex=row.frame("apex"),
                offset=row.frame("offset"),
                units=row.text("units"),
                objective=row.text("objective") or None,
            )
        ]

    rows = sheet_rows(file, COLUMNS, more=MORE, sheet="MICRO_ONLY")
    coded, refused = micro.read_rows(rows, file, parse)
    found = micro.clips(dataset, root, options, coded=coded, file=file, fps=200)
    found.refused.extend(refused)
    found.notes.extend(dataset.chosen(root, file, variant, frames))
    found.settings["detector"] = variant.detector
    return found


DATASET = Dataset(
    name="samm",
    title="SAMM",
    about="159 micro-expressions, 8 classes, grey, 200 fps",
    licence="SAMM licence agreement: non-commercial research",
    ask="https://helward.mmu.ac.uk/STAFF/M.Yap/dataset.php",
    layout=(
        "SAMM_Micro_FACS_Codes_v2.xlsx",
        "SAMM/006/006_1_2/006_05562.jpg, or cropped SAMM_CROP/006/006_1_2/006_05562.jpg",
    ),
    read=_read,
    honours=("context",),
    version="v2",
    classes=(
        *("anger", "happiness", "other", "surprise"),
        *("contempt", "disgust", "fear", "sadness"),
    ),
    expected=Expected(
        clips=159,
        labels={
            **{"anger": 57, "happiness": 26, "other": 26, "surprise": 15},
            **{"contempt": 12, "disgust": 9, "fear": 8, "sadness": 6},
        },
    ),
    variants=(
        Variant(name="raw", folders=("SAMM/[0-9][0-9][0-9]", "[0-9][0-9][0-9]")),
        Variant(name="cropped", folders=("SAMM_CROP/[0-9][0-9][0-9]",), detector="none"),
    ),
    settings=micro.SETTINGS,
    rules=micro.RULES,
    patches=(
        Patch(
            patch_id="samm-1/apex-028_4_1",
            clip="028_4_1",
            change={"apex": None},
            why=INVALID_APEX,
            source="README of CapsuleNet for Micro-expression Recognition (Quang et al., FG 2019)",
        ),
        Patch(
            patch_id="samm-1/apex-032_3_1",
            clip="032_3_1",
            change={"apex": None},
            why=INVALID_APEX,
            source="README of CapsuleNet for Micro-expression Recognition (Quang et al., FG 2019)",
        ),
        Patch(
            patch_id="samm-1/offset-row-56",
            row=56,
            change={"offset": 5739},
            why="the offset is a slip",
            source="github.com/tvaranka/meb, meb/datasets/datasets.py, SAMM",
        ),
    ),
)
