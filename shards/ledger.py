"""The ledger: every sample that could not be read, as a line of JSON in a file.

    {"shard", "sha256", "key", "path", "reason", "kind", "step", "rank"}

Owns the file's form, writing and reading. Refuses to decide what happens to a run that has many of
them. A sample is known by its key and the sha256 of its tar: wherever the shard lies, the line
means the same, and a shard with other bytes is tried anew. One that was damaged and is restored has
the bytes it had and is still named, so a ledger that `ingest --redo` has taken is done. `path` is
the source's, for ingest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

from shards.patience import log, patiently
from shards.place import DISK_PATIENCE, Remote, locate, read_whole

Skip = Mapping[str, frozenset[str]]
"""Keys that are not tried, by the sha256 of their tar."""


@dataclass(frozen=True)
class Failure:
    """A sample that was not read, and when."""

    shard: str
    """The tar's path or URL."""
    key: str
    reason: str
    step: int
    sha256: str = ""
    """Of the tar, by the manifest."""
    path: str = ""
    """Of the source, relative to the folder that was ingested; "" where the index is lost too."""
    kind: Literal["sample", "shard", "skipped"] = "sample"
    """What is at fault: this sample; its whole shard; or nothing, an earlier ledger names it."""


class Ledger:
    """Appends failures to a JSONL file that all ranks of a run share.

    The file appears with the first failure; a resumed run adds to it.
    """

    def __init__(self, path: str | Path, *, rank: int = 0):
        self.path = Path(path)
        self.rank = rank
        self._written: set[tuple[str, str, str]] = set()
        self._away = False

    def add(self, failure: Failure) -> None:
        """Write one line at once: a run may end by what comes next. One a sample, however often it
        comes; one that could not be written is told, and tried again when it comes again."""
        what = failure.shard, failure.key, failure.kind
        if what in self._written:
            return
        limit = 0.0 if self._away else DISK_PATIENCE  # a lost shard has hundreds of samples
        try:
            patiently(lambda: self._append(failure), str(self.path), limit=limit)
        except OSError as error:
            if not self._away:
                log.warning("%s cannot be written (%s); going on", self.path, error.strerror)
            self._away = True
        else:
            self._away = False
            self._written.add(what)

    def _append(self, failure: Failure) -> None:
        line = json.dumps({**asdict(failure), "rank": self.rank}, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            with contextlib.suppress(OSError):  # some network disks have no locks
                fcntl.lockf(file, fcntl.LOCK_EX)  # on others appending alone may lose lines
            if _torn(file):  # by a disk that was full
                line = "\n" + line
            # In a JSON text the escape of half a surrogate pair is what it stands for.
            file.write(line.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())


def _torn(file: BinaryIO) -> bool:
    """Whether the last line has no end."""
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


@dataclass
class Named:
    """What ledgers say of one tar."""

    keys: set[str] = field(default_factory=set)
    """Of samples that cannot be read."""
    lost: bool = False
    """Whether the whole shard was not there."""


def read_named(
    ledgers: Sequence[str], like: Remote | None = None, *, asked: str
) -> dict[str, Named]:
    """What ledgers name, by the sha256 of the tar. `asked` is the option that names them.

    Raises ValueError where a file cannot be read or is no ledger of this version.
    """
    found: dict[str, Named] = {}
    for name in ledgers:
        try:
            lines = read_whole(locate(name, like)).splitlines()
        except OSError as error:
            raise ValueError(f"{asked}: {name} cannot be read ({error.strerror})") from None
        strange: list[Exception] = []
        for line in lines:
            try:
                failure = json.loads(line)
                digest, kind, key = (str(failure[name]) for name in ("sha256", "kind", "key"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                strange.append(error)
                continue
            named = found.setdefault(digest, Named())
            if kind == "sample":
                named.keys.add(key)
            named.lost |= kind == "shard"
        _check_strange(strange, len(lines), f"{asked}: {name}")
    return found


def _check_strange(strange: Sequence[Exception], lines: int, where: str) -> None:
    """Lines that are none of a ledger: one may be torn, where a disk was full; more than every
    second make another file of it."""
    if 2 * len(strange) > lines:
        raise ValueError(
            f"{where} is no ledger that this version wrote ({strange[0]!r:.200}): give the "
            "ledger.jsonl of a run's output folder"
        )
    if strange:
        log.warning("%s: %d of %d lines are torn and tell nothing", where, len(strange), lines)


def read_skip(ledgers: Sequence[str], like: Remote | None = None) -> Skip:
    """The samples that ledgers name as unreadable. Those of a lost shard are not among them: it is
    the shard that has to come back. Raises like `read_named`."""
    named = read_named(ledgers, like, asked="data.skip")
    return {digest: frozenset(found.keys) for digest, found in named.items() if found.keys}
