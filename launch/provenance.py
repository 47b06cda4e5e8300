"""Where a result comes from: source revision, package versions, machine, command, input files.

Owns the collection of these facts as plain strings. Refuses to know who stores them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

Input = str | Path | tuple[str, str]
"""A file, or the place and SHA-256 of one that was read already."""

ROOMS = ("kernels", "mira", "shards", "launch", "pretrain", "finetune")
PACKAGES = (
    "mira-video",
    "torch",
    "numpy",
    "ray",
    "deepspeed",
    "mlflow",
    "webdataset",
    "decord",
    "av",
    "kornia",
)


def provenance(
    *,
    seed: int,
    inputs: Mapping[str, Input] | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, str]:
    """Facts that tell one result from another, as strings by dotted name.

    Args:
        seed: of the run.
        inputs: files the result depends on, such as {"manifest": "shards/manifest.json"}; their
            absolute path and SHA-256 are recorded. Of what was read from elsewhere: (place,
            SHA-256).
        command: the command line; by default that of this process.

    Raises:
        FileNotFoundError: one of `inputs` does not exist.
    """
    facts = {"seed": str(seed), "command": shlex.join(command if command else sys.orig_argv)}
    root = Path(__file__).resolve().parent.parent
    facts |= {"source.sha256": source_hash(root), **source_revision(root)}
    facts |= {f"version.{name}": version for name, version in package_versions().items()}
    facts |= host_facts()
    for name, path in (inputs or {}).items():
        where, digest = path if isinstance(path, tuple) else _hashed(Path(path))
        facts[f"input.{name}.path"], facts[f"input.{name}.sha256"] = where, digest
    return facts


def _hashed(path: Path) -> tuple[str, str]:
    return str(path.absolute()), hashlib.sha256(path.read_bytes()).hexdigest()


def source_revision(root: Path) -> dict[str, str]:
    """`git.revision` (hash or "unknown") and `git.dirty` ("true", "false", "unknown").

    A copy that Ray uploaded, and an installed package, carry no history: "unknown" is the truth.
    """
    revision = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if revision is None:
        return {"git.revision": "unknown", "git.dirty": "unknown"}
    changes = _git(root, "status", "--porcelain")
    dirty = "unknown" if changes is None else str(bool(changes)).lower()
    return {"git.revision": revision, "git.dirty": dirty}


def source_hash(root: Path) -> str:
    """SHA-256 over names and contents of the product's Python files.

    It is the same for a checkout, for its copy in a submitted job, which has no revision, and for
    an installation.
    """
    digest = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape results; one that is not installed is left out."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def host_facts() -> dict[str, str]:
    """Machine: `host.python`, `.system`, `.cpus` (usable), `.memory_gib`, `.accelerator`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "host.python": platform.python_version(),
        "host.system": f"{platform.system()} {platform.machine()}",
        "host.cpus": str(len(os.sched_getaffinity(0))),
        "host.memory_gib": f"{memory:.0f}",
        "host.accelerator": _accelerators(),
    }


def _accelerators() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"{count} x {torch.cuda.get_device_name(0)}" if count else "none"


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command, or None where git is missing or the folder is not a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
