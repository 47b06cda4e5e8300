"""What the in-the-wild sets share: a list of clips with labels, each a video or a frame folder.

Knows no data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from shards.datasets.contract import Dataset, Options, one_of, refused
from shards.datasets.folds import Listed
from shards.ingest.inputs import Annotation, Collected, InputError, Item, inside
from shards.ingest.numbering import FrameFolder

ASSUMED_FPS = 25.0
SETTINGS = {"min_frames": 1}
"""A test clip is never left out for being short."""


def items(
    dataset: Dataset,
    root: Path,
    options: Options,
    *,
    listed: Sequence[Listed],
    place: Callable[[str], str],
    label: Callable[[str], str] | None = None,
    source: Callable[[str], str | None] = lambda name: None,
) -> Collected:
    """Items of the listed clips. `place` says where a clip lies below the root, `label` what its
    label is called, `source` what it was taken from.
    """
    found = Collected([])
    pictures = False
    for clip in listed:
        try:
            relative = place(clip.name)
            path = inside(root, relative)
            named = label(clip.label) if label else one_of(dataset.classes, clip.label)
            frames = None
            if path.is_dir():
                frames, pictures = FrameFolder(options.fps or ASSUMED_FPS), True
            elif not path.is_file():
                raise InputError(f"{relative} is neither a file nor a folder in {root}")
        except InputError as error:
            found.refused.append(refused(clip.name, error, line=clip.line, file=clip.file))
            continue
        annotation = Annotation(label=named, source_id=source(clip.name), split=clip.split)
        found.items.append(Item("", path, relative, annotation, frames))
    if pictures and options.fps is None:
        found.notes.append(f"its pictures have no frame rate: {ASSUMED_FPS:g} is assumed (--fps)")
    return found
