"""A registered or logged model as a local folder.

Owns where its files are and the copy of them. Refuses to know what they hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launch.durable import folder_through, rename_through
from launch.registry import parse, resolve
from launch.store import StoreError, connect, sqlite_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def fetch(reference: str, *, uri: str, into: str | Path) -> Path:
    """A model as a local folder (or file).

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN/PATH`, or a path, which
            is returned as it is.
        uri: the complete URI of the store.
        into: the folder below which it lies, complete when it appears, in one that is named by its
            content. What lies there already is never touched: a job may be reading it.

    Raises:
        FileNotFoundError: a path that does not exist.
        StoreError: no such store, name, alias, version, run or artifact; lists what there is.
    """
    if not reference.startswith(("models:/", "runs:/")):
        return _existing(reference)
    if uri.startswith("sqlite:") and not Path(sqlite_path(uri)).exists():
        raise StoreError(
            f"{reference}: there is no MLflow store at {uri}. Set tracking.uri to the store that "
            "the model was registered in (a server, or sqlite:////folder/mlflow.db)."
        )
    location = _location(resolve(reference, uri=uri), uri=uri)
    into = Path(into)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as aside:
        found = _download(location, uri, Path(aside, "model"), asked=reference)
        if found.is_dir():
            return _kept(found, into)
        return _kept(found.parent, into) / found.name


@contextmanager
def fetched(reference: str, *, uri: str, beside: str | Path) -> Iterator[Path]:
    """As `fetch`, into `beside`, where it stays while this lasts. What was fetched there before is
    removed, unless somebody is reading it: one model stays."""
    into = Path(beside, ".fetched")
    while True:
        model = fetch(reference, uri=uri, into=into).absolute()
        if into.absolute() not in model.parents:  # a path, which stays what it is
            yield model
            return
        top = into.absolute() / model.relative_to(into.absolute()).parts[0]
        lock = os.open(top, os.O_RDONLY)
        try:
            with suppress(OSError):  # some disks keep no locks: then nobody removes anything
                fcntl.flock(lock, fcntl.LOCK_SH)
            if not model.exists():  # another job removed it before it was locked
                continue
            for other in into.iterdir():
                if other.name != top.name:
                    _remove_unless_read(other)
            yield model
            return
        finally:
            os.close(lock)


def _remove_unless_read(folder: Path) -> None:
    with suppress(OSError):  # somebody else was faster, or the disk keeps no locks
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)


def _kept(folder: Path, into: Path) -> Path:
    """Its place below `into`, to which it is moved unless the same content lies there."""
    place = into / _content(folder)
    into.mkdir(exist_ok=True)
    if place.exists():
        return place
    folder_through(folder)
    try:
        rename_through(folder, place)
    except OSError:
        if not place.exists():  # else another job was faster
            raise
    return place


def _content(folder: Path) -> str:
    """Start of a SHA-256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return digest.hexdigest()[:16]


def _location(reference: str, *, uri: str) -> str:
    """Where the files are. MLflow itself looks such references up in the process's global store."""
    from mlflow.exceptions import MlflowException

    client, (name, version, _) = connect(uri), parse(reference)
    try:
        if reference.startswith("runs:/"):
            return _location_in_run(client, name, str(version))
        if version is None:
            return client.get_logged_model(name).artifact_location
        return client.get_model_version_download_uri(name, version)
    except MlflowException as error:
        raise StoreError(f"{reference} is not in {uri}: {error}") from error


def _location_in_run(client: MlflowClient, run_id: str, path: str) -> str:
    """An artifact of a run, or the latest model of that name which the run logged."""
    run = client.get_run(run_id)
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [client.get_logged_model(output.model_id) for output in outputs]
    named = [model for model in models if model.name == path and model.status == "READY"]
    if named:
        return max(named, key=lambda model: model.creation_timestamp).artifact_location
    return f"{run.info.artifact_uri}/{path}"


def _download(location: str, uri: str, folder: Path, *, asked: str) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        found = download_artifacts(location, dst_path=str(folder), tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise StoreError(f"{asked} cannot be fetched from {uri}: {error}") from error
    return Path(found)


def _existing(reference: str) -> Path:
    path = Path(reference).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give the folder that a training wrote, a checkpoint file, "
            "models:/NAME@ALIAS, or runs:/RUN/PATH."
        )
    return path
