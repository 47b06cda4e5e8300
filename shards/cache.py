"""Shards from elsewhere on a local disk: one bounded folder for all processes of a machine.

Owns the folder: what is in it, who may read it, what is deleted to make room. A file is named by
its sha256, so that a changed shard is another file, and one that came from two places is kept once.
Refuses to know where files come from.

    <sha256>               whole and checked; the least recently opened one goes first
    <sha256>.<size>.part   being written; `size` bytes are reserved for it

Whoever reads a file holds a shared lock on it, whoever writes one an exclusive lock: locks end with
their process, so what a killed one left behind is recognised. Put the folder on a local disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.index import sha256_of
from shards.patience import WrongBytes

DEFAULT_FOLDER = Path("~/.cache/mira-video/shards")
DEFAULT_GB = 50.0
POLL = 0.05
"""Seconds between two looks at a file that another process fetches."""

_OURS = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.part)?")


class CacheError(ValueError):
    """The cache cannot hold what is needed; the message names the folder and the setting."""


class NoRoom(CacheError):
    """Everything in the cache is being read; closing some of it makes room."""


@dataclass(frozen=True)
class Cache:
    """At most `limit` bytes in `folder`."""

    folder: Path = DEFAULT_FOLDER
    limit: int = int(DEFAULT_GB * 1e9)

    def open(self, digest: str, size: int, fetch: Callable[[Path], None]) -> int:
        """A descriptor of the file with this sha256; while it is open the file stays.

        Args:
            size: its bytes, reserved while it is fetched; 0 where that is unknown and little.
            fetch: writes it to a path; called where it is not there yet, by one process only.

        Raises NoRoom, CacheError where the disk is full or cannot be written, WrongBytes where
        `fetch` wrote something else, and what `fetch` raises.
        """
        with self._disk():
            while (found := self._held(digest)) is None:
                self._fill(digest, size, fetch)
        return found

    def drop(self, digest: str) -> None:
        """Forget a file, for whoever has found it damaged; who has it open reads on."""
        (self._root / digest).unlink(missing_ok=True)

    @property
    def _root(self) -> Path:
        return self.folder.expanduser()

    def _held(self, digest: str) -> int | None:
        path = self._root / digest
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _is_at(file, path):  # deleted between the two calls
            os.close(file)
            return None
        os.utime(path)
        return file

    def _fill(self, digest: str, size: int, fetch: Callable[[Path], None]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        part, final = self._root / f"{digest}.{size}.part", self._root / digest
        with part.open("ab") as claim:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Somebody is fetching it. Waiting for this lock might last for ever: what is
                # locked is the file itself, and once it is whole its readers lock it.
                time.sleep(POLL)
                return
            if not _is_at(claim.fileno(), part):
                return
            try:
                if final.exists():
                    return
                self._make_room(size)
                fetch(part)
                if sha256_of(part) != digest:
                    raise WrongBytes(errno.EIO, "came with other bytes than the manifest says")
                with self._counting():  # a list read meanwhile might miss both names
                    part.replace(final)
            finally:
                # gcsfs deletes what it did not finish; another process may have begun anew.
                if _is_at(claim.fileno(), part):
                    part.unlink()

    def _make_room(self, size: int) -> None:
        """Delete what was opened longest ago and is not open, until `size` reserved bytes fit."""
        if size > self.limit:
            raise CacheError(self._too_small(size))
        with self._counting():
            entries = sorted(self._entries())
            total = sum(held for _, held, _ in entries)
            for _, held, path in entries:
                if total <= self.limit:
                    return
                if _removed(path):
                    total -= held
            if total > self.limit:
                raise NoRoom(self._too_small(total))

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        """While this lasts no other process adds up what is in the folder, or adds to it."""
        with (self._root / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Of every file of ours: when it was last opened, the bytes it holds, and its path."""
        with os.scandir(self._root) as found:
            for entry in found:
                if match := _OURS.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat()
                        held = max(facts.st_size, int(match[1] or 0))
                        yield facts.st_mtime, held, Path(entry.path)

    def _too_small(self, needed: int) -> str:
        return (
            f"the cache {self._root} may hold {self.limit / 1e9:.3g} GB, but the shards that are "
            f"read at once take {needed / 1e9:.3g} GB: set --data.cache_gb {gb_for(needed)} or "
            "more, write smaller shards, or use fewer data.streams"
        )

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Turns errors of the local disk into CacheError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise CacheError(
                    f"the disk of the cache {self._root} is full ({error.strerror}): free some "
                    "space, choose another folder with --data.cache, or lower --data.cache_gb"
                ) from None
            if str(error.filename or "").startswith(str(self._root)):
                raise CacheError(
                    f"the cache {self._root} cannot be used ({error.strerror}: {error.filename}): "
                    "choose another folder with --data.cache"
                ) from None
            raise


def gb_for(needed: int) -> str:
    """A setting of cache_gb that holds `needed` bytes with some to spare."""
    return f"{needed * 1.2 / 1e9 + 0.001:.3g}"


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Delete a file unless somebody reads or writes it."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
