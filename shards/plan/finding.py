"""What a plan is made of: findings, each with a verdict and a fix, and the demand they answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["ok", "warning", "cannot"]


@dataclass(frozen=True)
class Demand:
    """What the training will ask of the shards."""

    gpus: int = 64
    gpus_per_node: int = 8
    clips_per_second: float = 1000.0
    """Over all GPUs."""
    global_batch: int | None = None

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.gpus_per_node)


@dataclass(frozen=True)
class Finding:
    """A line of the plan."""

    part: Literal["shards", "workers", "speed"]
    about: str
    found: str
    verdict: Verdict = "ok"
    fix: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    """The same for programs."""


def refused(about: str, error: Exception) -> Finding:
    """A folder that cannot be used; its message ends with the fix."""
    what, _, fix = str(error).rpartition("; ")
    return Finding("shards", about, what or fix, "cannot", fix if what else "")
