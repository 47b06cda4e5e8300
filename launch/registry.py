"""The registry of models: folders become versions of a name.

Owns publishing, aliases, and which version a name means; how it becomes a folder again is
`fetching.py`. Refuses to know what a folder holds and who uses it. A version is a logged model of
MLflow 3, linked to the run that made it.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.store import StoreError, check_names, connect
from launch.tracking import RunHandle

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

CONTENT = "content.sha256"  # tag of a version, set when all else of it is done
Kind = Literal["encoder", "predictor"]
HOLDS: dict[Kind, str] = {"encoder": "model.safetensors", "predictor": "MLmodel"}
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


def publish(
    run: RunHandle,
    folder: str | Path,
    *,
    kind: Kind,
    weights: Path,
    name: str | None,
    alias: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Published:
    """Log a folder as a model of a run, register it under `name`, and point `alias` at it.

    The version appears only when everything is uploaded. One that this run published before, with
    the same weights and configuration, is taken again, and an alias that points at another version
    by now is left there, which is told: somebody may have moved it.

    Args:
        kind: `encoder`, an artifact folder of `mira.weights`, or `predictor`, a complete MLflow
            model, which loads and serves by itself.
        weights: the file in it whose content tells, and config.json beside it.
        name: in the registry; None logs the model with its run only.
        tags: what whoever finds it there must know.

    Raises:
        FileNotFoundError: `folder` is none of its kind.
        StoreError: the name or alias is not one that MLflow takes.
    """
    check_names(name, alias)
    if not Path(folder, HOLDS[kind]).is_file():
        raise FileNotFoundError(f"{folder} holds no {HOLDS[kind]}: it is no {kind}")
    client, tags = connect(run.uri), {"kind": kind, **(tags or {})}
    digest = _digest(weights)
    if name is not None and (known := _published(client, run.run_id, name, digest)):
        return _again(client, name, known, alias)
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
    client.set_model_version_tag(name, str(version), CONTENT, digest)
    return Published(f"models:/{name}/{version}", name, version, alias)


def resolve(reference: str, *, uri: str) -> str:
    """A reference with its alias replaced by the version. Raises StoreError as `fetch` does."""
    if reference.startswith("runs:/"):
        return reference
    name, version, alias = parse(reference)
    if version is None and alias is None:
        return reference  # models:/m-…: a model by its identity
    return f"models:/{name}/{_version(connect(uri), uri, name, version=version, alias=alias)}"


def _published(client: MlflowClient, run_id: str, name: str, digest: str) -> int | None:
    """The latest version of `name` that a run published with these weights."""
    found = client.search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return max((int(v.version) for v in found if v.tags.get(CONTENT) == digest), default=None)


def _again(client: MlflowClient, name: str, version: int, alias: str | None) -> Published:
    """A version that is there, with its alias unless another one has that."""
    uri = f"models:/{name}/{version}"
    if alias is None:
        return Published(uri, name, version, None)
    holder = client.get_registered_model(name).aliases.get(alias)
    if holder is None:
        client.set_registered_model_alias(name, alias, str(version))
    elif int(holder) != version:
        print(f"{uri} was published before; @{alias} stays where it is, at version {holder}")
        return Published(uri, name, version, None)
    return Published(uri, name, version, alias)


def _digest(weights: Path) -> str:
    """SHA-256 of the weights, and of config.json beside them if there is one."""
    digest = hashlib.sha256()
    for path in (weights, weights.with_name("config.json")):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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


def parse(reference: str) -> tuple[str, str | None, str | None]:
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
