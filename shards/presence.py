"""Which files of a folder are there in full, by their names and sizes.

Owns this look from outside. Refuses to open a file: what is inside shows when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.index import ShardAway, ShardLost, broken, index_name
from shards.manifest import Manifest

Lost = Mapping[str, str]
"""Why a shard is lost, by its place among those of all folders, as JSON keeps it: what one process
saw, for others that then need not look at every file themselves."""


def look(manifests: Sequence[Manifest]) -> dict[int, ShardLost]:
    """The shards of several folders that are not there in full; see `lost_files`."""
    lost: dict[int, ShardLost] = {}
    first = 0
    for manifest in manifests:
        lost |= {first + i: error for i, error in lost_files(manifest).items()}
        first += len(manifest.shards)
    return lost


def told(lost: Mapping[int, ShardLost]) -> dict[str, str]:
    """For another process; what is away now it may find there."""
    final = {i: error for i, error in lost.items() if not isinstance(error, ShardAway)}
    return {str(shard): str(error) for shard, error in final.items()}


def heard(lost: Lost) -> dict[int, ShardLost]:
    """What another process told."""
    return {int(shard): ShardLost(why) for shard, why in lost.items()}


def lost_files(manifest: Manifest) -> dict[int, ShardLost]:
    """The shards whose files are not there in full.

    Elsewhere than on a file system nothing is looked at: listing takes long there, and what is lost
    shows when it is fetched. Raises ManifestError where the folder cannot be listed.
    """
    folder = manifest.folder
    if not isinstance(folder, Path):
        return {}
    try:
        with os.scandir(folder) as entries:
            # Of an index its hash is checked when it is read.
            sizes = {e.name: _size(e) if e.name.endswith(".tar") else 0 for e in entries}
    except OSError as error:
        raise broken(folder, f"cannot be listed ({error.strerror})") from None
    lost = {}
    for i, shard in enumerate(manifest.shards):
        if shard.name not in sizes or index_name(shard.name) not in sizes:
            gone = shard.name if shard.name not in sizes else index_name(shard.name)
            lost[i] = broken(folder / gone, "is missing", kind=ShardLost)
        elif wrong := _wrong(sizes[shard.name], shard.bytes):
            lost[i] = broken(folder / shard.name, wrong, kind=ShardLost)
    return lost


def _size(entry: os.DirEntry[str]) -> int | OSError:
    try:
        return entry.stat().st_size
    except OSError as error:  # a link to nowhere, for one
        return error


def _wrong(found: int | OSError, written: int) -> str:
    """What is wrong with the size of a file, in words."""
    if isinstance(found, OSError):
        return f"cannot be read ({found.strerror})"
    if found == written:
        return ""
    what = "was cut" if found < written else "has grown"
    return f"{what}: {found} bytes, written with {written}"
