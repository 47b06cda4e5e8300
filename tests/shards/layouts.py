"""Miniature folders laid out as public data sets hand them out, with made-up content."""

import functools
from pathlib import Path

import av
import cv2
import numpy as np
import openpyxl

from shards.render import ClipSpec, Expression, Face, Scene, render_clip


@functools.cache
def face(frames=12, seed=3, size=(192, 160), fps=25.0):
    """uint8 [T, h, w, 3]: a rendered person whose expression changes."""
    rng = np.random.default_rng(seed)
    scene = Scene.sample(seed, seed, seconds=frames / fps)
    expression = Expression.sample("surprise", 1.0, frames=frames, fps=fps, rng=rng)
    return render_clip(ClipSpec(Face.from_seed(seed), scene, expression, frames, fps, size))


@functools.cache
def pattern(frames=12, size=(48, 64)):
    """uint8 [T, h, w, 3]: brightness rises by 15 a frame; nobody in it."""
    return np.stack([np.full((*size, 3), 15 * t % 256, np.uint8) for t in range(frames)])


def save_pictures(folder, numbers, *, name="img{}.jpg", frames=None, grey=False):
    """Pictures named by `numbers`, the frames one after the other."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    frames = pattern() if frames is None else frames
    for i, number in enumerate(numbers):
        picture = frames[i % len(frames)][..., ::-1]
        picture = picture[..., 1] if grey else picture
        assert cv2.imwrite(str(folder / name.format(number)), picture)


def save_video(path, frames=None, *, codec="libx264", rate=25):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = face(20) if frames is None else frames
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode(None))


def workbook(path, **sheets):
    """An .xlsx; a sheet is a list of rows. Written by openpyxl: formulas have no stored value."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)
    return path


CASME2_HEADER = (
    *("Subject", "Filename", None, "OnsetFrame", "ApexFrame", "OffsetFrame", None),
    *("Action Units", "Estimated Emotion"),
)


def casme2(root, rows, *, frames=None):
    """`rows`: subject, clip, onset, apex, offset, units, emotion. Pictures 40 … 75."""
    cells = [(s, c, None, on, apex, off, None, *rest) for s, c, on, apex, off, *rest in rows]
    workbook(root / "CASME2-coding-20140508.xlsx", Sheet1=[CASME2_HEADER, *cells])
    for subject, clip, *_ in rows:
        folder = root / "CASME2_RAW_selected" / f"sub{int(subject):02d}" / str(clip).strip()
        save_pictures(folder, range(40, 76), frames=frames)
    return root


SAMM_HEADER = (
    *("Subject", "Filename", "Inducement Code", "Onset Frame", "Apex Frame", "Offset Frame"),
    *("Duration", "Micro", "Action Units", "Estimated Emotion", "Objective Classes", "Notes"),
)


def samm(root, rows, *, frames=None):
    """`rows`: subject, clip, onset, apex, offset, units, emotion. The header is on row 14."""
    cells = [
        (subject, clip, 1, on, apex, off, 30, "Micro - 1/2", units, emotion, "III", None)
        for subject, clip, on, apex, off, units, emotion in rows
    ]
    above = [["SAMM", None], [], ["Please cite …"], *[[]] * 10]
    workbook(
        root / "SAMM_Micro_FACS_Codes_v2.xlsx",
        README=[["nothing here"]],
        MICRO_ONLY=[*above, SAMM_HEADER, *cells],
    )
    for subject, clip, *_ in rows:
        folder = root / "SAMM" / f"{int(subject):03d}" / clip
        name = f"{int(subject):03d}_{{:05d}}.jpg"
        save_pictures(folder, range(5560, 5572), name=name, frames=frames, grey=True)
    return root


def dfew(root, clips, *, folds=5, form="Clip/clip_224x224_16f", frames=None):
    """`clips`: {number: label 1..7}; clip number n is tested by fold n % folds + 1."""
    for fold in range(1, folds + 1):
        for part in ("train", "test"):
            file = root / "EmoLabel_DataSplit" / f"{part}(single-labeled)" / f"set_{fold}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            tested = {n for n in clips if n % folds + 1 == fold}
            chosen = sorted(tested if part == "test" else set(clips) - tested)
            lines = ["video_name,label", *(f"{n},{clips[n]}" for n in chosen)]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    for number in clips:
        save_pictures(root / form / f"{number:05d}", range(1, 17), name="{}.jpg", frames=frames)
    return root
