"""One fold of a study, in a process of its own: train, test on what it was not trained on, write
down what was found and how.

Owns the fold's folder and the stamp of its results. Refuses to know how clips were split, and the
other folds. Training is `job.py`, the test `evaluation.py`.

    FOLDS/NAME/split.csv    which clips are of which part
    FOLDS/NAME/run/         the training, as `launch/finetune.py` leaves it but for a packed model;
                            once it is tested no checkpoints, only the weights: best/, last/
    FOLDS/NAME/test-best/   the test of the best step on validation: predictions.csv, metrics.json
    FOLDS/NAME/test-last/   the test of the last step
    FOLDS/NAME/spent.json   seconds of earlier attempts, and when the latest began
    FOLDS/NAME/result.json  written last: a fold that has one is finished
    FOLDS/NAME/log.txt      what was printed
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune import evaluation, job
from finetune.config import FinetuneConfig
from finetune.evaluation import EvaluateConfig
from launch.checkpoint import Checkpoints
from launch.claim import claimed
from launch.config import from_dict
from launch.job import write_json
from launch.tracking import TrackingConfig

RULES = {"val": "best on validation", "test": "best on test"}
"""The split that picked the best step → the selection rule."""
ON_TEST = RULES["test"]
BUSY_SECONDS = 120.0  # a process of a driver that was killed may live on a moment


@dataclass(frozen=True)
class Stamp:
    """How a result came about; every result carries one."""

    protocol: str
    fold: str
    """ "all" where folds are pooled."""
    selection: str
    """`last`, `best on validation` or `best on test`."""
    privileged: tuple[str, ...]
    """What the model was given of a test clip besides its pixels, such as annotated units."""
    seed: int | str
    """Of the fold; where folds are pooled whose seeds differ, the first and the last."""
    code: str
    """SHA-256 over the product's source that wrote the weights."""
    splits: str
    """SHA-256 of the split file."""
    leaks: tuple[str, ...] = ()
    """What was allowed by request and makes the figures too good; set by the report."""

    @property
    def words(self) -> str:
        """For tables: what a reader must not miss."""
        rule = "selected on test" if self.selection == ON_TEST else self.selection
        given = f"; privileged: {', '.join(self.privileged)}" if self.privileged else ""
        return rule + given + (f"; LEAKS: {', '.join(self.leaks)}" if self.leaks else "")


def run_fold(payload: dict[str, Any]) -> dict[str, Any]:
    """Train and test a fold, or go on where it was stopped; returns its result, see `result_of`.

    Args:
        payload: {"config": a FinetuneConfig as JSON values, "folder", "protocol", "fold",
            "splits" (sha256)}.
    """
    folder = Path(payload["folder"])
    with _logged(folder / "log.txt"), claimed(folder, patience=BUSY_SECONDS):
        config = from_dict(FinetuneConfig, payload["config"])
        earlier, began = spent_before(folder), time.time()
        summary = _trained(config)
        rows = [
            _tested(payload, config, summary, selected)
            for selected in dict.fromkeys((summary["selection"], "last"))
        ]
        result = {
            "fold": payload["fold"],
            "steps": summary["steps"],
            "run_id": summary["run_id"],
            "seconds": earlier + time.time() - began,
            "code": rows[0]["stamp"]["code"],
            "splits": payload["splits"],
            "results": rows,
        }
        Checkpoints(Path(config.cluster.output, "checkpoints")).drop()  # nobody goes on from them
        write_json(folder / "result.json", result)
    return json.loads(json.dumps(result))  # alike whether it was run now or is read later


def finished(folder: Path) -> dict[str, Any] | None:
    """The result of a fold that is finished, else None."""
    file = folder / "result.json"
    return json.loads(file.read_text()) if file.is_file() else None


def spent_before(folder: Path) -> float:
    """Seconds of a fold's earlier attempts; writes down that another one begins.

    An earlier one lasted until its last line in the log: a process that is killed says nothing.
    """
    file, log = folder / "spent.json", folder / "log.txt"
    seconds = 0.0
    if file.is_file():
        known = json.loads(file.read_text())
        seconds = known["seconds"] + max(0.0, log.stat().st_mtime - known["began"])
    write_json(file, {"seconds": seconds, "began": time.time()})
    return seconds


def _trained(config: FinetuneConfig) -> dict[str, Any]:
    """The training's summary; of one that is finished as it was written down."""
    summary = Path(config.cluster.output, "summary.json")
    return json.loads(summary.read_text()) if summary.is_file() else job.run(config, packed=False)


def _tested(
    payload: dict[str, Any], config: FinetuneConfig, summary: dict[str, Any], selected: str
) -> dict[str, Any]:
    """Test the weights in RUN/`selected`; the row of the result."""
    run, theirs = Path(config.cluster.output), config.tracking
    origin = json.loads((run / selected / "provenance.json").read_text())
    name = f"test-{selected}"
    # A training with workers of its own left this process without CPU and GPU.
    workers = min(1, config.cluster.workers)
    asked = EvaluateConfig(
        model=str(run / selected),
        shards=config.data.shards,
        splits=config.data.splits,
        split="test",
        batch=config.run.micro_batch,
        loader_workers=config.data.loader_workers,
        max_failed_share=config.data.max_failed_share,
        skip=config.data.skip,
        cache=config.data.cache,
        cache_gb=config.data.cache_gb,
        cluster=replace(config.cluster, workers=workers, output=str(run.parent / name)),
        tracking=TrackingConfig(
            uri=theirs.uri,
            experiment=theirs.experiment,
            run_name=f"{theirs.run_name} {name}",
            parent=theirs.parent,
            patience=theirs.patience,
        ),
    )
    skipped = evaluation.all_skipped(asked)
    found = evaluation.unanswered(asked) if skipped else evaluation.run(asked)
    stamp = Stamp(
        protocol=payload["protocol"],
        fold=payload["fold"],
        selection=rule_of(origin["selection"]),
        privileged=tuple(found.get("privileged") or origin.get("privileged") or ()),
        seed=config.run.seed,
        code=origin["source.sha256"],  # a training that was finished before may be of other code
        splits=payload["splits"],
    )
    figures = {name: found[name] for name in ("war", "uar", "f1", "clips", "coverage")}
    return {"stamp": vars(stamp), "predictor": selected, "step": origin["step"], **figures}


def rule_of(selection: str) -> str:
    """The selection rule, from what a predictor's folder says of itself ("best uar on val")."""
    return RULES[selection.rpartition(" ")[2]] if selection.startswith("best") else selection


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What this process and its children print goes to a file, an error's trace too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with path.open("a") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
