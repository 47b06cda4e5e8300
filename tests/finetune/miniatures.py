"""A miniature of every data set: three people or more where the set knows people, and clips that
differ, laid out as the set is handed out. Made-up content."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from finetune.study.cohort import Clip, read_clips
from shards.__main__ import main
from shards.manifest import Manifest
from tests.shards.layouts import casme2, dfew, samm, save_pictures, save_video, workbook

MICRO = ("disgust", "happiness", "surprise")


def shades(seed: int, frames: int = 12) -> np.ndarray:
    """uint8 [T, 48, 64, 3], of another brightness for every seed."""
    values = (np.arange(frames) * 15 + 7 * seed) % 256
    return np.broadcast_to(values[:, None, None, None], (frames, 48, 64, 3)).astype(np.uint8)


def ingest(name: str, root: Path, out: Path, *more: str) -> list[Clip]:
    """The clips of a data set, through the whole ingest."""
    plain = ("--size", "32", "--jobs", "1", "--detector", "none", "--min-frames", "1")
    place = ("--dataset", name, "--root", str(root), "--out", str(out))
    assert main(["ingest", *place, *plain, *more]) == 0
    return read_clips([Manifest.open(out)])


def _casme2(root: Path) -> None:
    rows = [(s, f"EP0{i}_1", 46, 50, 60, "4", MICRO[i]) for s in (1, 2, 3) for i in range(3)]
    casme2(root, rows)
    for n, (subject, clip, *_) in enumerate(rows):
        folder = root / "CASME2_RAW_selected" / f"sub{subject:02d}" / clip
        save_pictures(folder, range(40, 76), frames=shades(n, 36))


def _samm(root: Path) -> None:
    rows = [
        (s, f"{s:03d}_1_{i}", 5562, 5565, 5570, "AU4", MICRO[i].title())
        for s in (6, 7, 9)
        for i in range(3)
    ]
    samm(root, rows)
    for n, (subject, clip, *_) in enumerate(rows):
        name = f"{subject:03d}_{{:05d}}.jpg"
        folder = root / "SAMM" / f"{subject:03d}" / clip
        save_pictures(folder, range(5560, 5572), name=name, frames=shades(n), grey=True)


def _casme3(root: Path) -> None:
    header = ("Subject", "Filename", "Onset", "Apex", "Offset", "AU", "Objective class", "emotion")
    rows = [
        (f"spNO.{s}", "abc"[i], 3, 5, 8, "4", "III", MICRO[i]) for s in (1, 2, 3) for i in range(3)
    ]
    workbook(root / "cas(me)3_part_A_ME_label_JpgIndex_v2.xlsx", label=[header, *rows])
    for n, (subject, clip, *_) in enumerate(rows):
        folder = root / "part_A" / subject / clip / "color"
        save_pictures(folder, range(1, 13), name="{}.jpg", frames=shades(n))


def _smic(root: Path) -> None:
    kinds = {"ne": "negative", "po": "positive", "sur": "surprise"}
    for n, (s, kind) in enumerate((s, kind) for s in (1, 2, 3) for kind in kinds):
        folder = root / f"HS/s{s:02d}/micro/{kinds[kind]}/s{s}_{kind}_01"
        save_pictures(folder, range(70, 79), name="image{}.jpg", frames=shades(n))


def _mmew(root: Path) -> None:
    header = ("Subject", "Filename", "OnsetFrame", "ApexFrame", "OffsetFrame", "Action Units")
    rows = [
        (s, f"S0{s}-0{i}-001", 1, 6, 9, "12", MICRO[i], None) for s in (1, 2, 3) for i in range(3)
    ]
    head = (*header, "Estimated Emotion", "remarks")
    workbook(root / "MMEW_Micro_Exp.xlsx", S=[head, *rows])
    for n, row in enumerate(rows):
        folder = root / "Micro_Expression" / row[6] / row[1]
        save_pictures(folder, range(1, 11), name="{}.jpg", frames=shades(n))


def _crema_d(root: Path) -> None:
    for n, (s, kind) in enumerate((s, kind) for s in (1001, 1002, 1003) for kind in ("ANG", "HAP")):
        save_video(root / f"VideoFlash/{s}_DFA_{kind}_XX.mp4", shades(n))


def _ravdess(root: Path) -> None:
    for n, (s, kind) in enumerate((s, kind) for s in (2, 5, 12) for kind in (3, 6)):
        save_video(root / f"Actor_{s:02d}/01-01-{kind:02d}-01-02-01-{s:02d}.mp4", shades(n))


def _dfew(root: Path) -> None:
    dfew(root, {n: n % 2 + 1 for n in range(1, 11)}, frames=shades(0, 16))


def _ferv39k(root: Path) -> None:
    scenes, kinds = ("Action", "Crime"), ("Sad", "Happy")
    names = [f"{scene}/{kind}/00{i}{part}" for scene in scenes for kind in kinds
             for i, part in enumerate("112")]  # fmt: skip
    for n, name in enumerate(names):
        folder = root / "2_ClipsforFaceCrop" / name
        save_pictures(folder, range(4), name="{:04d}.jpg", frames=shades(n))
    for part, mine in (("train", "1"), ("test", "2")):
        file = root / f"4_setups/All_scenes/{part}_All.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{name} {name.split('/')[1]}\n" for name in names if name.endswith(mine)]
        file.write_text("".join(rows))


def _mafw(root: Path) -> None:
    for fold in range(1, 6):
        below = root / f"split/single/no_caption/set_{fold}"
        below.mkdir(parents=True)
        lines = [f"{n:05d}.mp4 {('anger', 'fear')[n % 2]}\n" for n in range(1, 11)]
        (below / "test.txt").write_text("".join(lines[2 * fold - 2 : 2 * fold]))
        (below / "train.txt").write_text("".join(lines[: 2 * fold - 2] + lines[2 * fold :]))
    for n in range(1, 11):
        folder = root / f"data/frames/{n:05d}"
        save_pictures(folder, range(4), name="{:04d}.png", frames=shades(n))


def _voxceleb2(root: Path) -> None:
    for n, person in enumerate(("id00012", "id00017", "id00018")):
        save_video(root / f"dev/mp4/{person}/abc/00113.mp4", shades(n))


def _table(root: Path) -> None:
    rows = [("path", "label", "subject_id")]
    for n, (s, label) in enumerate((s, label) for s in "xyz" for label in ("joy", "fear")):
        save_video(root / f"{n}.mp4", shades(n))
        rows.append((f"{n}.mp4", label, s))
    with (root / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _folder(root: Path) -> None:
    for n in range(3):
        save_video(root / f"{n}.mp4", shades(n))


MINIATURES: dict[str, Callable[[Path], None]] = {
    "casme2": _casme2,
    "samm": _samm,
    "casme3": _casme3,
    "smic": _smic,
    "mmew": _mmew,
    "crema-d": _crema_d,
    "ravdess": _ravdess,
    "dfew": _dfew,
    "ferv39k": _ferv39k,
    "mafw": _mafw,
    "voxceleb2": _voxceleb2,
    "table": _table,
    "folder": _folder,
}
