"""The answer for one video, as every way of asking gives it.

Owns the fields. It knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """The answer for one video; `reason` and `action` are set instead where there is none.

    What the model does not tell is None: label, probability and probabilities; units; valence and
    arousal.
    """

    video: str
    """Its path, or "bytes"."""
    label: str | None = None
    """The likeliest class."""
    probability: float | None = None
    """Of that class."""
    probabilities: dict[str, float] | None = None
    units: dict[str, float] | None = None
    """Probability of each action unit."""
    valence: float | None = None
    """-1 to 1."""
    arousal: float | None = None
    """-1 to 1."""
    times: tuple[float, ...] = ()
    """Seconds into the video of every frame that was looked at, ascending; the pair not counted."""
    importance: tuple[float, ...] = ()
    """Share of each of these frames; sums to 1."""
    onset: float | None = None
    """Seconds into the video, of a network that looks at the pair of onset and apex."""
    apex: float | None = None
    """Seconds into the video, of such a network."""
    apex_source: str | None = None
    """Where they come from: given with the question, or spotted (`shards/spotting.py`)."""
    box: tuple[float, ...] | None = None
    """Face crop in pixels of the upright video: left, top, width, height."""
    reason: str | None = None
    """Why the video cannot be used."""
    action: str | None = None
    """What its owner can do about it."""
    note: str | None = None
    """What of the video the answer is not about: damage, other people, other shots."""
    picture: bytes | None = None
    """PNG: the frames with their importance, or onset and apex, if it was asked for."""
