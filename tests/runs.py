"""Configurations of runs that take seconds, and clips that a tiny network can tell apart."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import recipes as finetune_recipes
from finetune.recipes import FinetuneConfig
from launch.store import connect
from pretrain import recipes as pretrain_recipes
from pretrain.masking import MaskConfig
from pretrain.model import DecoderConfig
from pretrain.recipes import PretrainConfig
from shards import presence
from shards.augment import AugmentConfig
from shards.index import IndexRow
from shards.manifest import Manifest
from shards.stream import ClipStream
from tests.shards.make import LABELS, encode, write_folder

torch.set_num_threads(1)  # in networks this small, threads only wait for one another

ROOT = Path(__file__).resolve().parents[1]
PLAIN = AugmentConfig(crop="none")
SMALL = {"image_size": 32, "frames": 4, "patch_size": 8, "dim": 24, "depth": 2, "heads": 3}
CLIPS = {"split": "train", "streams": 4, "frames": 4, "size": 32, "loader_workers": 0}
RUN = {
    "steps": 6,
    "global_batch": 4,
    "micro_batch": 2,
    "base_lr": 8e-3,
    "min_lr": 1e-4,
    "warmup": 0.1,
    "log_every": 1,
    "save_every": 2,
    "eval_every": 0,
}


def stripes(label: int, number: int) -> bytes:
    """An mp4 of moving stripes, upright for label 0 and lying for label 1."""
    along = np.arange(64) * 2 * np.pi / 16
    waves = np.sin(along + 0.3 * np.arange(20)[:, None] + number)  # [T, w]
    pictures = np.broadcast_to(waves[:, None, :, None], (20, 64, 64, 3))
    pictures = pictures.swapaxes(1, 2) if label else pictures
    return encode((127 + 100 * pictures).astype(np.uint8))


def write_stripes(
    folder: Path, counts: Sequence[int], *, test_every: int = 0, labels: Sequence[str] = LABELS
) -> Manifest:
    """Shards of `stripes` with the labels that `write_folder` gives: in turns, from the second."""
    keys = [f"s{i}_{j}" for i, count in enumerate(counts) for j in range(count)]
    videos = {key: stripes((n + 1) % 2, n) for n, key in enumerate(keys)}
    return write_folder(folder, counts, replaced=videos, test_every=test_every, labels=labels)


def pretraining(shards: Path, output: Path, uri: str, **run) -> PretrainConfig:
    """A pretraining of a toy in this process, of 6 steps of 4 clips."""
    config = pretrain_recipes.debug()
    return replace(
        config,
        encoder=replace(config.encoder, **SMALL),
        decoder=DecoderConfig(dim=32, depth=1, heads=2),
        mask=MaskConfig(ratio=0.75),
        data=replace(config.data, shards=(str(shards),), **CLIPS),
        run=replace(config.run, **RUN | run),
        cluster=replace(config.cluster, workers=0, output=str(output)),
        tracking=replace(config.tracking, uri=uri),
    )


def finetuning(shards: Path, output: Path, uri: str, **run) -> FinetuneConfig:
    """A fine-tuning of a toy in this process, of 6 steps of 4 clips; validates on split test."""
    config = finetune_recipes.debug()
    return replace(
        config,
        encoder=replace(config.encoder, **SMALL),
        mixing=replace(config.mixing, mixup=0.0, cutmix=0.0),
        data=replace(config.data, shards=(str(shards),), augment=PLAIN, **CLIPS),
        run=replace(config.run, **RUN | {"eval_every": 2} | run),
        cluster=replace(config.cluster, workers=0, output=str(output)),
        tracking=replace(config.tracking, uri=uri),
        validation_split="test",
    )


def flags(config: PretrainConfig | FinetuneConfig) -> list[str]:
    """The command line of `pretraining` or `finetuning` on the same folders, for 2 steps."""
    sections = (("encoder", SMALL), ("data", CLIPS), ("run", RUN | {"steps": 2}))
    return [
        *("debug", "--data.shards", *config.data.shards),
        *("--cluster.output", config.cluster.output, "--cluster.workers", "0"),
        *("--tracking.uri", config.tracking.uri),
        *(f"--{name}.{key}={value}" for name, keys in sections for key, value in keys.items()),
        *(["--validation_split", "test"] if isinstance(config, FinetuneConfig) else []),
    ]


def rows(folder: Path) -> dict[str, tuple[Path, IndexRow]]:
    """Tar and index row of every sample, by key."""
    manifest = Manifest.open(folder)
    return {
        row.key: (manifest.folder / shard.name, row)
        for i, shard in enumerate(manifest.shards)
        for row in manifest.index(i)
    }


def spoil(folder: Path, *keys: str) -> None:
    """Overwrite the middle of some samples' videos; tar and index keep their sizes."""
    found = rows(folder)
    for key in keys:
        tar, row = found[key]
        with tar.open("r+b") as file:
            file.seek(row.offset + row.size // 2)
            file.write(b"\xff" * 64)


def ledger(output: Path) -> list[dict]:
    """The lines of a run's ledger."""
    return [json.loads(line) for line in (output / "ledger.jsonl").read_text().splitlines()]


def looks_at_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """From now on: the folders whose every file was looked at, as often as it was."""
    looked: list[Path] = []
    whole = presence.lost_files

    def noted(manifest: Manifest):
        looked.append(Path(str(manifest.folder)))
        return whole(manifest)

    monkeypatch.setattr(presence, "lost_files", noted)
    return looked


def logged(summary: dict, name: str) -> dict[int, float]:
    """A figure of a run as MLflow holds it, by step."""
    client = connect(summary["tracking_uri"])
    return {m.step: m.value for m in client.get_metric_history(summary["run_id"], name)}


def tree(folder: Path) -> set[str]:
    """Everything in a folder, relative to it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Interrupted(Exception):
    """The run was stopped from outside."""


class Breaking:
    """A stream that is torn away after some batches."""

    def __init__(self, stream: ClipStream, batches: int):
        self.stream, self.batches = stream, batches

    def __iter__(self):
        for served, batch in enumerate(self.stream):
            if served == self.batches:
                raise Interrupted
            yield batch

    def close(self) -> None:
        self.stream.close()


def run_until(step: int, job, config: PretrainConfig | FinetuneConfig) -> None:
    """`job.run(config)`, stopped in the middle of a step (counted from 0)."""
    whole = job.open_train

    def torn(config, *, start_step: int = 0, ledger=None, **place):
        stream = whole(config, start_step=start_step, ledger=ledger, **place)
        if ledger is None:  # looked at, not trained on
            return stream
        a_step = config.run.global_batch // config.run.micro_batch
        return Breaking(stream, (step - start_step) * a_step + a_step // 2)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(job, "open_train", torn)
        job.run(config)


@contextlib.contextmanager
def local_ray() -> Iterator[None]:
    """A Ray of two cores with its own folder, and ports of its own choosing."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets allow paths of 107 characters
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        _temp_dir=folder,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
