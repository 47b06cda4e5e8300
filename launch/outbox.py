"""What a run has to tell and nobody has taken yet, on disk: figures and files, in order.

Owns the folder's form: a message appears whole, under a number that grows, and goes when it was
delivered; so nothing is lost with the process that wrote it. Refuses to know who is told.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_ASIDE, _FIGURES, _FILES, _REFUSED = ".writing-", ".figures", ".files", ".refused"


class Figures(NamedTuple):
    """A message with figures of one step."""

    path: Path
    step: int
    milliseconds: int
    """When they were told, since 1970."""
    values: dict[str, float]


class Outbox:
    """The messages of one run in `folder`, which one process at a time writes to.

    Messages that an earlier process left, also refused ones, are there again.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{_ASIDE}*"):
            _remove(left)
        for path in folder.glob(f"*{_REFUSED}"):
            path.rename(path.with_suffix(""))
        numbers = [int(path.name.split(".")[0]) for path in folder.iterdir()]
        self._last = max(numbers, default=0)

    def put_figures(self, values: Mapping[str, float], *, step: int, milliseconds: int) -> None:
        """Keep figures of one step. Raises OSError where the disk is full."""
        final, aside = self._next(_FIGURES)
        aside.write_text(json.dumps([step, milliseconds, dict(values)]))
        aside.rename(final)

    def put_files(self, path: Path, artifact_dir: str) -> None:
        """Keep a copy of a file, or of a folder's content, under `artifact_dir`."""
        final, aside = self._next(_FILES)
        target = aside / artifact_dir
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            target.mkdir(parents=True)
            shutil.copy2(path, target)
        aside.rename(final)

    def figures(self, count: int) -> list[Figures]:
        """The oldest messages with figures, at most `count`."""
        found = []
        for path in self._waiting(_FIGURES)[:count]:
            try:
                found.append(Figures(path, *json.loads(path.read_text())))
            except (ValueError, TypeError):  # a machine that went down leaves files without content
                print(f"{path} holds no figures, as after a crash of the machine: left out")
                _remove(path)
        return found

    def files(self) -> list[Path]:
        """Folders whose content is to be stored, the oldest first."""
        return self._waiting(_FILES)

    def waiting(self) -> int:
        """How many messages there are, refused ones not counted."""
        return len(self._waiting(_FIGURES)) + len(self._waiting(_FILES))

    def done(self, path: Path) -> None:
        """Forget a message that was delivered."""
        _remove(path)

    def refuse(self, path: Path) -> None:
        """Set a message aside that would be refused again, until the next process takes over."""
        path.rename(path.with_name(path.name + _REFUSED))

    def close(self) -> None:
        """Remove the folder, and the one around it, where nothing is left in them."""
        with suppress(OSError):
            self.folder.rmdir()
            self.folder.parent.rmdir()

    def _next(self, kind: str) -> tuple[Path, Path]:
        self._last += 1
        name = f"{self._last:09d}{kind}"
        return self.folder / name, self.folder / f"{_ASIDE}{name}"

    def _waiting(self, kind: str) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"*{kind}") if path.name[0] != ".")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
