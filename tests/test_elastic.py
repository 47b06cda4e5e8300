"""Real workers on Ray: one is killed, fewer go on; samples, seeds and losses stay the same."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from finetune import evaluation
from finetune import job as finetune_job
from finetune.evaluation import EvaluateConfig
from launch.cluster import ClusterConfig
from launch.failures import WorkerLost
from launch.job import command, drive
from launch.store import connect
from launch.tracking import TrackingConfig
from pretrain import job
from pretrain.recipes import PretrainConfig
from tests.runs import finetuning, flags, local_ray, logged, pretraining, rows, write_stripes

STEPS, KILLED_IN = 10, 5


class Recorded:
    """A stream that writes down what it serves, and waits to be killed where it is told to."""

    def __init__(self, stream, folder: Path, context, *, start: int, a_step: int):
        self.stream, self.folder, self.context = stream, folder, context
        self.start, self.a_step = start, a_step

    def __iter__(self):
        path = self.folder / f"seen-{self.context.world}-{self.context.rank}.jsonl"
        for served, batch in enumerate(self.stream):
            step = self.start + served // self.a_step
            if step == KILLED_IN and self.context.world == 2 and self.context.rank == 1:
                (self.folder / "kill-me").write_text(str(os.getpid()))
                time.sleep(120)
                raise AssertionError("nobody came to kill this worker")
            slots = list(zip(batch.keys, batch.seeds.tolist(), strict=True))
            with path.open("a") as file:
                file.write(json.dumps({"step": step, "slots": slots}) + "\n")
            yield batch

    def close(self) -> None:
        self.stream.close()


def recording_train(payload, context):
    """A worker: `pretrain.job.train` with its stream watched."""
    whole = job.open_train

    def watched(config, *, start_step=0, ledger=None, **place):
        stream = whole(config, start_step=start_step, ledger=ledger, **place)
        if ledger is None:
            return stream
        a_step = config.run.accumulation(context.world)
        folder = Path(config.cluster.output)
        return Recorded(stream, folder, context, start=start_step, a_step=a_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "open_train", watched)
        return job.train(payload, context)


def recorded(config: PretrainConfig) -> dict:
    return drive(
        recording_train,
        config,
        seed=0,
        inputs={},
        checkpoints=lambda origin: job.checkpoints_of(config, origin),
        publish=lambda *_: {},
    )


@pytest.fixture(scope="module")
def ray_cluster():
    with local_ray():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    write_stripes(folder / "shards", [8, 7], test_every=5)
    return folder


@pytest.fixture(scope="module")
def uri(place) -> str:
    return f"sqlite:///{place / 'mlflow.db'}"


def configured(place: Path, name: str, uri: str, *, workers: int) -> PretrainConfig:
    config = pretraining(place / "shards", place / name, uri, steps=STEPS)
    # Averages over the clips of a worker would depend on how many workers there are.
    encoder = replace(config.encoder, statistics="instance")
    cluster = replace(config.cluster, workers=workers, max_failures=0)
    tracking = replace(config.tracking, experiment=name)
    return replace(config, encoder=encoder, cluster=cluster, tracking=tracking)


@pytest.fixture(scope="module")
def straight(place, uri):
    return recorded(configured(place, "straight", uri, workers=0))


@pytest.fixture(scope="module")
def torn(ray_cluster, place, uri):
    """Two workers of which one is killed by its process id; then one worker, up to the end."""

    def kill():
        asked = place / "torn/kill-me"
        while not (asked.is_file() and asked.read_text()):
            time.sleep(0.05)
        os.kill(int(asked.read_text()), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(WorkerLost, match=r"worker 1 died; .*max_failures allows 0"):
        recorded(configured(place, "torn", uri, workers=2))
    return recorded(configured(place, "torn", uri, workers=1))


def seen(folder: Path, *, world: int) -> dict[int, list]:
    """Keys and seeds by step, over all workers; those of a step that was left in the middle too."""
    steps: dict[int, list] = {}
    for path in folder.glob(f"seen-{world}-*.jsonl"):
        for line in path.read_text().splitlines():
            found = json.loads(line)
            steps.setdefault(found["step"], []).extend(found["slots"])
    return {step: sorted(slots) for step, slots in sorted(steps.items())}


def test_fewer_workers_see_the_same_samples_in_every_step(torn, straight, place):
    expected = seen(place / "straight", world=1)
    before, after = seen(place / "torn", world=2), seen(place / "torn", world=1)
    assert list(expected) == list(range(STEPS))
    assert torn["resumed_from"] == 4 and list(after) == list(range(4, STEPS))
    assert {step: before[step] for step in range(KILLED_IN)} == {
        step: expected[step] for step in range(KILLED_IN)
    }
    assert after == {step: expected[step] for step in range(4, STEPS)}


def test_every_epoch_holds_every_sample_once(torn, straight, place):
    trained = {k for k, (_, row) in rows(place / "shards").items() if row.record.split == "train"}
    steps = seen(place / "torn", world=2) | seen(place / "torn", world=1)
    for first in (0, 3):  # 12 clips in steps of 4; the second epoch was begun by two workers
        keys = Counter(key for step in range(first, first + 3) for key, _ in steps[step])
        assert {key for key in keys if key} == trained and max(keys.values()) == 1


def test_losses_agree_to_rounding(torn, straight, place, uri):
    expected = logged(straight, "train/loss")
    assert logged(torn, "train/loss") == pytest.approx(expected, rel=1e-5)
    assert torn["loss_first"] == pytest.approx(straight["loss_first"], rel=1e-6)


def test_the_second_launch_continues_the_same_run(torn, uri):
    client = connect(uri)
    [run] = client.search_runs([client.get_experiment_by_name("torn").experiment_id])
    assert run.info.run_id == torn["run_id"] and run.info.status == "FINISHED"
    assert run.data.tags["resumed"] == "1" and "ended_by" not in run.data.tags


def told(err: str) -> list[str]:
    """What the command says. Ray's cleaner prints traces of its own where another test has a
    cluster on this machine."""
    return [line for line in err.splitlines() if line.startswith("error: ")]


def test_another_network_is_refused_before_workers_start(torn, place, uri, capfd):
    """The network was changed between two runs with the same output."""
    argv = flags(configured(place, "torn", uri, workers=1))
    argv += ["--cluster.workers", "1", "--encoder.depth", "3"]
    assert job.main(argv) == 1
    out, err = capfd.readouterr()
    [line] = told(err)
    assert "model.depth was 2, this run has 3" in line
    assert "another --cluster.output" in line and "Traceback" not in out
    run = connect(uri).get_run(torn["run_id"])
    assert run.info.status == "FINISHED", "the finished run's record is left alone"


def test_only_damaged_checkpoints_end_the_run_in_one_line(torn, place, uri, capfd):
    shutil.copytree(place / "torn", place / "damaged")
    newest = max((place / "damaged/checkpoints").glob("step_*"))
    for path in (place / "damaged/checkpoints").rglob("*.pt"):  # one sound one would be used
        path.write_bytes(path.read_bytes()[:100])
    config = configured(place, "damaged", uri, workers=0)
    assert command(lambda: recorded(config)) == 1
    out, err = capfd.readouterr()
    [line] = told(err)
    assert f"{newest} is damaged" in line
    assert "Traceback" not in out and "CheckpointError" not in out + err


@pytest.mark.slow
def test_two_workers_measure_what_one_measures(ray_cluster, place, uri):
    trained = finetune_job.run(finetuning(place / "shards", place / "model", uri, steps=2))
    found = {}
    for workers in (0, 2):
        folder = place / f"measured-{workers}"
        config = EvaluateConfig(
            model=trained["predictor"],
            shards=(str(place / "shards"),),
            split="train",
            batch=2,
            loader_workers=0,
            cluster=ClusterConfig(workers=workers, output=str(folder)),
            tracking=TrackingConfig(uri=uri),
        )
        evaluation.run(config)
        with (folder / "predictions.csv").open(newline="") as file:
            found[workers] = list(csv.DictReader(file)), (folder / "metrics.json").read_text()
    assert found[2][1] == found[0][1]
    names = [
        [(row["key"], row["label"], row["prediction"]) for row in t] for t, _ in found.values()
    ]
    assert names[0] == names[1] and len(names[0]) == 12
    shares = [[float(row["calm"]) for row in table] for table, _ in found.values()]
    assert shares[0] == pytest.approx(shares[1], abs=2e-6)
