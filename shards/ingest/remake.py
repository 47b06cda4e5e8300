"""Shards written anew, and the folder around them completed from the old one.

Owns what a new shard holds: sound samples as they were, bytes copied; others from their videos; and
what becomes of those that their videos no longer give. Knows neither ledgers nor decoding.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from shards.index import Shard, index_name, index_shard
from shards.ingest.inputs import InputError, Item, Refused
from shards.ingest.pack import clips_of, problems_of, record_of, split_of, write_rejected
from shards.ingest.pool import Outcome
from shards.ingest.publish import Aside
from shards.ingest.request import versions
from shards.ingest.run import REJECTED, IngestError, Progress
from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.torn import Torn, Videos, rows_of
from shards.ingest.write import add_sample, copy_sample, new_tar, on_disk, record_bytes, room_for
from shards.manifest import MANIFEST, Manifest, write_manifest
from shards.schema import Record

OF_THE_VIDEO = ("fps", "num_frames", "onset", "apex", "offset", "apex_source", "track", "damaged")
"""Fields of a record that another video under the same name may change."""
Taken = Mapping[int, tuple[Outcome, Path]]
"""By the number of a video: what became of it, and where its files are."""


class Remake:
    """Writes shards anew into a folder aside, in which the journal notes the finished ones."""

    def __init__(
        self,
        out: Path,
        manifest: Manifest,
        items: Sequence[Item],
        videos: Videos,
        settings: IngestSettings,
        aside: Aside,
    ) -> None:
        self._out, self._manifest, self._settings = out, manifest, settings
        self._items, self._videos = items, videos
        self._aside, self._journal = aside, aside.journal
        self._known = set(_rejections(out / REJECTED))
        self._counted = {row.path for row in (*self._known, *self.refused())}

    @property
    def finished(self) -> list[Shard]:
        return self._journal.finished

    @property
    def clips(self) -> int:
        """Made anew so far."""
        return self._journal.counts.clips

    def refused(self) -> list[Refused]:
        """Clips that could not be made anew."""
        return [row for _, row in self._journal.rows()]

    def write(
        self,
        todo: Sequence[Torn],
        made: Generator[tuple[int, Outcome, Path]],
        progress: Progress | None,
    ) -> None:
        """The shards one after the other; `made` are their videos in this order."""
        total, done = sum(len(t.videos) for t in todo), 0
        say = progress or (lambda *_: None)
        say(done, total, self._journal.counts.refused)
        with closing(made):
            for t in todo:
                taken = {}
                for number in t.videos:
                    _, outcome, folder = next(made)
                    taken[number], done = (outcome, folder), done + 1
                    say(done, total, self._journal.counts.refused)
                self._shard(t, taken)
                for _, folder in taken.values():
                    shutil.rmtree(folder)

    def _shard(self, t: Torn, taken: Taken) -> None:
        old = self._manifest.shards[t.number]
        path = self._aside.shards / old.name
        with room_for(path.parent, old.bytes), new_tar(path) as tar:
            if t.gap is None:
                self._as_before(t, taken, tar)
            else:
                self._between(t, taken, tar)
        with room_for(path.parent, 1 << 20):
            on_disk(path)
            self._journal.commit(index_shard(path), (t.number, 0))

    def _as_before(self, t: Torn, taken: Taken, tar: tarfile.TarFile) -> None:
        """Every sample that the shard had: copied, made anew, or left out."""
        made = {key: (number, clip, stem) for number, key, clip, stem in self._clips(taken)}
        rows = rows_of(self._out, self._manifest, t.number, whole=t.whole) or []
        with _members(self._out / self._manifest.shards[t.number].name, t.whole) as (old, data):
            for row in rows:
                if row.key not in t.keys:
                    copy_sample(tar, row.key, old, data)
                elif row.key in made:
                    self._add(tar, row.key, *made[row.key], was=row.record)
                else:
                    place = self._videos.place(row.key)
                    outcome = taken[place[0]][0] if place else None
                    why = Refused(row.record.path, *_why(row.key, outcome))
                    self._note(why, row.record.split)

    def _between(self, t: Torn, taken: Taken, tar: tarfile.TarFile) -> None:
        """Of a shard of which nothing is left every clip between its neighbours."""
        assert t.gap
        for number, (outcome, _) in taken.items():
            if isinstance(outcome, Rejected):
                item = self._items[number]
                self._note(Refused(item.name, outcome.reason, outcome.action), split_of(item))
        for number, key, clip, stem in self._clips(taken):
            place = self._videos.place(key)
            if place and t.gap[0] < place < t.gap[1]:
                self._add(tar, key, number, clip, stem, was=None)

    def _clips(self, taken: Taken) -> Iterator[tuple[int, str, Mapping[str, Any], Path]]:
        for number, (outcome, folder) in taken.items():
            if not isinstance(outcome, Rejected):
                for key, clip, stem in clips_of(self._items[number], outcome, folder):
                    yield number, key, clip, stem

    def _add(
        self,
        tar: tarfile.TarFile,
        key: str,
        number: int,
        clip: Mapping[str, Any],
        stem: Path,
        *,
        was: Record | None,
    ) -> None:
        item = self._items[number]
        record = record_of(item, key, clip, self._settings)
        if problems := problems_of(record):
            why = Refused(item.name, "; ".join(problems), "correct the annotation")
            self._note(why, record.split)
            return
        _check_known(key, record, was, self._manifest.labels)
        add_sample(tar, key, stem, record_bytes(record))
        self._journal.counts.clips += 1

    def _note(self, row: Refused, split: str | None) -> None:
        """One that was rejected when the folder was made is no news; of two clips of one video
        the first counts."""
        if row in self._known:
            return
        self._journal.refuse("video", row)
        self._journal.counts.refused += 1
        if row.path not in self._counted:
            self._counted.add(row.path)
            self._journal.counts.reject(split)

    def complete(self, plan: Sequence[Torn]) -> Manifest:
        """All that is not written anew, from the old folder; the manifest last, which it returns.

        Raises IngestError where no sample would be left.
        """
        shards = list(self._manifest.shards)
        for t, entry in zip(plan, self.finished, strict=True):
            shards[t.number] = entry
        if not any(shard.samples for shard in shards):
            first = next((row.reason for row in self.refused()), "unknown")
            raise IngestError(f"no sample of {self._out} would be left, most often: {first}")
        old = {self._manifest.shards[t.number].name for t in plan}
        link_all(self._out, self._aside.shards, but={*old, *map(index_name, old), MANIFEST})
        shards = [shard for shard in shards if shard.samples]
        if refused := self.refused():
            path = self._aside.shards / REJECTED
            rows = {*_rejections(path), *refused}
            path.unlink(missing_ok=True)  # a link: the old folder's must stay
            write_rejected(path, list(rows))
        return write_manifest(
            self._aside.shards,
            shards,
            labels=self._manifest.labels,
            clip=self._manifest.clip,
            created_by=_merged(self._manifest.created_by, versions()),
            rejected=Counter(self._manifest.rejected) + Counter(self._journal.counts.rejected),
        )

    def sweep(self) -> None:
        """Removes the shards of which no sample is left from the folder that was published."""
        for shard in self.finished:
            if not shard.samples:
                for name in (shard.name, index_name(shard.name)):
                    (self._out / name).unlink()


@contextmanager
def _members(tar: Path, whole: bool) -> Iterator[tuple[dict[str, tarfile.TarInfo], IO[bytes]]]:
    """The members of an old shard by name, and its file; none of one that is not whole."""
    if not whole:
        yield {}, io.BytesIO()
        return
    with tar.open("rb") as data, tarfile.open(fileobj=data, mode="r:") as old:
        yield {member.name: member for member in old.getmembers()}, data


def _why(key: str, outcome: Outcome | None) -> tuple[str, str]:
    """Reason and action for a sample that is not there any more."""
    if outcome is None:
        return "could not be read in training, and its video is gone", "restore it and redo it"
    if isinstance(outcome, Rejected):
        return outcome.reason, outcome.action
    clips = len(outcome["clips"])
    return (
        f"the video changed: it gives {clips} clips now, and {key} is none of them",
        "ingest it into another folder",
    )


def _check_known(key: str, record: Record, was: Record | None, labels: Sequence[str]) -> None:
    """InputError where something else is known of a clip than when the folder was written."""
    differs = []
    if was is not None:
        before = asdict(replace(was, **{name: getattr(record, name) for name in OF_THE_VIDEO}))
        now = asdict(record)
        differs = [f"{n} was {v!r}, is {now[n]!r} now" for n, v in before.items() if now[n] != v]
    elif record.label is not None and record.label not in labels:
        differs = [f"label {record.label!r} is none of the folder's"]
    if differs:
        raise InputError(
            f"{key}: {'; '.join(differs)}; give the annotations and --holdout that the folder was "
            "written with, or ingest into a new folder"
        )


def link_all(old: Path, new: Path, *, but: set[str]) -> None:
    """The files of a folder in another one of the same disk, as links where it can do that."""
    for path in old.iterdir():
        if path.name in but:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, new / path.name)


def _link(old: str | Path, new: str | Path) -> None:
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:  # a file system without links
        with room_for(Path(new).parent, os.lstat(old).st_size):
            shutil.copy2(old, new, follow_symlinks=False)


def _rejections(path: Path) -> list[Refused]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Refused(*(row[n] or "" for n in ("path", "reason", "action")))
            for row in csv.DictReader(file)
        ]


def _merged(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Versions of all that wrote in a folder."""
    merged = dict(before)
    for name, version in now.items():
        known = merged.get(name, "").split(", ")
        merged[name] = ", ".join(
            filter(None, [*known, *([version] if version not in known else [])])
        )
    return merged
