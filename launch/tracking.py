"""The record of a run in MLflow: its configuration, origin, figures, pictures and how it ended.

Owns where the record is kept, how a run is opened, written to and closed. Refuses to know what the
figures mean and how the run is executed; models are the business of `registry.py`. MLflow is
imported where it is used, so that ranks which log nothing do not carry it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from launch.signals import status_after, termination_raises
from launch.store import StoreError, check_names, experiment_id, require_usable, store_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARAMS_A_CALL = 100  # MLflow's limit of parameters or tags in one request
BACKLOG = 1000  # messages with figures under way, before the sender waits


class RunHandle(NamedTuple):
    """What another process needs to write to the same run."""

    uri: str
    run_id: str


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is recorded and what becomes of its model."""

    uri: str = ""
    """MLflow server (http://host:5000) or database (sqlite:////folder/mlflow.db); empty: mlflow.db
    beside the run's output folder."""
    experiment: str = "mira"
    """Experiment that the run is listed under."""
    run_name: str = ""
    """Name of the run; empty: the name of its output folder."""
    register: str | None = None
    """Name under which the model is registered; none: it is not registered."""
    alias: str = "champion"
    """Alias that then points at the new version, as in models:/NAME@ALIAS."""

    def __post_init__(self) -> None:
        check_names(self.register, self.alias)


