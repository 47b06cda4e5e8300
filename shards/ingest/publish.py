"""Folders that appear whole or not at all: written aside on the same disk, then renamed.

Owns who may replace what: only a folder that holds a manifest of ours is ever overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.ingest.inputs import InputError
from shards.manifest import MANIFEST


@contextmanager
def written_aside(out: Path, *, overwrite: bool, expected: int) -> Iterator[Path]:
    """A hidden folder beside `out` to write into, gone afterwards unless `publish` renamed it.

    `expected` bytes must be free. Raises InputError where `out` may not be written.
    """
    from shards.ingest.write import room_for

    refuse(out, overwrite=overwrite)
    parent = out.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        aside = parent / f".{out.name}.partial-{socket.gethostname()}-{os.getpid()}"
        with room_for(parent, expected):
            aside.mkdir()
    except PermissionError as error:
        raise InputError(
            f"{parent} cannot be written ({error.strerror}); choose another --out"
        ) from None
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} is in the way; choose another --out") from None
    try:
        with room_for(aside, 0):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse(out: Path, *, overwrite: bool) -> None:
    """InputError unless `out` is free, an empty folder, or shards that may be overwritten."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if not out.is_dir() or not _is_ours(out):
        raise InputError(f"{out} exists and is no shard folder; choose another --out")
    if not overwrite:
        raise InputError(f"{out} holds shards already; choose another --out, or add --overwrite")


def _is_ours(out: Path) -> bool:
    try:
        data = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and str(data.get("schema", "")).startswith("face-shards/")


def _sweep(out: Path) -> None:
    """Removes what a killed run of this machine left behind."""
    start = f".{out.name}.partial-{socket.gethostname()}-"
    for left in out.absolute().parent.glob(f"{start}*"):
        pid = left.name.removeprefix(start)
        if pid.isdecimal() and not _runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def publish(aside: Path, out: Path) -> None:
    """Gives the finished folder its name; an older one of that name goes once the new is there."""
    old = aside.with_name(aside.name + ".old")
    out = out.absolute()
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    if old.exists():
        shutil.rmtree(old)
