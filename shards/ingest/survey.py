"""The first pass over a video: its times, its damage, and the faces seen in it.

Runs inside the disposable process. Knows neither clips nor shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from shards.ingest import faces, timing
from shards.ingest.cuts import Shots
from shards.ingest.detect import SURE, Detector, Follower, detector, turn_of
from shards.ingest.folder import PictureFolder, open_source
from shards.ingest.numbering import FrameFolder
from shards.ingest.read import Picture, Video
from shards.ingest.settings import IngestSettings, Rejected

LOOKS_PER_SECOND = 6
SLOWEST_LOOK = 8
"""At most every eighth frame is skipped to: a clip of 200 frames a second may last 0.2 s."""
DOUBTFUL = 8
"""Looks, at most, from which it is judged whether the video lies on its side."""
ONSET_TRIES = 5
"""Frames from the onset on in which a face is looked for where the onset decides the crop."""


@dataclass(frozen=True)
class Source:
    """A video file, or with `frames` a folder of pictures."""

    path: Path
    frames: FrameFolder | None = None

    def open(self, settings: IngestSettings) -> Video | PictureFolder:
        return open_source(self.path, self.frames, max_side=settings.max_side)


@dataclass(frozen=True)
class Survey:
    """What the first pass learned about a video of n frames."""

    rate: Fraction
    seconds: np.ndarray
    """float64 [n], increasing from 0."""
    runs: np.ndarray
    """int64 [n]: frames of one run follow each other soundly; -1 marks damage."""
    shots: np.ndarray
    """int64 [n]: frames of one shot were recorded in one go."""
    at: np.ndarray
    """int64 [n], increasing: what annotations call each frame."""
    sightings: list[faces.Sighting]
    height: int
    width: int
    turn: int
    """Quarter turns, counter-clockwise, by which the file's own orientation is wrong."""
    expected: int
    """Frames that the file declares, or were decoded if more."""
    lost: str | None
    """What of a folder of pictures is missing, in words."""
    onset: int | None
    """The annotated frame whose face alone decides the crop; None: the whole track does."""


class _Onlooker:
    """Which pictures are looked at, and what is seen in them."""

    def __init__(self, detect: Detector | None, *, every: int, onset: int | None) -> None:
        self._detect, self._every, self._onset = detect, every, onset
        self._follow = Follower(detect) if detect else None
        self._tries = ONSET_TRIES

    def wants(self, picture: Picture) -> bool:
        if self._detect is None or picture.run is None:
            return False
        if self._onset is None:
            return picture.number % self._every == 0
        return picture.at >= self._onset and self._tries > 0

    def look(self, rgb: np.ndarray) -> np.ndarray:
        assert self._detect and self._follow
        if self._onset is None:
            return self._follow(rgb)
        boxes = self._detect(rgb)
        self._tries = 0 if len(boxes) else self._tries - 1
        return boxes


def survey(
    source: Source, settings: IngestSettings, *, onset: int | None = None, split: bool = True
) -> Survey:
    """The first pass. Raises Rejected where nothing can be decoded. With `split`, cuts are found.

    With `onset`, a frame as annotations count it, faces are looked for from there on until one is
    found: it is what decides the crop.
    """
    detect = detector(settings.detector, settings.detector_model)
    split = split and settings.cuts == "split" and onset is None
    seen, spread = _look_through(source, settings, detect, turn=0, onset=onset, split=split)
    doubtful = [rgb for rgb in spread if rgb is not None]
    if not detect or onset is not None or len(doubtful) <= 0.6 * len(spread):
        return seen
    if not (turn := turn_of(doubtful, detect)):
        return seen
    turned, _ = _look_through(source, settings, detect, turn=turn, onset=onset, split=split)
    return max(seen, turned, key=_surety)


def _surety(seen: Survey) -> float:
    """The looks with a face, each as sure as its surest one."""
    return sum(float(s.boxes[:, 4].max(initial=0)) for s in seen.sightings)


