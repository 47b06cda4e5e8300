"""The record of a run in MLflow: its configuration, origin, figures, pictures and how it ended.

Owns where the record is kept and how a worker writes to a run; opening and closing one is the
driver's, in `record.py`. Refuses to know what the figures mean and how the run is executed; models
are the business of `registry.py`. MLflow is imported where it is used, so that ranks which log
nothing do not carry it.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from launch.delivery import Delivery
from launch.outbox import Outbox
from launch.store import StoreError, check_names, connect

_UNTAKEN = re.compile(r"[^/\w.\- :]")
CLOSING = 30.0  # seconds that the end of a worker waits for a store that takes nothing


class RunHandle(NamedTuple):
    """What another process needs to write to the same run."""

    uri: str
    run_id: str


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is recorded."""

    uri: str = ""
    """MLflow server (http://host:5000) or database (sqlite:////folder/mlflow.db); empty: mlflow.db
    beside the run's output folder."""
    experiment: str = "mira"
    """Experiment that the run is listed under."""
    run_name: str = ""
    """Name of the run; empty: the name of its output folder."""
    parent: str = ""
    """Identity of the run that this one is listed under, such as a study's; empty: none."""
    patience: float = 3600.0
    """Seconds that a job which goes on from a checkpoint, or is finished, waits for an MLflow that
    does not answer, before it ends with an error. While it runs it needs none: what it has to tell
    is kept on disk and delivered later."""


@dataclass(frozen=True)
class PublishConfig(TrackingConfig):
    """Where a training is recorded, and what becomes of its model."""

    register: str | None = None
    """Name under which the model is registered; none: it is not registered."""
    alias: str = "champion"
    """Alias that then points at the new version, as in models:/NAME@ALIAS."""

    def __post_init__(self) -> None:
        check_names(self.register, self.alias)


class Tracker:
    """Writes to a run that exists; after a restart of the job a new one continues.

    Everything is put into an outbox on disk and leaves in the background: training never waits for
    MLflow, and what MLflow does not take stays there until it does, also for the next process. A
    figure of a step that the run already holds (steps replayed after a restart) is dropped.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        outbox: Path | None = None,
        system_metrics_seconds: float = 10.0,
    ):
        """Attach.

        Args:
            outbox: folder of the run's messages; None: one that lasts no longer than this.
            system_metrics_seconds: how often the machine's load is sampled; 0: never.

        Raises StoreError where there is no such run; that MLflow is away is no error.
        """
        self.handle = RunHandle(uri, run_id)
        self._own = Path(tempfile.mkdtemp(prefix="outbox-")) if outbox is None else None
        self._outbox = Outbox(outbox or Path(self._own or "", "messages"))
        self._delivery = Delivery(uri, run_id, self._outbox)
        self._load = None
        if system_metrics_seconds:
            self._load = _Load(self.handle, self.log, system_metrics_seconds)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of one step; returns at once. What MLflow takes in no name (a class called "fear
        (mild)") becomes _."""
        values = {_UNTAKEN.sub("_", name): float(value) for name, value in metrics.items()}
        now = time.time_ns() // 1_000_000
        self._outbox.put_figures(values, step=step, milliseconds=now)
        self._delivery.wake()

    def log_file(self, path: str, artifact_dir: str = "") -> None:
        """Store a file, or a folder with everything in it, under `artifact_dir` of the run; as it
        is now."""
        self._outbox.put_files(Path(path), artifact_dir)
        self._delivery.wake()

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

    def flush(self, seconds: float | None = None) -> None:
        """Wait until everything has arrived, at most `seconds` (None: `CLOSING`). Raises StoreError
        where something did not."""
        left = self._delivery.wait(CLOSING if seconds is None else seconds)
        refused, self._delivery.refused = self._delivery.refused, []
        where = f"MLflow at {self.handle.uri}"
        if refused:
            kept = "" if self._own else f" and lie in {self._outbox.folder}"
            raise StoreError(
                f"{len(refused)} messages were refused by {where}{kept}; the first: {refused[0]}"
            )
        if left:
            kept = "are lost" if self._own else f"are kept in {self._outbox.folder}"
            raise StoreError(f"{left} messages did not reach {where} and {kept}")

    def close(self, seconds: float | None = None) -> None:
        """Stop watching the machine and flush. How the run ended is for the driver to say.

        What did not arrive is a warning here: it does not make a finished training worthless.
        """
        if self._load:
            self._load.close()
            self._load = None
        try:
            self.flush(seconds)
        except StoreError as lost:
            warnings.warn(str(lost), stacklevel=2)
        self._delivery.close()
        self._outbox.close()
        if self._own:
            shutil.rmtree(self._own, ignore_errors=True)


class _Load:
    """Samples the load of this machine as MLflow does, every `seconds`, and logs it.

    MLflow's own thread ends for good when the server is away once.
    """

    def __init__(self, handle: RunHandle, log: Any, seconds: float):
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._sampler = SystemMetricsMonitor(handle.run_id, tracking_uri=handle.uri)
        self._log, self._seconds, self._stop = log, seconds, threading.Event()
        self._thread = threading.Thread(target=self._loop, name="machine-load", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)

    def _loop(self) -> None:
        self._sampler.collect_metrics()
        while not self._stop.wait(self._seconds):
            self._sampler.collect_metrics()
            load = self._sampler.aggregate_metrics()
            for monitor in self._sampler.monitors:
                monitor.clear_metrics()
            with suppress(OSError):  # a full disk; the training says so
                # The step is the time: it grows over restarts, whoever is asked.
                self._log({f"system/{k}": v for k, v in load.items()}, int(time.time()))


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


def latest(handle: RunHandle, name: str) -> tuple[int | None, float]:
    """The last step of a figure, and its value there; None before the first."""
    run = connect(handle.uri).get_run(handle.run_id)
    found = [metric for metric in run.data.to_proto().metrics if metric.key == name]
    return (found[0].step, found[0].value) if found else (None, 0.0)
