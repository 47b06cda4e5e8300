"""Whether the disk has room for what the folds of a study write.

Owns the estimate, from below: what is small beside weights is left out. Refuses to know what a fold
does with its files.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from finetune.models import build
from finetune.study.config import StudyConfig
from finetune.study.fold import finished
from finetune.study.folder import split_file
from finetune.study.folds import Fold, Protocol
from launch.checkpoint import checkpoint_bytes
from launch.engine import RunConfig
from shards.wording import count


def check_room(config: StudyConfig, made: Protocol) -> None:
    """OSError where the folds that are not finished will take more than is free."""
    out = Path(config.out)
    folders = {fold.name: split_file(out, fold.name).parent for fold in made.folds}
    left = [fold for fold in made.folds if not finished(folders[fold.name])]
    held = sum(_size(folders[fold.name] / "run") for fold in left)  # by those that were stopped
    need, free = bytes_of(config, made, left), shutil.disk_usage(out).free
    if need > held + free:
        raise OSError(
            errno.ENOSPC,
            f"no room in {out}: weights and checkpoints of {count(len(left), 'fold')} take "
            f"{(need - held) / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; free some space, lower "
            "--at_once or --run.keep_checkpoints, or choose another --out",
        )


def bytes_of(config: StudyConfig, made: Protocol, folds: Sequence[Fold]) -> int:
    """What these folds write: the weights that each keeps, and the checkpoints, one being written,
    of those that run at once; of a single one where the cluster says how many do."""
    theirs = config.finetune
    with torch.device("meta"):  # of sizes alone
        network = build(theirs.encoder, theirs.outputs(made.labels), soa=theirs.heads.soa)
    checkpoint = checkpoint_bytes(network)
    picks = [bool(fold.validation) or config.select_on_test for fold in folds]
    weights = checkpoint // 4 * sum(1 + best for best in picks)
    most = sorted((_most_checkpoints(theirs.run, len(fold.train)) for fold in folds), reverse=True)
    return weights + sum(most[: config.at_once or 1]) * checkpoint


def _most_checkpoints(run: RunConfig, clips: int) -> int:
    """How many of a fold lie there at once: one is written before the oldest goes."""
    steps = run.total_steps(math.ceil(clips / run.global_batch))
    return min(run.keep_checkpoints + 1, math.ceil(steps / run.save_every))


def _size(folder: Path) -> int:
    """Bytes of the files that are there; a process of a killed driver may still remove some."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total
