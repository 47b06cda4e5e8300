"""What an unfinished run has finished, kept beside its shards: the next run goes on from there.

    request.json   what was asked for; another request does not go on with these shards
    done.jsonl     a line a finished shard: its manifest entry, where to go on, the counts so far
    rows.jsonl     rows of rejected.csv; what lies beyond the last finished shard is dropped

Owns these files. A line is written once everything that it names is on the disk, so whenever the
run is killed, the lines are true. Knows neither videos nor tars.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.index import Shard, index_name, write_aside
from shards.ingest.inputs import InputError, Refused

REQUEST = "request.json"
DONE = "done.jsonl"
ROWS = "rows.jsonl"
SHARDS = "shards"
"""Folder of the shards that the journal is about."""


@dataclass
class Counts:
    """What was made and refused so far."""

    clips: int = 0
    frames: int = 0
    seconds: float = 0.0
    damaged: int = 0
    refused: int = 0
    """Videos that gave no clip."""
    parts: int = 0
    """Parts of videos that were left out."""
    labels: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    """Videos that gave no clip, by the split that they were to be of; "" without one."""

    def reject(self, split: str | None) -> None:
        """Count one of these videos."""
        self.rejected[split or ""] = self.rejected.get(split or "", 0) + 1


class Journal:
    """The journal of one output folder; opening it drops what is half written."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Raises InputError if shards of another request are there."""
        self._folder = folder
        self.finished: list[Shard] = []
        self.at = (0, 0)
        """Number of the video, and of its clip, that comes next."""
        self.counts = Counts()
        rows = self._read_done()
        if self.finished and (changed := _changed(folder / REQUEST, request)):
            raise InputError(
                f"{folder} holds {len(self.finished)} finished shards of a run that was stopped, "
                f"but {changed}; give what was given then and it goes on, or add --restart to "
                "throw them away"
            )
        write_aside(folder / REQUEST, json.dumps(request, indent=1).encode())
        self._rows = (folder / ROWS).open("ab")
        self._rows.truncate(rows)
        self._rows.seek(rows)

    def _read_done(self) -> int:
        """Takes up the lines that are whole; the bytes of ROWS that count."""
        path, kept, rows = self._folder / DONE, 0, 0
        data = path.read_bytes() if path.exists() else b""
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):  # written when the machine went down
                break
            try:
                entry = json.loads(line)
                self.finished.append(Shard(**entry["shard"]))
                self.at, self.counts = tuple(entry["at"]), Counts(**entry["counts"])
                kept, rows = kept + len(line), entry["rows"]
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{path} was damaged; start over with --restart") from None
        if kept < len(data):
            os.truncate(path, kept)
        return rows

    def refuse(self, kind: str, row: Refused) -> None:
        """Notes a row; `kind` is "video" or "part"."""
        line = [kind, row.path, row.reason, row.action]
        self._rows.write(json.dumps(line).encode() + b"\n")

    def rows(self) -> Iterator[tuple[str, Refused]]:
        """(kind, row) of everything noted."""
        self._rows.flush()
        with (self._folder / ROWS).open("rb") as file:
            for line in file:
                kind, *row = json.loads(line)
                yield kind, Refused(*row)

    def commit(self, shard: Shard, at: tuple[int, int]) -> None:
        """Notes a shard that is on the disk; `at` comes next."""
        _sync(self._rows)
        self.finished.append(shard)
        self.at = at
        entry = {"shard": asdict(shard), "at": at, "rows": self._rows.tell()}
        with (self._folder / DONE).open("ab") as file:
            file.write(json.dumps(entry | {"counts": asdict(self.counts)}).encode() + b"\n")
            _sync(file)

    def close(self) -> None:
        self._rows.close()


def finished_shards(folder: Path) -> int:
    """How many shards the journal in this folder notes; 0 where they have been published."""
    if not (folder / SHARDS).is_dir():
        return 0
    try:
        return (folder / DONE).read_bytes().count(b"\n")
    except OSError:
        return 0


def clear_unfinished(shards: Path, finished: list[Shard]) -> None:
    """Removes what no line names. InputError where a finished shard is not what was written."""
    sizes = {shard.name: shard.bytes for shard in finished}
    known = {*sizes, *map(index_name, sizes)}
    for path in shards.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in known:
            path.unlink()
    for name, size in sizes.items():
        tar = shards / name
        if not tar.is_file() or tar.stat().st_size != size or not _index_is_there(tar):
            raise InputError(
                f"{tar}, which the stopped run had finished, was changed or is missing; restore "
                "it, or start over with --restart"
            )


def _index_is_there(tar: Path) -> bool:
    return tar.with_name(index_name(tar.name)).is_file()


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _changed(file: Path, request: Mapping[str, Any]) -> str:
    """How the request differs from the one in the file, in words; empty if it does not."""
    before = json.loads(file.read_bytes())
    differs = []
    for group, now in json.loads(json.dumps(request)).items():
        old = before.get(group, {})
        if group == "inputs" and old != now:
            differs.append(
                f"the videos or what is known of them changed ({old.get('videos')} then, "
                f"{now['videos']} now)"
            )
            continue
        names = [name for name in {**old, **now} if old.get(name) != now.get(name)]
        differs += [f"{name} was {old.get(name)} then, is {now.get(name)} now" for name in names]
    return "; ".join(differs)
