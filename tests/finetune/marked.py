"""Rendered clips with people, onset, apex and offset, as a folder of shards."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from shards.index import index_shard
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest, write_manifest
from shards.render import ClipSpec, Expression, Face, Scene, render_clip
from tests.finetune.rendered import FRAMES, LABELS
from tests.shards.make import encode, record, write_tar

PEOPLE = 6
"""The last two are of split test."""


def write_marked(folder: Path, *, people: int = PEOPLE, source: str = "annotated") -> Manifest:
    """Two clips a person, one of each label, whose motion covers the middle half."""
    folder.mkdir(parents=True)
    frames = FRAMES
    samples = []
    for number in range(2 * people):
        who, label = number // 2, LABELS[number % 2]
        rng = np.random.default_rng(number)
        expression = Expression.sample(label, 1.0, frames=frames, fps=25, rng=rng)
        scene = Scene.sample(who, number, seconds=frames / 25)
        spec = ClipSpec(Face.from_seed(who), scene, expression, frames, 25, (64, 64))
        facts = record(
            f"clip{number}",
            dataset="rendered",
            subject_id=f"p{who}",
            label=label,
            num_frames=frames,
            onset=frames // 4,
            apex=frames // 2,
            offset=frames * 3 // 4,
            apex_source=source,
            split="test" if who >= people - 2 else "train",
        )
        samples.append((facts, encode(np.asarray(render_clip(spec)))))
    path = folder / "shard-000000.tar"
    write_tar(path, samples)
    return write_manifest(
        folder,
        [index_shard(path)],
        labels=LABELS,
        clip=asdict(IngestSettings()),
        created_by={"test": "1"},
    )
