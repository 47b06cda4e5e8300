"""What a study found, as `results.json`, `results.md`, `results.html` and a confusion matrix.

Owns reading the folds' answers and the stamp of what is pooled. Figures are `pooled.py`, what the
pages say of them `sections.py`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.pictures import confusion_matrix_picture, png
from finetune.study.cohort import in_words, kinds_of
from finetune.study.folds import Fold, Protocol
from finetune.study.page import markdown, page
from finetune.study.pooled import FIGURES, Answer, by_fold, by_subject, mean_over_folds, pool
from finetune.study.sections import sections, words
from launch.job import write_json
from shards.splitfile import Name, shown

OWN_WAY = ("folds", "kfold", "lodo")
"""Protocols whose mean over folds is usual; that of LOSO means nothing."""


@dataclass(frozen=True)
class Study:
    """Everything that the report reads."""

    made: Protocol
    folds: Sequence[Mapping[str, Any]]
    """The result of each fold, in their order; see `fold.run_fold`."""
    splits: Mapping[str, str]
    origin: Mapping[str, str]
    out: Path
    seed: int
    """Of the bootstrap."""


def report(study: Study) -> dict[str, Any]:
    """Write the pages; returns what `results.json` holds.

    Raises ValueError where a fold's answers do not fit its split.
    """
    results = results_of(study)
    write_json(study.out / "results.json", results)
    first = results["pooled"][0]
    picture = png(confusion_matrix_picture(np.array(first["confusion"]), first["labels"]))
    (study.out / "confusion.png").write_bytes(picture)
    title, parts = f"{study.out.name}: {study.made.name}", sections(results)
    (study.out / "results.md").write_text(markdown(title, parts), encoding="utf-8")
    (study.out / "results.html").write_text(
        page(title, parts, picture, words(first["stamp"])), encoding="utf-8"
    )
    return results


def results_of(study: Study) -> dict[str, Any]:
    """Pooled figures of every selection rule, the first being the one that picked the models; each
    fold's; errors by subject; the protocol and the origin."""
    by = in_words(kinds_of(study.made.clips))
    leaks = {"leaks": list(study.made.leaks)}
    pooled, rows, subjects = [], [], []
    for at in range(max(len(fold["results"]) for fold in study.folds)):
        answers, labels = answers_of(study, at)
        stamps = [{**_result(fold, at)["stamp"], **leaks} for fold in study.folds]
        one = pool(answers, labels, seed=study.seed)
        folds = by_fold(answers, labels)
        _check_untouched(study, folds, at)
        stamp = _stamp_of_all(stamps, study.splits)
        mean = mean_over_folds(folds) if study.made.name in OWN_WAY else None
        pooled.append({"stamp": stamp, **one, "by": by, "mean_over_folds": mean})
        rows += [{**row, "stamp": own} for row, own in zip(folds, stamps, strict=True)]
        subjects = subjects or by_subject(answers)
    return {
        "protocol": _protocol(study.made),
        "pooled": pooled,
        "folds": rows,
        "subjects": subjects,
        "origin": dict(study.origin),
    }


def answers_of(study: Study, at: int) -> tuple[list[Answer], list[str]]:
    """The answers to every test clip under the `at`-th selection rule, and the classes in order."""
    answers: list[Answer] = []
    labels: list[str] = []
    for fold, result in zip(study.made.folds, study.folds, strict=True):
        name = f"test-{_result(result, at)['predictor']}"
        file = study.out / "folds" / fold.name / name / "predictions.csv"
        found, classes = _read(file), _classes(file.parent)
        if labels and classes not in ([], labels):
            raise ValueError(f"{file} has the classes {classes}, other folds have {labels}")
        labels = labels or classes
        answers += _answers(fold, found, file)
    return answers, labels