class _Spread:
    """A few looks from all over a video whose length nobody knows; None where a face is sure."""

    def __init__(self) -> None:
        self.kept: list[np.ndarray | None] = []
        self._every, self._count = 1, 0

    def add(self, rgb: np.ndarray, boxes: np.ndarray) -> None:
        if self._count % self._every == 0:
            self.kept.append(None if (boxes[:, 4] >= SURE).any() else rgb)
            if len(self.kept) > DOUBTFUL:
                self.kept, self._every = self.kept[::2], 2 * self._every
        self._count += 1


def frames_at(
    source: Source, settings: IngestSettings, moments: Mapping[str, float]
) -> dict[str, int]:
    """The frames shown at moments in seconds, by name, as annotations count them.

    Raises Rejected where one lies outside the video.
    """
    if not moments:
        return {}
    seen, _ = _look_through(source, settings, None, turn=0, onset=None, split=False)
    last = float(seen.seconds[-1])
    for name, moment in moments.items():
        if not 0 <= moment < last + float(1 / seen.rate):
            raise Rejected(
                f"{name} is at {moment:g} s, the video has frames from 0 to {last:.2f} s",
                "give moments inside it, or none to have them spotted",
            )
    nearest = {name: np.abs(seen.seconds - at).argmin() for name, at in moments.items()}
    return {name: int(seen.at[number]) for name, number in nearest.items()}


def _look_through(
    source: Source,
    settings: IngestSettings,
    detect: Detector | None,
    *,
    turn: int,
    onset: int | None,
    split: bool,
) -> tuple[Survey, list[np.ndarray | None]]:
    """What is seen with the pictures turned, and pictures without a sure face (see `_Spread`)."""
    met: list[tuple[float | None, int, int]] = []
    sightings: list[faces.Sighting] = []
    spread = _Spread()
    height = width = 0
    shots = Shots() if split else None
    with source.open(settings) as video:
        onlooker = _Onlooker(detect, every=_look_every(video), onset=onset)
        for picture in video.pictures():
            met.append((picture.time, picture.at, -1 if picture.run is None else picture.run))
            if shots:
                shots.add(None if picture.run is None else picture.frame)
            wanted = onlooker.wants(picture)
            if picture.number and not wanted:
                continue
            rgb = np.ascontiguousarray(np.rot90(picture.rgb(), turn))
            height, width = rgb.shape[:2]
            if wanted:
                boxes = onlooker.look(rgb)
                sightings.append(faces.Sighting(picture.number, boxes))
                spread.add(rgb, boxes)
        numbers = shots.numbers() if shots else np.zeros(len(met), np.int64)
        seen = _summed(video, met, numbers, sightings, (height, width, turn), onset)
        return seen, spread.kept


def _summed(
    video: Video | PictureFolder,
    met: Sequence[tuple[float | None, int, int]],
    shots: np.ndarray,
    sightings: list[faces.Sighting],
    shape: tuple[int, int, int],
    onset: int | None,
) -> Survey:
    """Of an open video; `met`: time, number in annotations and run of every frame."""
    events = video.damage_events
    if not met:
        raise Rejected(
            "no frame can be decoded",
            "copy it again from its source" if events else "convert it to H.264 with ffmpeg",
        )
    times, at, runs = ([m[i] for m in met] for i in range(3))
    rate = timing.frame_rate(times, video.declared_rates)
    seconds, _ = timing.continuous(times, rate)
    return Survey(
        rate,
        seconds,
        np.array(runs),
        shots,
        np.array(at),
        sightings,
        *shape,
        expected=max(video.declared_frames if events else 0, len(met)),
        lost=video.lost,
        onset=onset,
    )


def _look_every(video: Video | PictureFolder) -> int:
    rate = timing.frame_rate([], video.declared_rates)
    return min(max(1, round(rate / LOOKS_PER_SECOND)), SLOWEST_LOOK)
