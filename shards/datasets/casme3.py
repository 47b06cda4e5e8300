"""CAS(ME)³, part A: 860 micro-expressions of 94 people, 30 frames a second."""

from __future__ import annotations

from pathlib import Path

from shards.datasets import micro
from shards.datasets.contract import Dataset, Expected, Options, Variant, matching
from shards.datasets.patches import Patch
from shards.datasets.sheets import SheetRow, sheet_rows
from shards.ingest.inputs import Collected

COLUMNS = {
    "subject": ("Subject",),
    "clip": ("Filename",),
    "onset": ("Onset",),
    "apex": ("Apex",),
    "offset": ("Offset",),
    "label": ("emotion",),
}
MORE = {"units": ("AU",), "objective": ("Objective class",)}
SAME = {"happiness": "happy", "sadness": "sad", "other": "others"}
MEB = "github.com/tvaranka/meb, meb/datasets/datasets.py, Casme3A"


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    file = dataset.file(root, "cas(me)3_part_A_ME_label_JpgIndex_v*.xlsx")
    variant, frames = dataset.frames(root, options)
    below = frames.relative_to(root).as_posix()

    def parse(row: SheetRow) -> list[micro.Coded]:
        subject, clip = row.needed("subject"), row.needed("clip")
        onset = row.frame("onset")
        if variant.name == "part_A":  # the sheet writes J where the folder is j, and the reverse
            found = matching(frames, f"{_exactly(subject)}/{_exactly(clip)}/color")
            folder = found[0].relative_to(root).as_posix() if found else ""
            folder = folder or f"{below}/{subject}/{clip}/color"
        else:
            folder = f"{below}/{subject}_{clip}_{onset}"
        label = row.needed("label").lower()
        return [
            micro.Coded(
                clip=clip,
                subject=subject,
                folder=folder,
                label=SAME.get(label, label),
                onset=onset,
                apex=row.frame("apex"),
                offset=row.frame("offset"),
                units=row.text("units"),
                objective=row.text("objective") or None,
                part=f"f{onset}",
            )
        ]

    rows = sheet_rows(file, COLUMNS, more=MORE, sheet="label")
    coded, refused = micro.read_rows(rows, file, parse)
    found = micro.clips(dataset, root, options, coded=coded, file=file, fps=30)
    found.refused.extend(refused)
    found.notes.extend(dataset.chosen(root, file, variant, frames))
    found.settings["detector"] = variant.detector
    return found


def _exactly(name: str) -> str:
    """As a pattern that matches the name alone, and leads nowhere else."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name.replace("/", "?"))


def _row(row: int, change: dict[str, int | None], why: str) -> Patch:
    name = "-".join(change)
    return Patch(patch_id=f"casme3-1/{name}-row-{row}", row=row, change=change, why=why, source=MEB)


DATASET = Dataset(
    name="casme3",
    title="CAS(ME)³ part A",
    about="860 micro-expressions, 94 people, 30 fps, 7 classes",
    licence="CAS(ME)³ licence agreement: non-commercial research",
    ask="http://casme.psych.ac.cn/casme/e4",
    layout=(
        "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx",
        "part_A/spNO.1/a/color/116.jpg, or Part_A_ME_clip/frame/spNO.1_a_116/116.jpg",
    ),
    read=_read,
    honours=("context",),
    version="part A, JpgIndex v2",
    classes=("anger", "disgust", "fear", "happy", "others", "sad", "surprise"),
    expected=Expected(clips=860, subjects=94),
    variants=(
        Variant(
            name="part_A",
            folders=("part_A/data/part_A_split/part_A", "part_A/data/part_A", "part_A", "*/part_A"),
        ),
        Variant(name="clips", folders=("Part_A_ME_clip/Part_A_ME_clip/frame", "*/frame")),
    ),
    settings=micro.SETTINGS,
    rules=(*micro.RULES, micro.ONSET_ZERO, micro.APEX_IS_ONSET),
    patches=(
        _row(128, {"apex": 160}, "the apex is a slip"),
        _row(708, {"offset": 34}, "the offset is a slip"),
        _row(749, {"onset": 2647}, "the onset is a slip"),
        _row(750, {"onset": 1, "apex": 1}, "pictures are numbered from 1, not from 0"),
        _row(796, {"offset": 1845}, "the offset is a slip"),
        _row(798, {"offset": 2403}, "the offset is a slip"),
    ),
)
