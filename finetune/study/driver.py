"""A study: every fold of a protocol trained and tested, and what they say together.

Owns what is checked before anything starts, the order of things, and the record. How clips are
split is `finetune/protocols.py`, what leaks `leaks.py`, one fold `fold.py`, the figures
`pooled.py`, the pages `report.py`.

    OUT/study.json      what the study is: a command that differs is refused
    OUT/folds/NAME/     see `fold.py`
    OUT/results.json, results.md, results.html, confusion.png    written when all folds are finished
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.config import FinetuneConfig
from finetune.predictor_config import artifact_folder, weights_of
from finetune.protocols import build, labelled
from finetune.recipes import RECIPES
from finetune.study.cohort import open_folders, read_clips
from finetune.study.config import StudyConfig
from finetune.study.fold import ON_TEST, run_fold
from finetune.study.folder import check_same, hashes_of, jobs_of, split_tables, write_splits
from finetune.study.folds import Protocol, Refused
from finetune.study.leaks import (
    check_duplicates,
    check_names,
    check_weights,
    without_duplicates,
)
from finetune.study.report import Study, report
from finetune.study.room import check_room
from finetune.study.sections import told, words
from finetune.study.table import watching
from launch.claim import claimed
from launch.config import absolute_paths, parse, to_dict
from launch.fetching import fetch
from launch.job import command
from launch.parallel import Job, run_all
from launch.provenance import provenance
from launch.record import closing_run, continue_run, create_run, remember
from launch.store import connect, store_uri
from launch.tracking import RunHandle, Tracker, latest
from shards.wording import count


class StudyFailed(RuntimeError):
    """Some folds failed for good; the others are finished and kept."""


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/study.py`."""
    about = "Train and test every fold of a protocol, and report what they say together."
    recipes = {name: _study_of(recipe) for name, recipe in RECIPES.items()}
    return command(
        lambda: run(parse(recipes, argv, prog="launch/study.py", description=about)),
        told=(StudyFailed,),
    )


def run(config: StudyConfig) -> dict[str, Any]:
    """Check, run what is not finished, report; returns the results.

    Raises Refused where the clips do not allow the protocol or something leaks, ValueError where
    the folder is another study's, StudyFailed where a fold failed.
    """
    paths = ("data.shards", "data.skip", "data.cache")
    config = absolute_paths(config, "out", *(f"finetune.{path}" for path in paths))
    out = Path(config.out)
    made, inputs = prepare(config)
    print(summary_of(made))
    with claimed(out):
        tables = split_tables(made)
        splits, seed = hashes_of(tables), config.finetune.run.seed
        config = with_init(config)
        if config.finetune.init is not None:
            inputs["init"] = weights_of(Path(config.finetune.init))
        origin = provenance(seed=seed, inputs=inputs)
        if config.finetune.init is not None:
            init, allowed = Path(config.finetune.init), config.allow_trained_init
            made = check_weights(made, init, origin, allowed=allowed)
        check_same(config, out, splits, origin)
        write_splits(tables, out)
        check_room(config, made)
        handle = open_record(config, origin)
        with closing_run(handle):
            jobs = jobs_of(config, made, splits, handle)
            run_folds(config, jobs)
            check_finished(jobs, out)
            study = Study(made, [job.result or {} for job in jobs], splits, origin, out, seed)
            results = report(study)
            publish(handle, out, results)
    print(told(results, out))
    return results


def prepare(config: StudyConfig) -> tuple[Protocol, dict[str, Any]]:
    """The folds, proved and free of leaks, and the manifests that they come from."""
    manifests = open_folders(config.finetune.data)
    clips = read_clips(manifests)
    plan = replace(config.plan, **_validation(config))
    notes: list[str] = []
    if config.drop_duplicates:
        counted, *_ = labelled(plan, clips)
        kept, notes = without_duplicates(counted, manifests)
        gone = {clip.id for clip in counted} - {clip.id for clip in kept}
        clips = [clip for clip in clips if clip.id not in gone]
    made = build(plan, clips)
    if made.mapped and config.finetune.losses.votes:
        raise Refused(
            "losses.votes are votes for the labels in the shards, and this study calls them "
            "otherwise (--classes, --rename, composite, lodo): set --losses.no_votes"
        )
    if not made.mapped and len({manifest.labels for manifest in manifests}) > 1:
        each = "; ".join(", ".join(manifest.labels) for manifest in manifests)
        raise Refused(
            f"the shards' labels differ ({each}): say what is alike by --rename LABEL=CLASS …, or "
            "use --classes three"
        )
    if config.finetune.data.weights is not None:
        _check_drawn(made, config.finetune.data.shards)
    notes += check_names(made, allowed=config.allow_label_in_names)
    notes += check_duplicates(made, manifests)
    if lost := sum(n for manifest in manifests for n in manifest.rejected.values()):
        notes.append(f"{count(lost, 'video')} rejected by ingest, in no fold and no figure")
    inputs = {f"manifest_{i}": manifest.origin for i, manifest in enumerate(manifests)}
    return replace(made, notes=(*made.notes, *notes)), inputs


