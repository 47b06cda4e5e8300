"""The registry of models: folders become versions of a name, and names become folders again.

Owns publishing, aliases, and resolving where a model comes from. Refuses to know what a folder
holds and who uses it. A version is a logged model of MLflow 3, linked to the run that made it.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.store import StoreError, check_names, connect, sqlite_path
from launch.tracking import RunHandle

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

LISTED = 20  # names, at most, in a message about one that does not exist


@dataclass(frozen=True)
class Published:
    """Where a model can be had. As text: its URI."""

    uri: str
    """`models:/NAME/VERSION`, or `models:/m-…` where it was logged without a name."""
    name: str | None
    version: int | None
    alias: str | None

    def __str__(self) -> str:
        return f"{self.uri} (@{self.alias})" if self.alias else self.uri


def register_encoder(
    run: RunHandle, folder: str | Path, *, name: str, alias: str | None = None
) -> Published:
    """Publish an encoder's artifact folder as the next version of `name`.

    Raises:
        FileNotFoundError: `folder` is not an artifact folder.
        StoreError: see `publish`.
    """
    _require(Path(folder), "model.safetensors", "the folder that the training wrote")
    return publish(run, folder, kind="encoder", name=name, alias=alias)


def register_predictor(
    run: RunHandle,
    folder: str | Path,
    *,
    name: str | None,
    alias: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Published:
    """Publish a complete MLflow model, which loads and serves by itself, as the next version.

    Args:
        folder: written by `finetune.predictor_package.package`.
        name: in the registry; None logs the model with its run only.
        tags: what whoever finds it there must know.

    Raises:
        FileNotFoundError: `folder` is not an MLflow model.
        StoreError: see `publish`.
    """
    _require(Path(folder), "MLmodel", "what finetune.predictor_package.package wrote")
    return publish(run, folder, kind="predictor", name=name, alias=alias, tags=tags)


def publish(
    run: RunHandle,
    folder: str | Path,
    *,
    kind: str,
    name: str | None,
    alias: str | None,
    tags: Mapping[str, str] | None = None,
) -> Published:
    """Log a folder as a model of a run, register it under `name`, and point `alias` at it.

    The version appears only when everything is uploaded.

    Raises:
        StoreError: the name or alias is not one that MLflow takes.
    """
    check_names(name, alias)
    client, tags = connect(run.uri), {"kind": kind, **(tags or {})}
    model = _log_model(client, run, Path(folder), kind=kind, tags=tags)
    if name is None:
        return Published(model.model_uri, None, None, None)
    _ensure_name(client, name)
    made = client.create_model_version(
        name, model.artifact_location, run.run_id, tags=tags, model_id=model.model_id
    )
    version = int(made.version)
    if alias is not None:
        client.set_registered_model_alias(name, alias, str(version))
    return Published(f"models:/{name}/{version}", name, version, alias)


def set_alias(uri: str, name: str, *, version: int, alias: str) -> None:
    """Point `alias` of a registered model at a version. Raises StoreError if there is none."""
    check_names(name, alias)
    client = connect(uri)
    _version(client, uri, name, version=str(version), alias=None)
    client.set_registered_model_alias(name, alias, str(version))


def fetch(reference: str, *, uri: str, into: str | Path) -> Path:
    """A model as a local folder (or file).

    Args:
        reference: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN/PATH`, or a path, which
            is returned as it is.
        uri: the complete URI of the store.
        into: the folder to download to; complete when it appears, replaced if it exists.

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
    aside = into.with_name(f".{into.name}.{os.getpid()}.partial")
    try:
        found = _download(location, uri, aside, asked=reference)
        shutil.rmtree(into, ignore_errors=True)
        if found.is_dir():
            return found.rename(into)
        into.mkdir(parents=True)
        return found.rename(into / found.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def resolve(reference: str, *, uri: str) -> str:
    """A reference with its alias replaced by the version. Raises StoreError as `fetch` does."""
    if reference.startswith("runs:/"):
        return reference
    name, version, alias = _parse(reference)
    if version is None and alias is None:
        return reference  # models:/m-…: a model by its identity
    return f"models:/{name}/{_version(connect(uri), uri, name, version=version, alias=alias)}"


def _log_model(
    client: MlflowClient, run: RunHandle, folder: Path, *, kind: str, tags: Mapping[str, str]
) -> LoggedModel:
    """Upload a folder as a model that belongs to the run."""
    from mlflow.entities import LoggedModelOutput

    experiment = client.get_run(run.run_id).info.experiment_id
    model = client.create_logged_model(
        experiment, name=kind, source_run_id=run.run_id, tags=dict(tags)
    )
    try:
        client.log_model_artifacts(model.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, step=0)])
    return model


def _ensure_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(
    client: MlflowClient, uri: str, name: str, *, version: str | None, alias: str | None
) -> str:
    """The number of a version that exists; StoreError names those that do."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        raise StoreError(_no_such_name(client, uri, name)) from error
    if alias is not None:
        if alias in model.aliases:
            return str(model.aliases[alias])
        known = ", ".join(f"@{a} (version {v})" for a, v in sorted(model.aliases.items()))
        wanted = f"alias @{alias}"
    else:
        numbers = sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))
        if version == "latest" and numbers:
            return str(numbers[-1])
        if version in [str(number) for number in numbers]:
            return version
        known, wanted = ", ".join(map(str, numbers)), f"version {version}"
    raise StoreError(
        f"model {name!r} in {uri} has no {wanted}; it has {known or 'none'}. Ask for one of these, "
        "or register the one you want with --tracking.register and --tracking.alias."
    )


def _no_such_name(client: MlflowClient, uri: str, name: str) -> str:
    names = sorted(model.name for model in client.search_registered_models(max_results=1000))
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
    return (
        f"no model {name!r} in {uri}; registered there: {listed or 'none'}.{hint} "
        f"Register one by training with --tracking.register {name}, or set tracking.uri to the "
        "store that holds it."
    )


def _parse(reference: str) -> tuple[str, str | None, str | None]:
    """(name, version, alias) of `models:/…`, (run, path, None) of `runs:/…`.

    Neither version nor alias for a model by its identity, m-….
    """
    if found := re.fullmatch(r"runs:/([^/]+)/(.+)", reference):
        return found[1], found[2], None
    if found := re.fullmatch(r"models:/(m-[0-9a-f]+)", reference):
        return found[1], None, None
    if found := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))", reference):
        return found[1], found[3], found[2]
    raise StoreError(
        f"{reference!r} names no model: write models:/NAME@ALIAS (models:/encoder@champion), "
        "models:/NAME/VERSION or runs:/RUN/PATH"
    )


def _location(reference: str, *, uri: str) -> str:
    """Where the files are. MLflow itself looks such references up in the process's global store."""
    from mlflow.exceptions import MlflowException

    client, (name, version, _) = connect(uri), _parse(reference)
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


def _require(folder: Path, name: str, meant: str) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} holds no {name}; pass {meant}")
