"""Folders that appear whole or not at all: written aside on the same disk, then renamed.

    .OUT.partial-ingest/   lock · request.json, done.jsonl, rows.jsonl (`journal`) · work/ · shards/

Owns who may replace what: only a folder that holds a manifest of ours is ever overwritten; and who
may write: one run at a time, from whichever machine. What a stopped run had finished stays and is
gone on with; a run that finished nothing leaves nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.ingest.inputs import InputError
from shards.ingest.journal import DONE, SHARDS, Journal, clear_unfinished, finished_shards
from shards.manifest import MANIFEST

LOCK = "lock"


@dataclass(frozen=True)
class Aside:
    """Where a run writes."""

    shards: Path
    """What `publish` will rename."""
    work: Path
    """For files of videos in the making."""
    journal: Journal


@contextmanager
def written_aside(
    out: Path, request: Mapping[str, Any], *, overwrite: bool, restart: bool, expected: int
) -> Iterator[Aside]:
    """The folder beside `out` to write into: a new one, or that of a stopped run of this request.

    Gone afterwards if `publish` renamed its shards, or if it holds no finished shard. `expected`
    bytes must be free for a new one. `out` is no link, as the folder itself is renamed. Raises
    InputError where `out` may not be written.
    """
    from shards.ingest.write import room_for

    if os.path.ismount(out):
        raise InputError(
            f"{out} is a mount point, which cannot be renamed as a finished folder is; name a "
            f"folder inside it, such as {out / 'shards'}"
        )
    with _alone(out) as root:
        _mend(out)
        refuse(out, overwrite=overwrite)
        afresh = restart or not finished_shards(root)
        with room_for(root.parent, expected if afresh else 0):
            if afresh:
                _clear(root, but=LOCK)
            aside = _opened(root, request)
            try:
                yield aside
            finally:
                aside.journal.close()
                _leave(aside, root)


@contextmanager
def _alone(out: Path) -> Iterator[Path]:
    """The folder beside `out`, locked; gone afterwards if it holds no finished shard."""
    from shards.ingest.write import room_for

    root = aside_of(out)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with room_for(root.parent, 0):
            lock = _locked(root, out)
    except PermissionError as error:
        raise InputError(
            f"{root.parent} cannot be written ({error.strerror}); choose another --out"
        ) from None
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} is in the way; choose another --out") from None
    try:
        yield root
    finally:
        if not finished_shards(root):
            shutil.rmtree(root, ignore_errors=True)
        lock.close()


def aside_of(out: Path) -> Path:
    """Where the unfinished shards of `out` lie: where it leads, if it is a link."""
    folder = Path(os.path.realpath(out))
    return folder.parent / f".{folder.name}.partial-ingest"


def unfinished(out: Path) -> str:
    """What a run that stopped left, for people."""
    kept = finished_shards(aside_of(out))
    if not kept:
        return "nothing was written"
    return f"{kept} finished shard{'s' * (kept != 1)} kept; the same command goes on from there"


def _opened(root: Path, request: Mapping[str, Any]) -> Aside:
    shutil.rmtree(root / "work", ignore_errors=True)
    for name in ("work", SHARDS):
        (root / name).mkdir(exist_ok=True)
    journal = Journal(root, request)
    try:
        clear_unfinished(root / SHARDS, journal.finished)
    except InputError:
        journal.close()
        raise
    return Aside(root / SHARDS, root / "work", journal)


def _leave(aside: Aside, root: Path) -> None:
    """After a run: nothing where it published, else what it had finished."""
    if not aside.shards.exists():
        (root / DONE).unlink(missing_ok=True)
    shutil.rmtree(aside.work, ignore_errors=True)


def _clear(root: Path, *, but: str) -> None:
    (root / DONE).unlink(missing_ok=True)  # first: without it the rest counts for nothing
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != but:
            path.unlink()


def _locked(root: Path, out: Path) -> IO[bytes]:
    """The folder's lock, held until it is closed or this process dies. Makes the folder."""
    while True:
        root.mkdir(exist_ok=True)
        file = (root / LOCK).open("a+b")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read(200).decode("utf-8", "replace")
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InputError(
                    f"another ingest ({holder}) is writing {out}; wait for it, or choose another "
                    "--out"
                ) from None
            raise InputError(
                f"{root.parent} does not lock files ({error.strerror}), so two runs could not be "
                "kept apart; choose an --out on another disk"
            ) from None
        if (root / LOCK).exists() and os.path.samestat(os.fstat(file.fileno()), _stat(root)):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
            file.flush()
            return file
        file.close()  # whoever held it removed the folder meanwhile


def _stat(root: Path) -> os.stat_result:
    return (root / LOCK).stat()


def refuse(out: Path, *, overwrite: bool) -> None:
    """InputError unless `out` is free, an empty folder, or shards that may be overwritten."""
    if not out.exists() and not out.is_symlink():
        return
    if _is_empty(out):
        return
    if not out.is_dir() or not _is_ours(out):
        raise InputError(f"{out} exists and is no shard folder; choose another --out")
    if not overwrite:
        raise InputError(f"{out} holds shards already; choose another --out, or add --overwrite")


def _is_empty(out: Path) -> bool:
    return out.is_dir() and not any(out.iterdir())


def _is_ours(out: Path) -> bool:
    try:
        data = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and str(data.get("schema", "")).startswith("face-shards/")


def publish(shards: Path, out: Path) -> None:
    """Gives the finished folder its name; an older one of that name goes once the new is there."""
    out = out.absolute()
    old = _replaced(aside_of(out))
    if out.exists():
        out.rename(old)
    try:
        shards.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    if old.exists():
        shutil.rmtree(old)


def _replaced(root: Path) -> Path:
    return root.with_name(root.name + ".old")


def mend(out: Path) -> None:
    """Undoes what a kill amid `publish` left, before `out` is read.

    Raises InputError where a run is at it: what it holds aside is not left over.
    """
    if _replaced(aside_of(out)).exists():
        with _alone(out):
            _mend(out)


def _mend(out: Path) -> None:
    """`mend`, under the lock. Older shards go only where newer ones are complete."""
    old = _replaced(aside_of(out))
    if not old.exists():
        return
    if _is_ours(out):
        shutil.rmtree(old)
        return
    if _is_empty(out):
        out.rmdir()
    if out.exists():
        raise InputError(
            f"{out} is in the way of the shards of that name, which a kill left in {old}; move it "
            "elsewhere, and the same command puts them back"
        )
    old.rename(out)
