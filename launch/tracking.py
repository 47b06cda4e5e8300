"""The record of a run in MLflow: its configuration, origin, figures, pictures and how it ended.

Owns where the record is kept and how a worker writes to a run; opening and closing one is the
driver's, in `record.py`. Refuses to know what the figures mean and how the run is executed; models
are the business of `registry.py`. MLflow is imported where it is used, so that ranks which log
nothing do not carry it.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from launch.store import StoreError, check_names, require_usable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

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
    parent: str = ""
    """Identity of the run that this one is listed under, such as a study's; empty: none."""

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


def latest(handle: RunHandle, name: str) -> tuple[int | None, float]:
    """The last step of a figure, and its value there; None before the first."""
    run = connect(handle.uri).get_run(handle.run_id)
    found = [metric for metric in run.data.to_proto().metrics if metric.key == name]
    return (found[0].step, found[0].value) if found else (None, 0.0)


def _failure(sent: Any) -> str:
    """Why a message that was sent in the background did not arrive; empty if it did."""
    from mlflow.exceptions import MlflowException

    try:
        sent.wait()
    except MlflowException as error:
        return str(error)
    return ""
