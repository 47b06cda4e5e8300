"""Numbers and foreign text as people read them: counts, bytes, durations, names from files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def count(n: int, what: str, plural: str = "s") -> str:
    """1 shard, 1,000 shards."""
    return f"{n:,} {what}" + ("" if n == 1 else plural)


def size(n: float) -> str:
    """Bytes for people, decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.1f} TB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    for unit, lasts in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * lasts:
            return f"{seconds / lasts:.1f} {unit}"
    return f"{seconds:.2g} s"


def visible(text: str) -> str:
    """Foreign text with what controls a terminal, hides or turns text around written out."""
    return "".join(
        f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c
        for c in text
    )
