"""One name in two spellings: sub01 and sub1 would be two people, on two sides of a fold.

Owns what counts as the same name, and the messages. Refuses to know protocols and files.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from finetune.study.cohort import Clip, Group
from finetune.study.folds import Refused
from shards.wording import count, few

NOBODY = ("nan", "none", "null", "n/a", "#n/a", "unknown", "unk")
"""What tables write where a name is not known; NA may be somebody's initials."""


def check_spelling(clips: Sequence[Clip], apart: Group) -> None:
    """Raises Refused where data sets, subjects, or sources that folds go by are spelled in two
    ways, or a name says that nobody is known.

    Such names are not put together here: only who knows the data can tell two people from one.
    """
    _one_spelling("data set", ((clip.dataset, clip) for clip in clips if clip.dataset))
    kinds: tuple[Group, ...] = ("subject", "source") if apart == "source" else ("subject",)
    for by in kinds:
        known = [(group, clip) for clip in clips if (group := clip.group(by))]
        if nobody := sorted({name for (_, name), _ in known if _nobody(name)}):
            bare = [clip.name for (_, name), clip in known if name in nobody]
            raise Refused(
                f"{count(len(bare), 'clip')} have a {by}_id that names no {by} "
                f"({few([repr(name) for name in nobody])}): {few(bare)}. Ingest with an empty cell "
                "where it is not known: all of these would count as one"
            )
        for dataset in sorted({dataset for (dataset, _), _ in known}):
            mine = ((name, clip) for (of, name), clip in known if of == dataset)
            _one_spelling(f"{by}_id", mine)


def parts(name: str) -> tuple[str, ...]:
    """Runs of letters or digits without what spellings differ in: case, accents' encoding, leading
    zeros, what stands between, and the ".0" of a number that a table made a fraction."""
    text = unicodedata.normalize("NFKC", name).casefold().strip()
    text = re.sub(r"^([0-9]+)\.0+$", r"\1", text)
    found = re.findall(r"[^\W\d_]+|\d+", text)
    return tuple(part.lstrip("0") or "0" for part in found)


def _nobody(name: str) -> bool:
    return not parts(name) or name.strip().casefold() in NOBODY


def _one_spelling(what: str, named: Iterable[tuple[str, Clip]]) -> None:
    """Raises Refused where two names have the same parts."""
    spellings: dict[tuple[str, ...], dict[str, Clip]] = defaultdict(dict)
    for name, clip in named:
        spellings[parts(name)].setdefault(name, clip)
    twice = [found for found in spellings.values() if len(found) > 1]
    if not twice:
        return
    shown = [f"{name!r} ({clip.name})" for name, clip in twice[0].items()]
    raise Refused(
        f"{count(len(twice), what)} spelled in two ways: {few(shown)}. If it is one, ingest "
        "again with one spelling; if these are two, give them names that differ in more than "
        "case, spaces or leading zeros"
    )