def summary_of(made: Protocol) -> str:
    """What is about to be run, in a few lines."""
    subjects = {clip.group("subject") for clip in made.clips} - {None}
    about = f"{len(made.clips):,} clips of {len(subjects):,} subjects, {len(made.labels)} classes"
    lines = [f"{made.name}: {count(len(made.folds), 'fold')}, {about}", *made.notes[:12]]
    if (more := len(made.notes) - 12) > 0:
        lines.append(f"and {more} more such notes, in the report")
    return "\n".join(lines)


def with_init(config: StudyConfig) -> StudyConfig:
    """With initial weights as a local path: an alias may have moved when the last fold runs."""
    theirs, out = config.finetune, Path(config.out)
    if theirs.init is None:
        return config
    uri = store_uri(theirs.tracking.uri, config.out)
    local = fetch(theirs.init, uri=uri, into=out / "init").absolute()
    return replace(config, finetune=replace(theirs, init=str(artifact_folder(local))))


def open_record(config: StudyConfig, origin: Mapping[str, str]) -> RunHandle:
    """The study's run, or the one that an interrupted study left."""
    tracking, out = config.finetune.tracking, Path(config.out)
    known = {"output": config.out, "config": to_dict(config), "origin": origin}
    handle = continue_run(out, tracking, **known) or create_run(tracking, **known)
    remember(handle, out)
    return handle


def run_folds(config: StudyConfig, jobs: Sequence[Job]) -> None:
    """Run what is not finished."""
    with watching(functools.partial(progress_of, Path(config.out))) as watch:
        watch(jobs)
        if any(job.status == "waiting" for job in jobs):
            run_all(
                run_fold,
                jobs,
                config.finetune.cluster,
                retries=config.retries,
                at_once=config.at_once,
                watch=watch,
            )


def progress_of(out: Path, fold: str) -> str:
    """How far a fold's training is, by its record."""
    mark = out / "folds" / fold / "run" / "checkpoints" / "mlflow_run.json"
    if not mark.is_file():
        return "starting"
    step, loss = latest(RunHandle(**json.loads(mark.read_text())), "train/loss")
    return "starting" if step is None else f"step {step}, loss {loss:.3f}"


def check_finished(jobs: Sequence[Job], out: Path) -> None:
    """StudyFailed with the list of folds that failed, and how to go on."""
    failed = [job for job in jobs if job.status != "done"]
    if failed:
        told = "\n".join(
            f"  {job.name}: {job.reason} ({out / 'folds' / job.name / 'log.txt'})" for job in failed
        )
        raise StudyFailed(
            f"{len(failed)} of {count(len(jobs), 'fold')} failed, the others are kept:\n{told}\n"
            "Mend the cause; the same command goes on with these (after a change of the code with "
            "--accept_code)"
        )


def publish(handle: RunHandle, out: Path, results: Mapping[str, Any]) -> None:
    """Pooled figures and the pages, in the study's run; how they came about is its tag `stamp`, and
    those that were selected on test have a name of their own: runs are compared by names."""
    tracker = Tracker(*handle, system_metrics_seconds=0)
    try:
        first = results["pooled"][0]
        names = ("uf1", "uar", "war", "coverage")
        connect(handle.uri).set_tag(handle.run_id, "stamp", words(first["stamp"]))
        group = "pooled" if ON_TEST not in first["stamp"]["selection"] else "selected_on_test"
        tracker.log({f"{group}/{name}": first[name] for name in names}, 0)
        for name in ("results.json", "results.md", "results.html", "confusion.png", "study.json"):
            tracker.log_file(str(out / name))
    finally:
        tracker.close()


def _study_of(recipe: Callable[[], FinetuneConfig]) -> Callable[[], StudyConfig]:
    @functools.wraps(recipe)
    def study() -> StudyConfig:
        return StudyConfig(recipe())

    return study


def _check_drawn(made: Protocol, shards: Sequence[str]) -> None:
    """Refused where a fold trains on nothing of a folder, from which data.weights draws."""
    for fold in made.folds:
        if empty := set(range(len(shards))) - {clip.place[0] for clip in fold.train}:
            raise Refused(
                f"data.weights gives {shards[min(empty)]} a share, and fold {fold.name} trains on "
                "none of its clips: leave data.weights out"
            )


def _validation(config: StudyConfig) -> dict[str, float]:
    """Nothing is held out where nothing is picked on it."""
    return {"validation_share": 0.0} if config.select_last or config.select_on_test else {}
