"""The driver's side of a run's record: opened before the workers start, continued, closed.

Owns what is known about a run before it starts and how it ended. Refuses to know figures, which are
the workers' (`tracking.py`), and how a run is executed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.signals import status_after, termination_raises
from launch.store import (
    StoreError,
    Unreachable,
    connect,
    experiment_id,
    store_uri,
    wait_until_usable,
)
from launch.tracking import RunHandle, TrackingConfig

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARAMS_A_CALL = 100  # MLflow's limit of parameters or tags in one request
MARK = "mlflow_run.json"


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
        StoreError: see `store_uri` and `connect`; or the experiment was deleted, or MLflow refuses
            the run, as where the right to write is missing.
    """
    from mlflow.exceptions import MlflowException

    uri = store_uri(tracking.uri, output)
    client = connect(uri)
    name = tracking.run_name or Path(output).absolute().name
    try:
        experiment = experiment_id(client, tracking.experiment, uri=uri, output=output)
        run_id = client.create_run(experiment, run_name=name).info.run_id
    except MlflowException as error:
        raise StoreError(
            f"MLflow at {uri} opens no run in experiment {tracking.experiment!r}: {error}"
        ) from error
    under = {"mlflow.parentRunId": tracking.parent} if tracking.parent else {}
    _log_in_portions(client, run_id, params=flatten(config), tags={**origin, **under})
    client.log_text(run_id, json.dumps(config, indent=2), "config.json")
    return RunHandle(uri, run_id)


def remember(handle: RunHandle, folder: Path) -> None:
    """Keep a run's place beside its checkpoints, where `continue_run` finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{MARK}.writing"
    aside.write_text(json.dumps(handle._asdict()) + "\n")
    aside.replace(folder / MARK)


def continue_run(
    folder: Path,
    tracking: TrackingConfig,
    *,
    output: str,
    config: Mapping[str, Any],
    origin: Mapping[str, str],
) -> RunHandle | None:
    """Take up the run that `remember` kept in this folder; other arguments as `create_run`.

    What differs this time (command, machine, versions) becomes tags `resumed.N.NAME`, the
    configuration `config_resumed_N.json`.

    Returns:
        None where the folder names no run, or one that `tracking` does not lead to.
    """
    from mlflow.exceptions import MlflowException

    uri, mark = store_uri(tracking.uri, output), folder / MARK
    if not mark.is_file() or (handle := RunHandle(**json.loads(mark.read_text()))).uri != uri:
        return None
    wait_until_usable(uri, tracking.patience)  # it was there when this run began
    client = connect(uri)
    try:
        run = client.get_run(handle.run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise Unreachable(
            f"MLflow at {uri} does not tell of run {handle.run_id}: {error}"
        ) from error
    if run.info.lifecycle_stage != "active":
        return None
    known = run.data.tags
    count = int(known.get("resumed", 0)) + 1
    changed = {f"resumed.{count}.{k}": v for k, v in origin.items() if known.get(k) != v}
    _log_in_portions(client, handle.run_id, params={}, tags={"resumed": str(count), **changed})
    if "ended_by" in known:
        client.delete_tag(handle.run_id, "ended_by")
    client.log_text(handle.run_id, json.dumps(config, indent=2), f"config_resumed_{count}.json")
    return handle


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
        client.set_tag(handle.run_id, "ended_by", printable(reason[:5000]))
    client.set_terminated(handle.run_id, status=status)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON values as strings by dotted name; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def printable(text: str) -> str:
    """The text with escapes in the place of what is no Unicode, which names of files may hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def _log_in_portions(
    client: MlflowClient, run_id: str, *, params: Mapping[str, str], tags: Mapping[str, str]
) -> None:
    from mlflow.entities import Param, RunTag

    rows = [(Param(k, printable(v)), None) for k, v in params.items()]
    rows += [(None, RunTag(k, printable(v))) for k, v in tags.items()]
    for start in range(0, len(rows), PARAMS_A_CALL):
        portion = rows[start : start + PARAMS_A_CALL]
        client.log_batch(
            run_id,
            params=[param for param, _ in portion if param],
            tags=[tag for _, tag in portion if tag],
        )
