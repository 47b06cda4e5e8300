"""Numbers and foreign text as people read them: counts, bytes, durations, names from files."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


def few(names: Sequence[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def count(n: int, what: str, plural: str = "s") -> str:
    """1 shard, 1,000 shards."""
    return f"{n:,} {what}" + ("" if n == 1 else plural)


def commonest(reasons: Iterable[str], most: int) -> list[tuple[str, int]]:
    """Reasons and how often each occurs. Those that differ in what stands in brackets behind them,
    such as lines and numbers, are one, and then told without."""
    alike: dict[str, Counter[str]] = defaultdict(Counter)
    for reason in reasons:
        alike[re.sub(r"( \([^()]*\))+$", "", reason)][reason] += 1
    told = {
        gist if len(full) > 1 else next(iter(full)): full.total() for gist, full in alike.items()
    }
    return Counter(told).most_common(most)


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
