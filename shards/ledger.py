"""The ledger: every sample that could not be read, as a line of JSON in a file.

Owns the file's form. Refuses to decide what happens to a run that has many of them.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Failure:
    """A sample that could not be read, and when."""

    shard: str
    """The tar's path."""
    key: str
    reason: str
    step: int


class Ledger:
    """Appends failures to a JSONL file that all ranks of a run share.

    The file appears with the first failure; a resumed run adds to it.
    """

    def __init__(self, path: str | Path, *, rank: int = 0):
        self.path = Path(path)
        self.rank = rank

    def add(self, failure: Failure) -> None:
        """Write one line at once: a run may end by what comes next."""
        line = json.dumps({**asdict(failure), "rank": self.rank}, ensure_ascii=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)  # on network disks appending alone may lose lines
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
