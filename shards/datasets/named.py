"""What the sets share whose file names say everything: video files found by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from shards.ingest.inputs import shown, unlisted

VIDEOS = frozenset((".mp4", ".flv", ".avi", ".mkv", ".mov", ".webm", ".mpg"))


def videos(root: Path, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    """(path below the root, match of its stem) of every video file whose stem matches, by path."""
    stems = re.compile(pattern)
    for folder, folders, names in os.walk(root, onerror=unlisted):
        folders.sort()
        folders[:] = [f for f in folders if not f.startswith(".")]
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            match = stems.fullmatch(stem)
            if match and suffix.lower() in VIDEOS:
                yield shown((Path(folder) / name).relative_to(root).as_posix()), match
