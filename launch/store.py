"""Where MLflow keeps things: which URIs are usable, whether the place answers, which folder.

Owns the checking of a store's URI and of names in it, and the connection. Refuses to know what is
written there. MLflow is imported where it is used, so that ranks which log nothing do not carry it.
"""

from __future__ import annotations

import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.config import absolute

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http", "https", "databricks")


class StoreError(ValueError):
    """The MLflow store, or a thing asked of it, does not exist or cannot be used as configured."""


class Unreachable(StoreError):
    """Nothing answers there now; the same question may be answered later."""


def store_uri(uri: str, output: str) -> str:
    """The complete URI of the store, with an absolute path where it is a file.

    Args:
        uri: as configured; empty for an SQLite file beside `output`.
        output: the run's folder.

    Raises:
        StoreError: MLflow 3 no longer writes to plain folders, or the scheme is unknown.
        ConfigError: the path is relative in a submitted job.
    """
    if not uri:
        return f"sqlite:///{Path(output).expanduser().absolute().parent / 'mlflow.db'}"
    scheme = uri.split(":", 1)[0].split("+", 1)[0] if ":" in uri else ""
    if scheme == "sqlite":
        return f"sqlite:///{absolute(sqlite_path(uri))}"
    if scheme in DATABASES or scheme in SERVERS:
        return uri
    folder = Path(uri.removeprefix("file://").removeprefix("file:")).expanduser().absolute()
    raise StoreError(
        f"tracking.uri {uri!r}: MLflow keeps runs in a database or on a server, not in a plain "
        f"folder. Use sqlite:///{folder / 'mlflow.db'}, a server such as http://127.0.0.1:5000, "
        "or leave it empty."
    )


def require_usable(uri: str) -> None:
    """Check quickly that a store at a complete `uri` can be reached.

    Raises:
        StoreError: no server answers, or the database's folder cannot be written.
    """
    if uri.startswith(("http:", "https:")):
        _require_answer(uri)
    elif uri.startswith("sqlite:"):
        _require_folder(Path(sqlite_path(uri)).parent)


def wait_until_usable(uri: str, seconds: float) -> None:
    """As `require_usable`, and wait so long for a server that does not answer."""
    end, pause, told = time.monotonic() + seconds, 1.0, False
    while True:
        try:
            return require_usable(uri)
        except Unreachable as away:
            if time.monotonic() + pause > end:
                raise
            if not told:
                print(f"waiting for MLflow, at most {seconds:.0f} s: {away}", flush=True)
        told = True
        time.sleep(pause)
        pause = min(30.0, 2 * pause)


def connect(uri: str) -> MlflowClient:
    """A client of the store at a complete `uri`, which is known to answer. Raises StoreError."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else a screen of schema migrations
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    require_usable(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def experiment_id(client: Any, name: str, *, uri: str, output: str) -> str:
    """The experiment of that name, made if it is not there. Raises StoreError if it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=_artifact_folder(uri, output))
    if found.lifecycle_stage != "active":
        raise StoreError(
            f"tracking.experiment {name!r} was deleted in {uri}. Choose another name, or restore "
            f"it: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


def check_names(name: str | None, alias: str | None) -> None:
    """StoreError where MLflow would refuse a model's name or alias, or take it for a version."""
    if name is not None and (not name.strip() or re.search(r"[/:@'\"]", name)):
        raise StoreError(f"model name {name!r}: choose one that is not empty, without / : @ ' \"")
    if alias is not None and (
        not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"(?i)latest|v?\d+", alias)
    ):
        raise StoreError(
            f"alias {alias!r}: choose letters, digits, _ and -, other than latest and v1, v2, …"
        )


def _artifact_folder(uri: str, output: str) -> str | None:
    """A server has its own place; for a plain database MLflow would take the current folder."""
    if uri.split(":", 1)[0] in SERVERS:
        return None
    beside = sqlite_path(uri) if uri.startswith("sqlite:") else output
    return str(Path(beside).absolute().parent / "mlartifacts")


def sqlite_path(uri: str) -> str:
    """The file of an SQLite URI."""
    return uri.split("///", 1)[1] if "///" in uri else uri.split(":", 1)[1]


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        raise StoreError(f"MLflow's database cannot be kept in {folder}: not a writable folder.")


def _require_answer(uri: str) -> None:
    """One quick question: MLflow's own client repeats an unanswered request for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=10).close()
    except urllib.error.HTTPError:
        return  # something answers; what it thinks of our requests is for MLflow to say
    except OSError as error:
        why = getattr(error, "reason", error)
        raise Unreachable(
            f"no MLflow server answers at {uri} ({why}). Start it (mlflow server --port 5000 "
            "--backend-store-uri sqlite:////folder/mlflow.db) or correct tracking.uri; left empty, "
            "an SQLite file beside the output folder is used."
        ) from error
