"""Shards from elsewhere on a local disk: one bounded folder for all processes of a machine.

Owns the folder: what is in it, who may read it, what is deleted to make room. A file is named by
its sha256, so that a changed shard is another file, and one that came from two places is kept once.
Refuses to know where files come from.

    <sha256>               whole and checked; the least recently opened one goes first
    <sha256>.<size>.part   being written; `size` bytes are reserved for it

Whoever reads a file holds a shared lock on it, whoever writes one an exclusive lock: locks end with
their process, so what a killed one left behind is recognised. A descriptor is kept for one reading
and no longer: then what nobody reads at this moment can make room, all that is waited for ends by
itself, and no process waits for another that is idle. Put the folder on a local disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
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
ROOM_PATIENCE = 600.0
"""Seconds to wait for room: for downloads, as these hold what they need, and may be slow."""
IN_USE = 60.0
"""Seconds since its last opening in which a file counts as one that is being worked through."""

_OURS = re.compile(r"[0-9a-f]{64}(?:\.(\d+)\.part)?")
_fetched: dict[Path, float] = {}
"""Files that this process has fetched in the last IN_USE seconds; when, by the monotonic clock."""
_warned: set[Path] = set()
"""Caches that it has said to be too small."""

log = logging.getLogger("shards")


class CacheError(ValueError):
    """The cache cannot hold what is needed; the message names the folder and the setting."""


class NoRoom(CacheError):
    """Everything in the cache is being read or written at this moment."""


@dataclass(frozen=True)
class Cache:
    """At most `limit` bytes in `folder`."""

    folder: Path = DEFAULT_FOLDER
    limit: int = int(DEFAULT_GB * 1e9)
    ahead: bool = False
    """Only into room that is free or was not in use lately, and without waiting for it: who fetches
    what is needed later must not send away what is needed now."""

    def open(self, digest: str, size: int, fetch: Callable[[Path], None]) -> int:
        """A descriptor of the file with this sha256; while it is open the file stays, so close it
        once it is read.

        Args:
            size: its bytes, reserved while it is fetched; 0 where that is unknown and little.
            fetch: writes it to a path; called where it is not there yet, by one process only.

        Raises NoRoom, CacheError where the disk is full or cannot be written, WrongBytes where
        `fetch` wrote something else, and what `fetch` raises.
        """
        end = time.monotonic() + (0 if self.ahead else ROOM_PATIENCE)
        with self._disk():
            while (found := self._held(digest)) is None:
                try:
                    if (new := self._filled(digest, size, fetch)) is not None:
                        return new
                except NoRoom:
                    if time.monotonic() >= end:
                        raise
                    time.sleep(random.uniform(POLL, 10 * POLL))
        return found

    def drop(self, digest: str) -> None:
        """Forget a file, for whoever has found it damaged; who has it open reads on."""
        _fetched.pop(self._root / digest, None)
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
        with contextlib.suppress(PermissionError):  # another user's, who alone may change its age
            os.utime(file)  # by its descriptor: `drop` asks for no lock
        return file

    def _filled(self, digest: str, size: int, fetch: Callable[[Path], None]) -> int | None:
        """A descriptor of the file, now fetched; None where another process is at it."""
        self._root.mkdir(parents=True, exist_ok=True)
        part = self._root / f"{digest}.{size}.part"
        with part.open("a+b") as claim:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Somebody is fetching it. Waiting for this lock might last for ever: what is
                # locked is the file itself, and once it is whole its readers lock it.
                time.sleep(POLL)
                return None
            if not _is_at(claim.fileno(), part):
                return None
            try:
                if (self._root / digest).exists():
                    return None
                self._make_room(size)
                fetch(part)
                if sha256_of(part) != digest:
                    raise WrongBytes(errno.EIO, "came with other bytes than the manifest says")
                return self._published(claim.fileno(), part, digest)
            finally:
                # gcsfs deletes what it did not finish; another process may have begun anew.
                if _is_at(claim.fileno(), part):
                    part.unlink()

    def _published(self, claim: int, part: Path, digest: str) -> int | None:
        """Give a whole file its name, and hold it like a reader: whoever has fetched a file reads
        it before it can be deleted again, so that each gets on in the smallest cache."""
        final = self._root / digest
        with self._counting():  # a list read meanwhile might miss both names
            part.replace(final)
            if not _is_at(claim, final):  # what fetched it has put another file there
                return None
            fcntl.flock(claim, fcntl.LOCK_SH)
        self._warn_of_haste(final)
        return os.dup(claim)

    def _warn_of_haste(self, path: Path) -> None:
        """Say once that files go and come again while they are worked through."""
        now = time.monotonic()
        for old in [file for file, when in list(_fetched.items()) if when < now - IN_USE]:
            _fetched.pop(old, None)
        if path in _fetched and self._root not in _warned:
            _warned.add(self._root)
            log.warning(
                "the cache %s (%.3g GB) is too small for what is read at once: a shard that is in "
                "use was deleted for others and had to be fetched again after %.0f s. This slows "
                "reading down; set --data.cache_gb higher, or write smaller shards",
                *(self._root, self.limit / 1e9, now - _fetched[path]),
            )
        _fetched[path] = now

    def _make_room(self, size: int) -> None:
        """Delete what was opened longest ago and is not open, until `size` reserved bytes fit."""
        if size > self.limit:
            raise CacheError(self._too_small(size))
        with self._counting():
            entries = sorted(self._entries())
            total = sum(held for _, held, _ in entries)
            latest = time.time() - IN_USE if self.ahead else float("inf")
            for opened, held, path in entries:
                if total <= self.limit or opened > latest:
                    break
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
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise CacheError(
                    f"the cache {self._root} lies on a disk without file locks ({error.strerror}): "
                    "choose a folder on a local disk with --data.cache"
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
    """Delete a file unless somebody reads or writes it, or it is another user's."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks alone only what may be written
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
