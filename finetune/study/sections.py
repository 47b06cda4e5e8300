"""What the report of a study says, part by part: tables, each with the selection rule beside the
figures.

Owns the wording. Refuses to know files; the form of the pages is `page.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.study.fold import Stamp
from finetune.study.page import Section
from finetune.study.pooled import FIGURES
from shards.wording import count

KEPT = ("command", "git.revision", "git.dirty", "version.torch", "host.system", "host.accelerator")


def told(results: Mapping[str, Any], out: Path) -> str:
    """The pooled figures in a few lines, for a terminal."""
    lines = []
    for one in results["pooled"]:
        figures = ", ".join(f"{name.upper()} {_with_ends(one, name)}" for name in FIGURES)
        lines.append(f"{words(one['stamp'])}: {figures} ({one['answered']:,} clips)")
    return "\n".join([*lines, f"the report: {out / 'results.html'}, results.md, results.json"])


def sections(results: Mapping[str, Any]) -> list[Section]:
    """The report, part by part."""
    pooled, protocol = results["pooled"], results["protocol"]
    return [
        Section("What all folds say together", _about(protocol, pooled[0]), *_pooled(pooled)),
        Section("Recall of each class", "", *_recalls(pooled)),
        Section(
            "Confusion", "Clips by what they are (rows) and the answer.", *_confusion(pooled[0])
        ),
        *_means(pooled),
        Section("Folds", "", *_folds(results["folds"])),
        *_subjects(results["subjects"], pooled[0]),
        Section("Protocol", "", ("what", "value"), _protocol_rows(protocol, pooled[0])),
        Section("Origin", "", ("what", "value"), _origin(results["origin"])),
    ]


def _about(protocol: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    apart = {
        "subject": "No subject is in both training and test.",
        "source": "No source is in both training and test.",
        "clip": "Folds do not go by subjects; those that are known are apart, or a note says so.",
    }[protocol["apart"]]
    if protocol["name"] == "lodo":
        apart = "No data set is in both training and test."
    kept = f"Validation is carved out of training by {' or '.join(protocol['validation_by'])}."
    once = "Every clip is tested by exactly one fold." if protocol["each_once"] else ""
    ends = (
        "Figures are in per cent, in brackets 95 % of 2000 bootstrap samples of "
        f"{first['units']:,} groups, by {first['by']}. UF1, UAR and WAR come from the counts of "
        "all folds, never from a mean of folds."
    )
    return " ".join(filter(None, (once, apart, kept if protocol["validation_by"] else "", ends)))


def _pooled(pooled: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for one in pooled:
        figures = [_with_ends(one, name) for name in FIGURES]
        clips = f"{one['answered']:,} of {one['clips']:,}"
        rows.append([words(one["stamp"]), *figures, clips, f"{one['coverage']:.1%}"])
    always = pooled[0]["commonest"]
    rows.append([f"always {always['label']}", *(_percent(always[n]) for n in FIGURES), "–", "–"])
    return ("selection", "UF1", "UAR", "WAR", "clips", "coverage"), rows


def _recalls(pooled: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    labels = list(pooled[0]["recall"])
    rows = [
        [words(one["stamp"]), *(_percent(one["recall"].get(label)) for label in labels)]
        for one in pooled
    ]
    return ("selection", *labels), rows


def _confusion(first: Mapping[str, Any]) -> tuple[Sequence[str], list[list[str]]]:
    labels = first["labels"]
    rows = [
        [label, *(f"{n:,}" for n in counts)]
        for label, counts in zip(labels, first["confusion"], strict=True)
    ]
    return (words(first["stamp"]), *labels), rows


def _means(pooled: Sequence[Mapping[str, Any]]) -> list[Section]:
    known = [one for one in pooled if one["mean_over_folds"]]
    if not known:
        return []
    rows = [
        [
            words(one["stamp"]),
            *(_percent(one["mean_over_folds"][n]) for n in FIGURES),
        ]
        for one in known
    ]
    about = "As it is usual to report for folds; not the pooled figures."
    return [Section("Mean over folds", about, ("selection", "UF1", "UAR", "WAR"), rows)]


def _folds(folds: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[list[str]]]:
    rows = []
    for row in folds:
        figures = [_percent(row.get(name)) for name in FIGURES]
        clips = f"{row['answered']:,} of {row['clips']:,}"
        rows.append(
            [row["fold"], words(row["stamp"]), *figures, clips, row["stamp"]["splits"][:12]]
        )
    return ("fold", "selection", "F1", "UAR", "WAR", "clips", "split file"), rows


def _subjects(subjects: Sequence[Mapping[str, Any]], first: Mapping[str, Any]) -> list[Section]:
    if not subjects:
        return []
    rows = [
        [r["subject"], f"{r['errors']:,}", f"{r['clips']:,}", _percent(r["share"]), r["most"]]
        for r in subjects
    ]
    head = ("subject", "errors", "clips", "share", "most often")
    return [Section("Errors by subject", words(first["stamp"]), head, rows)]


def _protocol_rows(protocol: Mapping[str, Any], first: Mapping[str, Any]) -> list[list[str]]:
    stamp = first["stamp"]
    rows = [
        ["protocol", f"{protocol['name']}, {count(protocol['folds'], 'fold')}"],
        ["clips", f"{protocol['clips']:,} of {count(protocol['subjects'], 'subject')}"],
        ["data sets", ", ".join(name or "(unnamed)" for name in protocol["datasets"])],
        ["classes", ", ".join(protocol["labels"])],
        ["selection", words(stamp)],
        ["privileged inputs", ", ".join(stamp["privileged"]) or "none"],
        ["seed", str(stamp["seed"])],
        ["code", stamp["code"]],
        ["split files", stamp["splits"]],
    ]
    return rows + [["note", note] for note in protocol["notes"]]


def _origin(origin: Mapping[str, str]) -> list[list[str]]:
    names = [*KEPT, *sorted(name for name in origin if name.startswith("input."))]
    return [[name, origin[name]] for name in names if name in origin]


def words(stamp: Mapping[str, Any]) -> str:
    lists = {name: tuple(stamp[name]) for name in ("privileged", "leaks")}
    return Stamp(**{**stamp, **lists}).words


def _with_ends(one: Mapping[str, Any], name: str) -> str:
    ends = one["interval"][name]
    return _percent(one[name]) + (f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]" if ends else "")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
