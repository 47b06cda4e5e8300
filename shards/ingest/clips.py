"""From one video to its clips: what is kept of it, and the cropped pictures.

The video is decoded twice from its start: the first pass looks (`survey`), the second cuts. So
memory stays that of one picture whatever the length, crops come from full resolution, and a clip's
box can depend on all of its frames; decoding is cheap beside detection and encoding. Runs inside
the disposable process. Knows no shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from shards.ingest import faces, timing
from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.survey import Source, Survey
from shards.wording import count

EDGE_SECONDS = 0.75
"""A face first or last seen this close to a segment's end is taken to be there up to the end."""


@dataclass(frozen=True)
class Plan:
    """One clip to be cut."""

    cut: timing.Cut
    box: tuple[int, int, int]
    found: float
    people: int
    start: float
    rate: Fraction
    turn: int
    damaged: str | None

    @property
    def fps(self) -> float:
        return float(self.rate)


@dataclass(frozen=True)
class Skipped:
    """A segment that gives no clip, in seconds of the video."""

    start: float
    stop: float
    reason: str
    action: str


def plan(seen: Survey, settings: IngestSettings) -> tuple[list[Plan], list[Skipped]]:
    """The clips of a long video: the segments in which a face is seen; and the segments without.

    Raises Rejected where nothing usable is left.
    """
    cuts = [
        cut
        for span in _sound_spans(seen)
        for cut in timing.cut_evenly(
            seen.seconds,
            span,
            seen.rate,
            clip_seconds=settings.clip_seconds,
            min_frames=settings.min_frames,
        )
    ]
    if not cuts:
        raise too_short(max(map(len, _sound_spans(seen))), settings)
    followed = [(cut, _followed(seen, settings, cut, trim=True)) for cut in cuts]
    plans = [p for _, p in followed if p]
    if not plans:
        raise no_face(seen, settings)
    return plans, [_skipped(seen, cut) for cut, p in followed if p is None]


def plan_whole(seen: Survey, settings: IngestSettings) -> tuple[Plan, list[Skipped]]:
    """The video as one clip: its longest sound shot with a face; and the shots beside it.

    Raises Rejected where none can be used, for the reason of the longest.
    """
    first: Rejected | None = None
    for span in sorted(_sound_spans(seen), key=len, reverse=True):
        try:
            found = _plan_whole(seen, settings, span)
        except Rejected as no:
            first = first or no
            continue
        return found, [_other_shot(seen, s) for s in _shots_beside(seen, span)]
    assert first
    raise first


def _shots_beside(seen: Survey, span: timing.Span) -> list[timing.Span]:
    """The other shots of the sound stretch that `span` is part of."""
    run = seen.runs[span.start]
    return [s for s in _sound_spans(seen) if s != span and seen.runs[s.start] == run]


def _other_shot(seen: Survey, span: timing.Span) -> Skipped:
    start, last = seen.seconds[span.start], seen.seconds[span.stop - 1]
    reason = "another shot than the clip; a labelled clip is one shot"
    return Skipped(float(start), float(last), reason, "nothing; or --cuts keep")


def _sound_spans(seen: Survey) -> list[timing.Span]:
    """Stretches without damage and without a cut."""
    spans = timing.sound_spans(seen.runs)
    if not spans:
        raise Rejected("every frame is damaged", "copy it again from its source")
    return [part for span in spans for part in timing.split_at(span, seen.shots)]


def _skipped(seen: Survey, cut: timing.Cut) -> Skipped:
    start, last = seen.seconds[cut.span.start], seen.seconds[cut.span.stop - 1]
    reason = "no face long enough in this part of the video"
    return Skipped(float(start), float(last), reason, "nothing, if there is no face")


def _plan_whole(seen: Survey, settings: IngestSettings, span: timing.Span) -> Plan:
    cut = timing.cut_whole(seen.seconds, span, seen.rate)
    lasts = len(cut.frames) / float(seen.rate)
    if len(cut.frames) < settings.min_frames:
        raise too_short(len(cut.frames), settings)
    if lasts > settings.max_seconds:
        raise Rejected(
            f"lasts {lasts:.0f} s, a clip that stays whole may last {settings.max_seconds:g} s",
            "cut it, or raise --max-seconds",
        )
    found = _followed(seen, settings, cut, trim=False)
    if found is None:
        raise no_face(seen, settings)
    return found


def too_short(frames: int, settings: IngestSettings) -> Rejected:
    return Rejected(
        f"too short ({count(frames, 'sound frame')}, at least {settings.min_frames} are needed)",
        "leave it out, lower --min-frames, or take --cuts keep if it was cut where no cut is",
    )


