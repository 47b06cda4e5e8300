"""SMIC-HS: 164 micro-expressions of 16 people, 100 frames a second, no apex annotated."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from shards.datasets import micro
from shards.datasets.contract import Dataset, Expected, Options, Variant, matching
from shards.datasets.sheets import SheetRow, sheet_rows
from shards.ingest.inputs import Annotation, Collected, InputError, Item, Refused
from shards.ingest.numbering import FrameFolder, numbered
from shards.ingest.settings import Rejected

COLUMNS = {
    "subject": ("Subject",),
    "clip": ("Filename",),
    "onset": ("OnsetF",),
    "offset": ("OffsetF",),
    "label": ("Emotion",),
}
MORE = {  # a long clip may hold up to three micro-expressions
    **{"onset2": ("Onset2F",), "offset2": ("Offset2F",)},
    **{"onset3": ("Onset3F",), "offset3": ("Offset3F",)},
}
LABELS = {"ne": "negative", "po": "positive", "sur": "surprise"}
FPS = 100


def _read(dataset: Dataset, root: Path, options: Options) -> Collected:
    variant, frames = dataset.frames(root, options)
    read = _long if variant.name == "long" else _cut
    found = read(dataset, root, frames, options)
    found.settings["detector"] = variant.detector
    return found


def _long(dataset: Dataset, root: Path, frames: Path, options: Options) -> Collected:
    file = dataset.file(root, "SMIC-HS-E_annotation*.xlsx", "SMIC?HS?E*.xlsx")
    below = frames.relative_to(root).as_posix()

    def parse(row: SheetRow) -> Iterator[micro.Coded]:
        clip = row.needed("clip")
        subject = _subject(row.needed("subject"))
        label = row.text("label").lower() or _label(clip)
        for nth in ("", "2", "3"):
            onset, offset = row.frame(f"onset{nth}"), row.frame(f"offset{nth}")
            if nth and onset is None and offset is None:
                continue
            yield micro.Coded(
                clip=clip,
                subject=subject,
                folder=f"{below}/{subject}/{clip}",
                label=label,
                onset=onset,
                offset=offset,
                part=f"m{nth}" if nth else "",
            )

    rows = sheet_rows(file, COLUMNS, more=MORE, sheet="HS")
    coded, refused = micro.read_rows(rows, file, parse)
    # Numbers such as 17581039 read like times of day: their order counts, not their distance.
    found = micro.clips(dataset, root, options, coded=coded, file=file, fps=FPS, by_order=True)
    found.refused.extend(refused)
    return found


def _cut(dataset: Dataset, root: Path, frames: Path, options: Options) -> Collected:
    """Folders that hold a micro-expression each, from onset to offset; nothing else is needed."""
    if options.context:
        raise InputError("SMIC's cut clips have no frames around them; leave out --context")
    found = Collected([])
    for folder in matching(frames, "s*/micro/*/*"):
        relative = folder.relative_to(root).as_posix()
        try:
            count = len(numbered(folder))
            subject = _subject(folder.parts[-4])
            annotation = Annotation(
                label=_label(folder.name),
                subject_id=subject,
                source_id=f"{subject}/{folder.name}",
                marks={"onset": 0, "apex": (count - 1) // 2, "offset": count - 1},
                apex_source="middle",
            )
        except (InputError, Rejected) as error:
            found.refused.append(Refused(relative, str(error), "compare it with the original"))
            continue
        frames_of = FrameFolder(FPS, by_order=True)
        found.items.append(Item("", folder, relative, annotation, frames_of))
    return found


def _subject(cell: str) -> str:
    digits = cell.lower().removeprefix("s")
    if not digits.isdecimal():
        raise InputError(f"subject is {cell!r}, not a number")
    return f"s{int(digits):02d}"


def _label(clip: str) -> str:
    kind = re.fullmatch(r"s[0-9]+_([a-z]+)_[0-9]+", clip.lower())
    if not kind or kind[1] not in LABELS:
        raise InputError(f"{clip} is not named such as s1_ne_01 (ne, po or sur)")
    return LABELS[kind[1]]


DATASET = Dataset(
    name="smic",
    title="SMIC-HS",
    about="164 micro-expressions, 16 people, 100 fps, 3 classes",
    licence="SMIC licence agreement: non-commercial research",
    ask="https://www.oulu.fi/en/university/faculties-and-units/"
    "faculty-information-technology-and-electrical-engineering/"
    "center-machine-vision-and-signal-analysis",
    layout=(
        "SMIC-HS-E_annotation.xlsx and HS_long/SMIC_HS_E/s20/s20_ne_01/image17581039.jpg",
        "or HS/s01/micro/negative/s1_ne_01/image17581039.jpg alone",
    ),
    read=_read,
    honours=("context",),
    classes=("negative", "positive", "surprise"),
    expected=Expected(
        clips=164, subjects=16, labels={"negative": 70, "positive": 51, "surprise": 43}
    ),
    variants=(
        Variant(name="long", folders=("HS_long/SMIC?HS?E/HS", "HS_long/SMIC?HS?E", "SMIC?HS?E")),
        Variant(name="cut", folders=("HS", "SMIC_all_raw*/HS", "SMIC_all_raw*/*/HS")),
        Variant(
            name="cropped",
            folders=("SMIC_all_cropped*/HS", "SMIC_all_cropped*/*/HS"),
            detector="none",
        ),
    ),
    settings=micro.SETTINGS,
    rules=micro.RULES,
)
