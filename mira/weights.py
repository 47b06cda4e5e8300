"""Weights on disk: our artifact folder, and the checkpoint files of others.

Owns what is written where, and how a file is read. It knows files and state dicts, no modules; the
key names of others are in `layouts.py`, copying into a model is in `loading.py`.
"""

import argparse
import errno
import glob
import json
import os
import pickle
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mira.layouts import PublicCheckpoint, State, canonical

SCHEMA = "mira-artifact/1"


@dataclass(frozen=True)
class Artifact:
    """What an artifact folder holds."""

    state_dict: State
    config: dict[str, Any]
    provenance: dict[str, Any]


def load_public(source: str | Path | Mapping[str, Any]) -> PublicCheckpoint:
    """Read a public checkpoint in any supported layout.

    Args:
        source: a `.safetensors` file, a PyTorch file (read with `weights_only=True`; a pickled
            `argparse.Namespace` is allowed), a folder of Hugging Face or of ours, or a loaded dict.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: not readable, or not a supported layout.
    """
    if isinstance(source, Mapping):
        return canonical(source)
    path = weights_file(Path(source))
    try:
        return canonical(_read(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_public(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict for other programs: `.safetensors`, or `.pth` as `{"model": state}`.

    The names are written as given: those of `VideoMAE`, `Classifier` and `Encoder` are the public
    VideoMAE layout; `mira.layouts.to_hugging_face` gives the other one.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"{path}: write a .safetensors or .pth file")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".safetensors":
            save_file(_plain(state), aside, metadata={"format": "pt"})
        else:
            torch.save({"model": _plain(state)}, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def save_artifact(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Write an artifact folder: `model.safetensors`, `config.json`, `provenance.json`.

    Written aside, through to the disk, and renamed, so that a folder of this name is always
    complete; one that exists is replaced. What a killed writer left is cleared (`restore`).

    Args:
        config, provenance: of JSON types only.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    restore(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    metadata = {"format": "pt", "schema": SCHEMA}
    try:
        aside.mkdir()
        save_file(_plain(state_dict), aside / "model.safetensors", metadata=metadata)
        _sort_header(aside / "model.safetensors")
        for name, data in (("config", config), ("provenance", provenance)):
            text = json.dumps(data, indent=2, allow_nan=False, sort_keys=True)
            (aside / f"{name}.json").write_text(text + "\n")
        _through(*aside.iterdir(), aside)
        _swap(aside, folder)
        _through(folder.parent)
    except (OSError, SafetensorError) as error:
        # With its number kept, nobody takes a full disk for a hiccup worth another try.
        raise OSError(
            getattr(error, "errno", None) or errno.ENOSPC,
            f"{folder} could not be written ({error}); free space or write elsewhere",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _sort_header(path: Path) -> None:
    """The same tensors give the same bytes: safetensors writes its metadata in any order."""
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.dumps(
            json.loads(file.read(length)), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
        assert len(header) <= length, "another way to write JSON"
        file.seek(8)
        file.write(header.ljust(length))


def _swap(aside: Path, folder: Path) -> None:
    """Put one folder in the place of another, which survives if that fails."""
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    if folder.exists():
        folder.rename(replaced)
    try:
        aside.rename(folder)
    except OSError:
        if replaced.exists():
            replaced.rename(folder)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def restore(folder: str | Path) -> None:
    """Put right what a `save_artifact` that was killed left beside `folder`.

    Where it died between its two renames the new folder, complete by then, takes its place; all
    else goes. Not for a folder that another process is writing.
    """
    folder = Path(folder)
    left = f".{glob.escape(folder.name)}.*"
    for replaced in folder.parent.glob(f"{left}.replaced"):
        aside = replaced.with_suffix(".partial")
        if not folder.exists():
            (aside if aside.is_dir() else replaced).rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    for aside in folder.parent.glob(f"{left}.partial"):
        shutil.rmtree(aside, ignore_errors=True)


def _through(*paths: Path) -> None:
    """fsync files and folders; some network file systems cannot for folders, and need not."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)


def load_artifact(folder: str | Path) -> Artifact:
    """Read an artifact folder.

    Raises:
        FileNotFoundError: the folder or one of its three files is missing.
        ValueError: not written by `save_artifact`, or by another version of it.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "config.json", "provenance.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; an artifact folder holds model.safetensors, "
                "config.json and provenance.json: pass the folder a training run wrote"
            )
    state, metadata = _read_safetensors(folder / "model.safetensors")
    if metadata.get("schema") != SCHEMA:
        raise ValueError(
            f"{folder} has schema {metadata.get('schema')!r}, this version reads {SCHEMA!r}; use "
            "load_public for files of other programs"
        )
    config = json.loads((folder / "config.json").read_text())
    return Artifact(state, config, json.loads((folder / "provenance.json").read_text()))


def _plain(state: Mapping[str, Tensor]) -> State:
    """Tensors as files hold them: on the CPU, contiguous, sharing no memory."""
    return {name: t.detach().cpu().clone().contiguous() for name, t in state.items()}


def weights_file(path: Path) -> Path:
    """The file to read: the path itself, or the one in the folder it names.

    Raises FileNotFoundError where there is none.
    """
    if path.is_file():
        return path
    names = ("model.safetensors", "pytorch_model.bin")
    for name in names:
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise FileNotFoundError(
            f"{path} holds neither {' nor '.join(names)}; pass the checkpoint file itself (of a "
            "sharded checkpoint, save it again as one file)"
        )
    raise FileNotFoundError(f"{path} does not exist; pass a checkpoint file or folder")


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)[0]
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "it pickles more than tensors and an argparse.Namespace, which could run code when "
            f"loaded; save its state dict alone and load that ({error})"
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"not a readable PyTorch file, perhaps cut ({error})") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, not a dict of tensors")
    return found


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            return {name: file.get_tensor(name) for name in names}, metadata
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file, perhaps cut ({error})"
        ) from error
