"""The HTML of `python -m shards preview`: one file, no script, nothing loaded from elsewhere.

Owns the page's form. Every text in it comes from foreign files and goes through `_safe`; a content
security policy forbids what might slip through all the same. Refuses to read anything.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.schema import Record
from shards.wording import count, size, visible

LONGEST = 300
"""Characters of a text that are shown."""
REASONS = 12

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: #767676; --bad: #c2410c }
@media (prefers-color-scheme: dark) { :root { --dim: #a3a3a3; --bad: #fb923c } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 82rem; padding: 0 1rem }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin-top: 2rem }
.dim { color: var(--dim) } .bad { color: var(--bad) }
.clips { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(23rem, 1fr)) }
figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: .5rem }
.frames { display: flex; gap: .3rem } .frames div { flex: 1; text-align: center; font-size: .75rem }
img { width: 100%; aspect-ratio: 1; border-radius: .25rem; display: block; background: var(--soft) }
figcaption { margin-top: .4rem; font-size: .85rem; overflow-wrap: anywhere }
table { border-collapse: collapse } .wide { width: 100%; table-layout: fixed }
td, th { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.tables { display: flex; flex-wrap: wrap; gap: 2.5rem }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Shown:
    """A clip on the page."""

    shard: str
    key: str
    record: Record | None
    thumbnails: list[tuple[str, str]]
    """What the frame is, and the picture's data address."""
    trouble: str
    """Why there is no picture, or ""."""


@dataclass(frozen=True)
class Rejections:
    """What ingest left out."""

    rows: list[tuple[str, str, str]]
    """Path, reason, action; the first of them."""
    reasons: Counter[str]
    """How many there are of each kind."""
    note: str
    """What could not be read, or ""."""


@dataclass(frozen=True)
class Page:
    """Everything that the page says."""

    folder: str
    samples: int
    shards: int
    bytes: int
    clip: Mapping[str, Any]
    splits: Mapping[str, int]
    labels: Sequence[str]
    by_label: Counter[tuple[str | None, str | None]]
    counted: int
    unreadable: list[str]
    odd: list[Shown]
    shown: list[Shown]
    rejections: Rejections


def page(what: Page) -> str:
    """The whole file."""
    stored = ", ".join(f"{name} {value}" for name, value in what.clip.items())
    more = len(what.unreadable) - REASONS
    parts = [
        f"<h1>{_safe(what.folder)}</h1>",
        f"<p>{count(what.samples, 'clip')} in {count(what.shards, 'shard')}, "
        f"{size(what.bytes)}; {what.rejections.reasons.total():,} rejected<br>"
        f'<span class="dim">stored as {_safe(stored)}</span></p>',
        *(f'<p class="bad">{_safe(trouble)}</p>' for trouble in what.unreadable[:REASONS]),
        f'<p class="bad">{more:,} more shards like these</p>' if more > 0 else "",
        '<div class="tables">',
        _labels(what),
        _reasons(what.rejections),
        "</div>",
        _clips("Look at these first", what.odd),
        _clips(f"{len(what.shown):,} of {count(what.samples, 'clip')}", what.shown),
        _rejected(what.rejections),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(what.folder)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _labels(what: Page) -> str:
    """Clips by label and split."""
    splits: list[str | None] = [*what.splits]
    if any(split is None for _, split in what.by_label):
        splits.append(None)
    labels: list[str | None] = [*what.labels]
    if any(label is None for label, _ in what.by_label):
        labels.append(None)
    rows = []
    for label in labels:
        numbers = [what.by_label[label, split] for split in splits]
        rows.append([label or "no label", *(f"{n:,}" for n in numbers), f"{sum(numbers):,}"])
    head = ["label", *(split or "no split" for split in splits), "all"]
    note = ""
    if what.counted < what.samples:
        note = f'<p class="dim">counted in {what.counted:,} of {what.samples:,} clips</p>'
    return f"<div><h2>Labels and splits</h2>{note}{_table(head, rows, numbers=True)}</div>"


def _reasons(found: Rejections) -> str:
    rows = [[reason, f"{n:,}"] for reason, n in found.reasons.most_common(REASONS)]
    if (more := len(found.reasons) - REASONS) > 0:
        rows.append([f"{more:,} more reasons", ""])
    body = _table(["reason", "rejected"], rows, numbers=True) if rows else "<p>nothing</p>"
    note = f'<p class="bad">{_safe(found.note)}</p>' if found.note else ""
    return f"<div><h2>Rejected</h2>{note}{body}</div>"


def _rejected(found: Rejections) -> str:
    if not found.rows:
        return ""
    head = f"<h2>{len(found.rows):,} of {found.reasons.total():,} rejected files</h2>"
    return head + _table(["file", "reason", "what to do"], found.rows, wide=True)


def _clips(title: str, clips: Sequence[Shown]) -> str:
    if not clips:
        return ""
    figures = "\n".join(map(_figure, clips))
    return f'<h2>{_safe(title)}</h2>\n<div class="clips">\n{figures}\n</div>'


def _figure(clip: Shown) -> str:
    frames = "".join(
        f'<div><img src="{address}" alt="{_safe(name)}">{_safe(name)}</div>'
        for name, address in clip.thumbnails
    )
    lines = [f"<b>{_safe(clip.key)}</b> <span class='dim'>{_safe(clip.shard)}</span>"]
    if clip.record is not None:
        lines += [_safe(line) for line in _facts(clip.record)]
        if clip.record.damaged:
            lines.append(f'<span class="bad">damaged: {_safe(clip.record.damaged)}</span>')
    if clip.trouble:
        lines.append(f'<span class="bad">{_safe(clip.trouble)}</span>')
    caption = "<br>".join(lines)
    return f'<figure><div class="frames">{frames}</div><figcaption>{caption}</figcaption></figure>'


def _facts(record: Record) -> Iterable[str]:
    who = f"subject {record.subject_id}" if record.subject_id is not None else "subject not known"
    yield f"{record.label or 'no label'} · {who} · {record.split or 'no split'}"
    marks = [
        f"{name} {at}"
        for name in ("onset", "apex", "offset")
        if (at := getattr(record, name)) is not None
    ]
    yield " · ".join([f"{record.num_frames} frames at {record.fps:g} fps", *marks])
    if record.track is not None and record.track.detector == "none":
        yield "no face was looked for"
    elif record.track is not None:
        people = f", {record.track.people} people" if record.track.people > 1 else ""
        yield f"face found in {record.track.found:.0%} ({record.track.detector}{people})"
    yield record.path


def _table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: bool = False,
    wide: bool = False,
) -> str:
    """`numbers`: all columns but the first are numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if numbers and i else "" for i in range(len(cells))]
        inner = "".join(
            f"<{tag}{kind}>{_safe(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True)
        )
        return f"<tr>{inner}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    start = '<table class="wide">' if wide else "<table>"
    return f"{start}\n{line(head, 'th')}\n{body}\n</table>"


def _safe(text: object) -> str:
    """Foreign text as HTML: what controls, hides or turns text around becomes visible."""
    shown = visible(str(text)[:LONGEST])
    return html.escape(shown + ("…" if len(str(text)) > LONGEST else ""))
