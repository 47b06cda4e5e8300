"""Corrections of known annotation faults: versioned, each with its source, never in silence.

Owns the form of a correction and when it may be applied. A correction names its clip, or, where its
source does so, the row of the coding file. Rows shift between releases, therefore corrections by
row are applied all together or not at all: only if each of their rows is at fault as it stands, and
sound once corrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shards.ingest.inputs import ApexSource


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One correction."""

    patch_id: str
    """Data set, version of its corrections, name: "samm-1/apex-028_4_1". Goes into the record."""
    clip: str | None = None
    row: int | None = None
    """Of the coding file, counted from 0 below its header."""
    change: Mapping[str, int | None]
    """Marks by name; None: unknown, as if it had not been annotated. Empty: leave the clip out."""
    apex_source: ApexSource = "annotated"
    why: str
    source: str
