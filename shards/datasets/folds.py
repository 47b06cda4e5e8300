"""Official folds: lists of clips for training and testing, N times over.

Owns how N pairs of lists become one split a clip. Knows no file format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shards.datasets.contract import Dataset, Options, refused
from shards.ingest.inputs import Refused


@dataclass(frozen=True)
class Listed:
    """A clip in a list of a fold."""

    name: str
    label: str
    line: int
    file: Path
    split: str = ""


Read = Callable[[int, str], list[Listed]]
"""From the fold's number and "train" or "test" to its list."""


def folded(
    dataset: Dataset, options: Options, read: Read
) -> tuple[list[Listed], list[Refused], list[str]]:
    """Every clip once, with its split; refused lines; notes.

    Of one fold: its "train" and "test". Of all of them: "fold1" … by which fold tests the clip, so
    that one set of shards serves every fold (test on foldK, train on the others).
    """
    if options.fold is not None:
        clips, no = _fold(read, options.fold)
        return clips, no, []
    tests = {fold: read(fold, "test") for fold in range(1, dataset.folds + 1)}
    kept: dict[str, Listed] = {}
    no = []
    for fold, clips in tests.items():
        for clip in clips:
            if clip.name in kept:
                other = f"tested by {kept[clip.name].split} too"
                no.append(refused(clip.name, other, line=clip.line, file=clip.file))
            else:
                kept[clip.name] = replace(clip, split=f"fold{fold}")
    return list(kept.values()), no, _complements(dataset, kept, read)


def _fold(read: Read, fold: int) -> tuple[list[Listed], list[Refused]]:
    test = {clip.name: replace(clip, split="test") for clip in read(fold, "test")}
    clips, no = list(test.values()), []
    for clip in read(fold, "train"):
        if clip.name in test:
            why = f"in the training and the test list of fold {fold}"
            no.append(refused(clip.name, why, line=clip.line, file=clip.file))
        else:
            clips.append(replace(clip, split="train"))
    return clips, no


def _complements(dataset: Dataset, tested: dict[str, Listed], read: Read) -> list[str]:
    """A note where training on "all other folds" is not the official training list."""
    for fold in range(1, dataset.folds + 1):
        others = {name for name, clip in tested.items() if clip.split != f"fold{fold}"}
        if {clip.name for clip in read(fold, "train")} != others:
            return [
                f"the training list of fold {fold} is not the test lists of the others; for the "
                f"official split ingest each fold by --fold 1 … {dataset.folds}"
            ]
    return [f"split fold1 … fold{dataset.folds}: test on one, train on the others"]