def no_face(seen: Survey, settings: IngestSettings) -> Rejected:
    hits = sum(len(s.boxes) > 0 for s in seen.sightings)
    return Rejected(
        f"no face (one seen in {hits} of {len(seen.sightings)} frames looked at)",
        "leave it out; take --detector none if it is already cropped to a face",
    )


def _followed(
    seen: Survey, settings: IngestSettings, cut: timing.Cut, *, trim: bool
) -> Plan | None:
    """The cut with the crop that follows its main face; None where there is no such face."""
    if settings.detector == "none":
        box = faces.centre_box(seen.height, seen.width)
        return _planned(seen, cut, box, found=1.0, people=1)
    if seen.onset is not None:
        return _from_onset(seen, settings, cut)
    looks = _within(seen, cut.span)
    tracks = faces.tracks(looks)
    if not tracks:
        return None
    main = tracks[0]
    if trim:
        cut = _trimmed(seen, cut, main)
        looks = _within(seen, cut.span)
    share = len(main.frames) / max(1, len(looks))
    lasting = len(main.frames) >= min(3, len(looks))
    large = float(np.median([b[2] for b in main.boxes])) >= settings.min_face
    if (
        share < settings.min_found
        or not lasting
        or not large
        or len(cut.frames) < settings.min_frames
    ):
        return None
    people = sum(len(t.frames) >= max(2, 0.5 * len(looks)) for t in tracks)
    box = faces.crop_box(main.boxes, margin=settings.margin)
    return _planned(seen, cut, box, found=share, people=max(1, people))


def _from_onset(seen: Survey, settings: IngestSettings, cut: timing.Cut) -> Plan | None:
    """The cut with the crop that the largest face of the onset frame decides.

    Nothing later moves it, the expression least of all. Where no face is seen in the onset frame,
    the first after it with one decides.
    """
    last = seen.sightings[-1:]
    if not last or not len(last[0].boxes):
        return None
    boxes = last[0].boxes
    face = max(boxes, key=lambda box: float(box[2] * box[4]))
    if face[2] < settings.min_face or len(cut.frames) < settings.min_frames:
        return None
    box = faces.crop_box([face], margin=settings.margin)
    return _planned(seen, cut, box, found=1 / len(seen.sightings), people=len(boxes))


def _within(seen: Survey, span: timing.Span) -> list[faces.Sighting]:
    return [s for s in seen.sightings if span.start <= s.frame < span.stop]


def _trimmed(seen: Survey, cut: timing.Cut, track: faces.Track) -> timing.Cut:
    """The part of the cut in which the track lives."""
    first, last = cut.span.start, cut.span.stop - 1
    if seen.seconds[track.frames[0]] - seen.seconds[first] > EDGE_SECONDS:
        first = track.frames[0]
    if seen.seconds[last] - seen.seconds[track.frames[-1]] > EDGE_SECONDS:
        last = track.frames[-1]
    kept = cut.frames[(cut.frames >= first) & (cut.frames <= last)]
    return timing.Cut(kept, timing.Span(first, last + 1))


def _planned(
    seen: Survey, cut: timing.Cut, box: tuple[float, float, float], *, found: float, people: int
) -> Plan:
    pixels = faces.whole_pixels(box, height=seen.height, width=seen.width)
    start = float(seen.seconds[cut.span.start])
    return Plan(cut, pixels, found, people, start, seen.rate, seen.turn, damage(seen, cut.span))


def damage(seen: Survey, span: timing.Span) -> str | None:
    """What of the video was lost to damage, in words; None for a sound video."""
    if seen.lost:
        return seen.lost
    sound = int((seen.runs >= 0).sum())
    if sound == seen.expected and len(timing.sound_spans(seen.runs)) == 1:
        return None
    return (
        f"kept frames {span.start}-{span.stop - 1} of {seen.expected}; "
        f"{seen.expected - sound} damaged or missing in the source"
    )


def pictures(
    source: Source, plans: list[Plan], settings: IngestSettings
) -> Iterator[tuple[int, np.ndarray]]:
    """The second pass: (number of the plan, uint8 [size, size, 3]) of every frame of every clip."""
    changed = Rejected("decodes differently each time", "convert it to H.264 with ffmpeg")
    number, given = 0, 0
    with source.open(settings) as video:
        for picture in video.pictures():
            if not picture.number:
                picture.rgb()  # as in the first pass: it decides the size of them all
            # A picture that is shown twice may end one clip and begin the next.
            while shown := int((plans[number].cut.frames == picture.number).sum()):
                if picture.run is None:
                    raise changed
                current = plans[number]
                upright = np.rot90(picture.rgb(), current.turn)
                cropped = faces.crop(upright, current.box, settings.size)
                for _ in range(shown):
                    yield number, cropped
                given += shown
                if given < len(current.cut.frames):
                    break
                number, given = number + 1, 0
                if number == len(plans):
                    return
    raise changed
