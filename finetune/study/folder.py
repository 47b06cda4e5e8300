"""The folder of a study: its split files, what study it is, and its folds as jobs.

Owns when two commands are the same study, and the recipe of one fold. Refuses to run anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.study.config import StudyConfig
from finetune.study.fold import finished
from finetune.study.folds import Fold, Protocol, split_table
from launch.config import to_dict
from launch.job import write_json
from launch.parallel import Job
from launch.tracking import RunHandle
from shards.index import write_aside

NO_MATTER = ("cluster", "tracking", "out", "retries", "at_once", "accept_code", "init", "cache")
NO_MATTER += ("shards", "loader_workers", "prefetch", "cache_gb", "retry_seconds")
NO_MATTER += ("skip", "max_failed_share", "allow_change")
NO_MATTER += ("log_every", "save_every", "keep_checkpoints", "peak_tflops")
"""Fields that change no result: what is read is known by its hashes, what cannot be read by the
coverage; a study that it ends goes on with the ledger."""


def split_tables(made: Protocol) -> dict[str, bytes]:
    """The split file of every fold, by the fold's name; nothing is written."""
    return {fold.name: split_table(fold, mapped=made.mapped) for fold in made.folds}


def hashes_of(tables: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of every split file."""
    return {name: hashlib.sha256(table).hexdigest() for name, table in tables.items()}


def write_splits(tables: Mapping[str, bytes], out: Path) -> None:
    """Write the split files; only after `check_same`: those of another study may lie there."""
    for name, table in tables.items():
        file = split_file(out, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_aside(file, table)


def split_file(out: Path, fold: str) -> Path:
    """Where a fold's split file lies."""
    return out / "folds" / fold / "split.csv"


def check_same(
    config: StudyConfig, out: Path, splits: Mapping[str, str], origin: Mapping[str, str]
) -> None:
    """Refuse a folder that holds another study; else write down what this one is."""
    now = {
        "config": _flat(to_dict(config)),
        "splits": dict(splits),
        "inputs": {k: v for k, v in origin.items() if k.startswith("input.") and "sha" in k},
        "code": origin["source.sha256"],
    }
    file = out / "study.json"
    if file.is_file():
        before = json.loads(file.read_text())
        if found := _difference(before, now):
            raise ValueError(
                f"{out} holds a study with {found}; use another --out for this one, or give its "
                "command again"
            )
        if before["code"] != now["code"] and not config.accept_code:
            raise ValueError(
                f"{out} holds folds of another version of the code; use another --out, or "
                "--accept_code, which keeps them and says so"
            )
    elif left := sorted((out / "folds").glob("*/run")):
        raise ValueError(
            f"{out} holds folds ({left[0].parent.name}) and no study.json that says of which "
            "study: use another --out, or remove them"
        )
    write_json(file, now)


def jobs_of(
    config: StudyConfig, made: Protocol, splits: Mapping[str, str], handle: RunHandle
) -> list[Job]:
    """A job for every fold; of those that are finished with their result."""
    jobs = []
    for number, fold in enumerate(made.folds):
        folder = split_file(Path(config.out), fold.name).parent
        shift = number if config.vary_seed else 0
        payload = {
            "config": to_dict(fold_config(config, fold, handle, seed_shift=shift)),
            "folder": str(folder),
            "protocol": made.name,
            "fold": fold.name,
            "splits": splits[fold.name],
        }
        result = finished(folder)
        jobs.append(Job(fold.name, payload, "done" if result else "waiting", result=result))
    return jobs


def fold_config(
    config: StudyConfig, fold: Fold, handle: RunHandle, *, seed_shift: int = 0
) -> FinetuneConfig:
    """The recipe for one fold: an ordinary fine-tuning with a split file."""
    theirs, file = config.finetune, split_file(Path(config.out), fold.name)
    picked_on = "test" if config.select_on_test else "val" if fold.validation else None
    return replace(
        theirs,
        data=replace(
            theirs.data, splits=str(file), split="train", seed=theirs.data.seed + seed_shift
        ),
        run=replace(theirs.run, seed=theirs.run.seed + seed_shift),
        cluster=replace(theirs.cluster, output=str(file.parent / "run")),
        tracking=replace(
            theirs.tracking,
            uri=handle.uri,
            run_name=f"{Path(config.out).name} {fold.name}",
            register=None,
            parent=handle.run_id,
        ),
        validation_split=picked_on,
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Settings that matter, by dotted name."""
    if not isinstance(value, dict):
        return {prefix.rstrip("."): value}
    found = {}
    for name, inner in value.items():
        if name not in NO_MATTER:
            found |= _flat(inner, f"{prefix}{name}.")
    return found


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs besides the code, in words; "" if nothing does. A setting that an earlier
    version did not know differs in nothing."""
    for name, value in now["config"].items():
        if before["config"].get(name, value) != value:
            return f"{name} {before['config'].get(name)!r}, this one has {value!r}"
    if before["inputs"] != now["inputs"]:
        return "other shards or initial weights"
    return "" if before["splits"] == now["splits"] else "other folds"
