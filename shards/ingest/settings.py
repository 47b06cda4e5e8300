"""What ingest may be asked for, and how it says no.

Owns the settings that decide what a clip looks like and what a video may cost. Knows no decoder and
no detector, so that a command line can print its help without loading either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DetectorName = Literal["haar", "yunet", "none"]
Crop = Literal["track", "onset"]
DerivedName = Literal["flow", "strain", "keyframes"]
MARKS = ("onset", "apex", "offset")
Cuts = Literal["split", "keep"]


class Rejected(ValueError):
    """A video that cannot be used: `reason` says why, `action` what its owner can do about it."""

    def __init__(self, reason: str, action: str) -> None:
        super().__init__(f"{reason}: {action}")
        self.reason = reason
        self.action = action

    def __reduce__(self) -> tuple[type[Rejected], tuple[str, str]]:
        return Rejected, (self.reason, self.action)


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """How a video becomes clips."""

    size: int = 224
    """Pixels a side of the stored square picture; even."""
    detector: DetectorName = "haar"
    """Name in `detect.DETECTORS`, or "none" for data that is already cropped (centre square)."""
    detector_model: str = ""
    """File of the detector's model, for detectors that need one."""
    detector_sha256: str = ""
    """Of that file; empty accepts the public files (`models.KNOWN`)."""
    crop: Crop = "track"
    """What decides a clip's one crop: the face's whole way, or its place in the onset frame (the
    first one where no onset is annotated), as is usual for micro-expressions."""
    cuts: Cuts = "split"
    """Whether a clip ends where a new shot begins. Videos with annotated frames, and annotated ones
    that are already cropped, are never split."""
    margin: float = 0.25
    """Added around the face on each side, as a share of the face's width."""
    min_face: int = 24
    """Smallest face kept, in pixels of the source."""
    min_found: float = 0.2
    """Smallest share of the looked-at frames of a clip in which the face must have been found."""
    min_frames: int = 16
    """Shortest clip kept, in frames."""
    clip_seconds: float = 10.0
    """Videos of which nothing is annotated are cut into segments of this length."""
    max_seconds: float = 60.0
    """Longest clip that stays whole because it is annotated (or handed to `extract_face`)."""
    max_side: int = 1920
    """Decoded pictures are scaled down to this longer side before anything else looks at them."""
    timeout: float = 600.0
    """Seconds a video may take, decoding, detection and encoding together."""
    memory_limit_gib: float = 2.0
    """Memory a video's process may take."""
    crf: int = 18
    """x264's constant quality of the stored clip; lower is better and larger."""
    gop: int = 12
    """Distance of key frames in the stored clip: short, since training reads at random."""
    derived: tuple[DerivedName, ...] = ()
    """What is stored beside a clip with annotated frames; see `derived`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived", tuple(dict.fromkeys(self.derived)))  # JSON has lists
        if wrong := set(self.derived) - set(get_args(DerivedName)):
            known = ", ".join(get_args(DerivedName))
            raise ValueError(f"derived has {', '.join(sorted(wrong))}; take any of {known}")
        if self.detector not in get_args(DetectorName):
            known = ", ".join(get_args(DetectorName))
            raise ValueError(f"detector {self.detector!r} is unknown; take one of {known}")
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop {self.crop!r} is unknown; take {' or '.join(get_args(Crop))}")
        if self.cuts not in get_args(Cuts):
            raise ValueError(f"cuts is {self.cuts!r}; take {' or '.join(get_args(Cuts))}")
        if self.size < 16 or self.size % 2:
            raise ValueError(f"size is {self.size}; take an even number of pixels, at least 16")
        for name in ("clip_seconds", "max_seconds", "timeout", "memory_limit_gib"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name, least in (("min_frames", 1), ("gop", 1), ("max_side", 64), ("min_face", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; take at least {least}")
        if not 0 <= self.margin <= 4:
            raise ValueError(f"margin is {self.margin}; take a share of the face width, 0 to 4")
        if not 0 <= self.min_found <= 1:
            raise ValueError(f"min_found is {self.min_found}; it is a share, 0 to 1")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}; x264 knows 0 (lossless) to 51")