def connect(uri: str) -> MlflowClient:
    """A client of the store at a complete `uri`, which is known to answer. Raises StoreError."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else a screen of schema migrations
    # One sender keeps the order of the figures, so the last step there means all before it.
    os.environ["MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE"] = "1"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    require_usable(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def create_run(
    tracking: TrackingConfig,
    *,
    output: str,
    config: Mapping[str, Any],
    origin: Mapping[str, str],
) -> RunHandle:
    """Open a run in the driver and record what is known before it starts.

    Args:
        output: the run's folder; its name is the run's name unless `tracking.run_name` is given.
        config: the complete configuration as JSON values; kept as parameters by dotted name and
            as `config.json`.
        origin: tags, see `provenance.provenance`.

    Raises:
        StoreError: see `store_uri` and `connect`; or the experiment was deleted.
    """
    uri = store_uri(tracking.uri, output)
    client = connect(uri)
    name = tracking.run_name or Path(output).absolute().name
    experiment = experiment_id(client, tracking.experiment, uri=uri, output=output)
    run_id = client.create_run(experiment, run_name=name).info.run_id
    _log_in_portions(client, run_id, params=flatten(config), tags=origin)
    client.log_text(run_id, json.dumps(config, indent=2), "config.json")
    return RunHandle(uri, run_id)


@contextlib.contextmanager
def closing_run(handle: RunHandle) -> Iterator[None]:
    """Driver: mark the run FINISHED, FAILED or KILLED by how the block ends; the exception goes on.

    A termination signal (`ray job stop`, a batch system's time limit) counts as KILLED.
    """
    with termination_raises():
        try:
            yield
        except BaseException as error:
            try:
                end_run(handle, status_after(error), reason=f"{type(error).__name__}: {error}")
            except Exception as lost:
                error.add_note(f"MLflow was not told how run {handle.run_id} ended: {lost}")
            raise
        end_run(handle, "FINISHED")


def end_run(handle: RunHandle, status: str, *, reason: str = "") -> None:
    """Set the final status: FINISHED, FAILED or KILLED; a reason is kept as tag `ended_by`."""
    client = connect(handle.uri)
    if reason:
        client.set_tag(handle.run_id, "ended_by", reason[:5000])
    client.set_terminated(handle.run_id, status=status)


class Tracker:
    """Writes to a run that exists; after a restart of the job a new one continues.

    Figures leave in the background. A figure of a step that the run already holds (steps replayed
    after a restart) is dropped, so every step appears once.
    """

    def __init__(self, uri: str, run_id: str, *, system_metrics_seconds: float = 10.0):
        """Attach. `system_metrics_seconds`: how often the machine's load is sampled; 0: never."""
        self.handle = RunHandle(uri, run_id)
        self._client = connect(uri)
        self._last_step = _last_steps(self._client, self.handle)
        self._client.update_run(run_id, status="RUNNING")
        self._pending: list[Any] = []
        self._lost: list[str] = []
        self._monitor = self._watch(system_metrics_seconds) if system_metrics_seconds else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of one step; returns at once."""
        from mlflow.entities import Metric

        new = {k: v for k, v in metrics.items() if step > self._last_step.get(k, -1)}
        if not new:
            return
        self._last_step.update(dict.fromkeys(new, step))
        now = time.time_ns() // 1_000_000
        rows = [Metric(k, float(v), now, step) for k, v in new.items()]
        self._wait_for(len(self._pending) - BACKLOG)
        self._pending.append(
            self._client.log_batch(self.handle.run_id, metrics=rows, synchronous=False)
        )

    def log_file(self, path: str, artifact_dir: str = "") -> None:
        """Store a file, or a folder with everything in it, under `artifact_dir` of the run."""
        if Path(path).is_dir():
            self._client.log_artifacts(self.handle.run_id, path, artifact_dir or None)
        else:
            self._client.log_artifact(self.handle.run_id, path, artifact_dir or None)

    def figure(self, name: str, image: str | bytes | np.ndarray, step: int | None = None) -> None:
        """Store a picture as `pictures/NAME.png`, or `pictures/NAME_step_000100.png`.

        Args:
            image: the path of a PNG, a PNG's bytes, or uint8 [h, w, 3] (RGB).
        """
        stem = name if step is None else f"{name}_step_{step:06d}"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{stem.replace('/', '_')}.png")
            path.write_bytes(_png(image))
            self.log_file(str(path), "pictures")

    def flush(self) -> None:
        """Wait until every figure has arrived. Raises StoreError where some did not."""
        self._wait_for(len(self._pending))
        lost, self._lost = self._lost, []
        if lost:
            raise StoreError(
                f"{len(lost)} messages with figures did not reach MLflow at {self.handle.uri}; "
                f"the first: {lost[0]}"
            )

    def close(self) -> None:
        """Stop watching the machine and flush. How the run ended is for the driver to say.

        Lost figures are a warning here: they do not make a finished training worthless.
        """
        if self._monitor:
            self._monitor.finish()
            self._monitor = None
        try:
            self.flush()
        except StoreError as lost:
            warnings.warn(str(lost), stacklevel=2)

    def _wait_for(self, count: int) -> None:
        """Wait for the oldest `count` messages."""
        waiting, self._pending = self._pending[: max(count, 0)], self._pending[max(count, 0) :]
        self._lost += [reason for sent in waiting if (reason := _failure(sent))]

    def _watch(self, seconds: Any) -> Any:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            self.handle.run_id,
            sampling_interval=seconds,
            resume_logging=True,
            tracking_uri=self.handle.uri,
        )
        monitor.start()
        return monitor


class SilentTracker:
    """The tracker of ranks that do not log."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_file(self, path: str, artifact_dir: str = "") -> None:
        pass

    def figure(self, name: str, image: str | bytes | np.ndarray, step: int | None = None) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON values as strings by dotted name; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _log_in_portions(
    client: MlflowClient, run_id: str, *, params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    from mlflow.entities import Param, RunTag

    rows = [(Param(k, v), None) for k, v in params.items()]
    rows += [(None, RunTag(k, v)) for k, v in tags.items()]
    for start in range(0, len(rows), PARAMS_A_CALL):
        portion = rows[start : start + PARAMS_A_CALL]
        client.log_batch(
            run_id,
            params=[param for param, _ in portion if param],
            tags=[tag for _, tag in portion if tag],
        )


def _png(image: str | bytes | np.ndarray) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str):
        return Path(image).read_bytes()
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, image, format="png")
    return buffer.getvalue()


def _last_steps(client: MlflowClient, handle: RunHandle) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(handle.run_id)
    except MlflowException as error:
        raise StoreError(f"no run {handle.run_id} in {handle.uri}: {error}") from error
    return {metric.key: metric.step for metric in run.data.to_proto().metrics}


def _failure(sent: Any) -> str:
    """Why a message that was sent in the background did not arrive; empty if it did."""
    from mlflow.exceptions import MlflowException

    try:
        sent.wait()
    except MlflowException as error:
        return str(error)
    return ""