def _check_untouched(study: Study, rows: Sequence[Mapping[str, Any]], at: int) -> None:
    """ValueError where a fold is of another split, or its answers do not give its own figures."""
    for row, fold in zip(rows, study.folds, strict=True):
        name, own = row["fold"], _result(fold, at)
        if own["stamp"]["splits"] != study.splits[name]:
            wrong = "was made with another split file"
        elif any(_differ(row.get(theirs), own[ours]) for theirs, ours in FIGURES.items()):
            wrong = f"has answers in test-{own['predictor']} that do not give its figures"
        else:
            continue
        folder = study.out / "folds" / name
        raise ValueError(
            f"{folder} {wrong}: something in it was changed; delete it, and the same command runs "
            "that fold again"
        )


def _differ(one: float | None, other: float | None) -> bool:
    """Of figures; None where no clip was answered."""
    return one != other if one is None or other is None else abs(one - other) > 1e-9


def _result(fold: Mapping[str, Any], at: int) -> Mapping[str, Any]:
    """Of the `at`-th selection rule; a fold that had no validation has the last step alone."""
    return fold["results"][min(at, len(fold["results"]) - 1)]


def _classes(test: Path) -> list[str]:
    """What the fold's network tells apart; the table has columns of other answers, too. Empty where
    no clip could be read."""
    file = test / "metrics.json"
    return json.loads(file.read_text())["labels"] if file.is_file() else []


def _read(file: Path) -> dict[Name, tuple[str, str]]:
    """Data set and key → label and prediction."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if "dataset" not in (rows.fieldnames or ()):
            raise ValueError(
                f"{file} was written by an earlier version and names no data sets: delete "
                f"{file.parents[1]}, and the same command runs that fold again"
            )
        return {(row["dataset"], row["key"]): (row["label"], row["prediction"]) for row in rows}


def _answers(fold: Fold, found: Mapping[Name, tuple[str, str]], file: Path) -> list[Answer]:
    """One for every test clip of the fold."""
    if strange := set(found) - {clip.id for clip in fold.test}:
        raise ValueError(
            f"{file} answers {shown(min(strange))}, which fold {fold.name} does not test"
        )
    answers = []
    for clip in fold.test:
        truth, prediction = found.get(clip.id, (clip.label, None))
        if truth != clip.label:
            raise ValueError(
                f"{file} has label {truth!r} of {clip.name}, the shards {clip.label!r}"
            )
        subject = (
            None if clip.subject is None else "/".join(filter(None, clip.group("subject") or ()))
        )
        unit = json.dumps(clip.unit())
        answers.append(Answer(fold.name, clip.name, clip.label or "", prediction, unit, subject))
    return answers


def _stamp_of_all(stamps: Sequence[Mapping[str, Any]], splits: Mapping[str, str]) -> dict[str, Any]:
    """The stamp of what is pooled; where folds differ it names all that occurs."""
    known = {name: sorted({json.dumps(s[name]) for s in stamps}) for name in stamps[0]}
    rules = sorted({stamp["selection"] for stamp in stamps})
    seeds = sorted({stamp["seed"] for stamp in stamps})
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(splits.items()))
    return {
        "protocol": stamps[0]["protocol"],
        "fold": "all",
        "selection": " and ".join(rules),
        "privileged": sorted({given for stamp in stamps for given in stamp["privileged"]}),
        "seed": seeds[0] if len(seeds) == 1 else f"{seeds[0]} … {seeds[-1]}",
        "code": " and ".join(json.loads(code) for code in known["code"]),
        "splits": hashlib.sha256(text.encode()).hexdigest(),
        "leaks": stamps[0]["leaks"],
    }


def _protocol(made: Protocol) -> dict[str, Any]:
    clips = made.clips
    return {
        "name": made.name,
        "folds": len(made.folds),
        "clips": len(clips),
        "subjects": len({clip.group("subject") for clip in clips} - {None}),
        "datasets": sorted({clip.dataset for clip in clips}),
        "labels": list(made.labels),
        "apart": made.apart,
        "each_once": made.each_once,
        "validation_by": sorted({in_words(fold.validation_by) for fold in made.folds} - {""}),
        "notes": list(made.notes),
    }
