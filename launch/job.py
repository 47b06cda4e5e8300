"""From a typed command to a finished, recorded run: what every application's driver does.

Owns the order of things around the workers: open the record, start them, close the record, leave a
summary, and turn errors into messages. It knows no objective; the workers' function comes from the
application.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from launch.agreement import Agreement
from launch.checkpoint import Checkpoints
from launch.claim import claimed
from launch.cluster import ClusterConfig, WorkerContext, launch
from launch.config import to_dict
from launch.engine import Diverged, Summary
from launch.failures import WorkerLost
from launch.provenance import Input, provenance
from launch.record import closing_run, continue_run, create_run, flatten, remember
from launch.store import StoreError, wait_until_usable
from launch.task import Tracker as TrackerProtocol
from launch.tracking import RunHandle, SilentTracker, Tracker, TrackingConfig

Worker = Callable[[dict[str, Any], WorkerContext], dict[str, Any]]


class JobConfig(Protocol):
    """What the driver reads of an application's configuration."""

    @property
    def cluster(self) -> ClusterConfig: ...

    @property
    def tracking(self) -> TrackingConfig: ...


def drive(
    worker: Worker,
    config: JobConfig,
    *,
    seed: int,
    inputs: Mapping[str, Input],
    publish: Callable[[RunHandle, Path, dict[str, Any]], dict[str, Any]],
    checkpoints: Callable[[Mapping[str, str]], Checkpoints] | None = None,
    lost: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `worker` on the cluster and record it.

    Args:
        worker: module-level function; gets {"config", "run", "origin", "lost"} as JSON values and
            its context, and returns what goes into the summary.
        config: complete, with absolute paths.
        seed: of the run, for the record.
        inputs: files whose hash the record keeps, by name; see `provenance`.
        publish: called in the driver after success with the run, its output folder and the
            summary; registers what was made and returns more entries for the summary.
        checkpoints: from the run's origin to its checkpoints, for jobs that have some. Where one is
            there the run goes on from it, in the same MLflow run; one of another configuration is
            refused before anything starts.
        lost: what is missing of the data, where the driver has looked, so that of many workers none
            has to.

    Returns:
        The summary, which also lies in `summary.json` of the output folder.

    Raises ValueError where another job works in that folder.
    """
    output = Path(config.cluster.output)
    with claimed(output):
        origin = provenance(seed=seed, inputs=inputs)
        kept = checkpoints(origin) if checkpoints else None
        handle = _open_run(config, output, origin, kept)
        with closing_run(handle):
            payload = {"config": to_dict(config), "run": list(handle), "origin": origin}
            payload["lost"] = None if lost is None else dict(lost)
            progress = None if kept is None else kept.latest
            result = launch(worker, payload, config.cluster, progress=progress)
            result |= {"run_id": handle.run_id, "tracking_uri": handle.uri, "output": str(output)}
            _deliver_rest(handle, output, config.tracking.patience)
            result |= publish(handle, output, result)
        write_json(output / "summary.json", result)
    return result


def _open_run(
    config: JobConfig, output: Path, origin: Mapping[str, str], kept: Checkpoints | None
) -> RunHandle:
    """The run that the checkpoints belong to, or a new one; what changed becomes tags of it."""
    known: dict[str, Any] = {"output": str(output), "config": to_dict(config), "origin": origin}
    handle = None
    if kept is not None and (meta := kept.resumable()) is not None:
        known["origin"] = {**origin} | {k: v for k, (_, v) in kept.agreement.changes(meta).items()}
        handle = continue_run(kept.folder, config.tracking, **known)
    handle = handle or create_run(config.tracking, **known)
    if kept is not None:
        remember(handle, kept.folder)
    return handle


def _outbox(output: str | Path, run_id: str) -> Path:
    return Path(output, ".outbox", run_id)


def _deliver_rest(handle: RunHandle, output: Path, patience: float) -> None:
    """Wait until MLflow can be told how the job ended, and tell it what the workers could not."""
    try:
        wait_until_usable(handle.uri, patience)
    except StoreError as away:
        raise StoreError(
            f"what was to be done is done and lies in {output}, but {away} Then give the same "
            "command again: it delivers what is kept and publishes"
        ) from away
    if (outbox := _outbox(output, handle.run_id)).is_dir():
        Tracker(*handle, outbox=outbox, system_metrics_seconds=0).close(patience)


_NO_RECIPE = re.compile(
    r"(encoder|decoder|init|cluster|tracking)\b"
    r"|run\.(epochs|steps|micro_batch|compile|zero_stage|allow_change|log_every|save_every)"
    r"|run\.(eval_every|keep_checkpoints|max_bad_steps|peak_tflops)"
    r"|data\.(shards|splits?|loader_workers|prefetch|max_failed_share|allow_missing|skip)\b"
    r"|data\.(cache|cache_gb|retry_seconds|views|augment_on)\b"
)


def agreement(
    config: Mapping[str, Any], origin: Mapping[str, str], network: Mapping[str, Any]
) -> Agreement:
    """What this run's checkpoints must agree on, from the configuration as JSON values.

    Of the recipe are all settings but those of the network and its inputs, which are compared
    anyway, the length of the run, which is told by itself, and those that change no weight.
    """
    recipe = {k: v for k, v in flatten(config).items() if not _NO_RECIPE.match(k)}
    return Agreement(
        model={**network, **identity(config, origin)},
        recipe=recipe,
        allow_change=config["run"]["allow_change"],
    )


def identity(config: Mapping[str, Any], origin: Mapping[str, str]) -> dict[str, Any]:
    """What a checkpoint must agree on, besides the network, to be continued: which samples a step
    takes, what it carries of them, and the content of every input (shards, split file, initial
    weights)."""
    data, run = config["data"], config["run"]
    cut = ("split", "streams", "seed", "frames", "stride", "size")
    carried = ("pair", "extra", "units")
    order = {name: data[name] for name in (*cut, "weights", "balance", "repeats", *carried)}
    inputs = {k: v for k, v in sorted(origin.items()) if k.startswith("input.") and "sha" in k}
    return {
        "data": order,
        "run": {name: run[name] for name in ("seed", "global_batch")},
        "inputs": inputs,
    }


@contextmanager
def attached(
    payload: Mapping[str, Any], context: WorkerContext, *, files: Sequence[Path] = ()
) -> Iterator[TrackerProtocol]:
    """In a worker: the run's tracker on rank 0, a silent one elsewhere; flushed at the end. What
    MLflow did not take by then stays in the output folder, for the next worker or the driver.

    `files` are logged then, those that are there, however the run ends.
    """
    if context.rank:
        yield SilentTracker()
        return
    uri, run_id = payload["run"]
    output = payload["config"]["cluster"]["output"]
    tracker = Tracker(uri, run_id, outbox=_outbox(output, run_id))
    try:
        yield tracker
    finally:
        for file in files:
            if file.is_file():
                tracker.log_file(str(file), "")
        tracker.close()


def summarise(summary: Summary) -> dict[str, Any]:
    """A training's summary as JSON values."""
    return {
        "steps": summary.steps,
        "resumed_from": summary.resumed_from,
        "loss_first": summary.first_loss,
        "loss_last": summary.last_loss,
        "skipped_steps": summary.skipped_steps,
        "clips_per_second": summary.clips_per_second,
        "data_wait": summary.data_wait,
        "seconds": summary.seconds,
        "metrics": summary.metrics,
    }


def write_json(path: Path, value: Any) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(aside, path)


def command(body: Callable[[], Any], *, told: tuple[type[Exception], ...] = ()) -> int:
    """Run a command line's body; what the user can mend becomes one message and exit status 1.

    Bugs keep their trace: only errors that carry a message for users are shortened.

    Args:
        told: more such errors, of packages that this one does not know.
    """
    try:
        body()
    except (ValueError, OSError, Diverged, WorkerLost, *told) as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same line goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _message(error: Exception) -> str:
    """What the error says, without the number of an operating system's error."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
