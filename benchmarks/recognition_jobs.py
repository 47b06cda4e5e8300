"""What `benchmarks.recognition` has done in processes of their own, beside the folds of studies.

Owns the first training of every network, on expressions at full strength, and what a fold's network
is asked afterwards. As many jobs run at once as the machine or cluster holds; finished ones are not
done again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune import evaluation, job
from finetune.config import FinetuneConfig
from finetune.evaluation import EvaluateConfig
from finetune.probes import temporal
from finetune.probes.temporal import TemporalConfig
from launch.cluster import ClusterConfig
from launch.config import from_dict, to_dict
from launch.parallel import Body, Job, run_all
from launch.tracking import PublishConfig


def train_first(configs: Sequence[FinetuneConfig]) -> None:
    """Fine-tune each, unless its folder says that it is done. RuntimeError where one fails."""
    jobs = [
        _job(config.cluster.output, {"config": to_dict(config)}, done="summary.json")
        for config in configs
    ]
    _run(_train, jobs, configs[0].cluster)


def ask(folds: Sequence[Path], study: FinetuneConfig, spotted: Path) -> None:
    """What each fold's network says of its test clips: FOLD/temporal/clips.csv and, of a network
    that looks at onset and apex, FOLD/spotted/predictions.csv with those that were spotted."""
    where = {"cluster": to_dict(study.cluster)}  # a fold's questions run where it was trained
    about = where | {"shards": study.data.shards, "seed": study.run.seed}
    jobs = [
        _job(fold / "temporal", {"fold": str(fold)} | about, done="clips.csv") for fold in folds
    ]
    _run(_probe, jobs, study.cluster)
    if study.encoder.pair:
        other = where | {"shards": [str(spotted)]}
        jobs = [
            _job(fold / "spotted", {"fold": str(fold)} | other, done="predictions.csv")
            for fold in folds
        ]
        _run(_evaluate, jobs, study.cluster)


def _train(payload: dict[str, Any]) -> dict[str, Any]:
    job.run(from_dict(FinetuneConfig, payload["config"]))
    return {}


def _probe(payload: dict[str, Any]) -> dict[str, Any]:
    temporal.run(TemporalConfig(**_about(payload, "temporal"), seed=payload["seed"]))
    return {}


def _evaluate(payload: dict[str, Any]) -> dict[str, Any]:
    evaluation.run(EvaluateConfig(**_about(payload, "spotted")))
    return {}


def _about(payload: dict[str, Any], name: str) -> dict[str, Any]:
    """The network of a fold, its test clips, and where what it says is written."""
    fold = Path(payload["fold"])
    cluster = from_dict(ClusterConfig, payload["cluster"])
    return {
        "shards": tuple(payload["shards"]),
        "cluster": replace(cluster, output=str(fold / name)),
        "model": str(fold / "run" / "last"),
        "splits": str(fold / "split.csv"),
        "batch": 32,
        "loader_workers": 0,
        "tracking": PublishConfig(experiment="recognition"),
    }


def _job(folder: Path | str, payload: dict[str, Any], *, done: str) -> Job:
    finished = Path(folder, done).is_file()
    return Job(str(folder), payload, "done" if finished else "waiting")


def _run(body: Body, jobs: Sequence[Job], cluster: ClusterConfig) -> None:
    if all(job.status == "done" for job in jobs):
        return
    run_all(body, jobs, replace(cluster, output=""), retries=1, watch=lambda jobs: None)
    failed = [f"{job.name}: {job.reason}" for job in jobs if job.status != "done"]
    if failed:
        raise RuntimeError("\n".join(failed))
