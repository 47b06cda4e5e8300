"""Shards of rendered clips with everything annotated that a network may learn from, small."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from finetune import recipes
from finetune.config import FinetuneConfig
from shards.manifest import Manifest
from shards.render import ClipSpec, Expression, Face, Scene, render_clip
from tests.finetune.rendered import FRAMES, LABELS
from tests.shards.make import encode, record, write_samples

SIZE = 64
UNITS = ("6", "12", "26")
AFFECT = {"happiness": (0.8, 0.2), "surprise": (0.1, 0.9)}
RUN = {"steps": 4, "global_batch": 4, "micro_batch": 2, "save_every": 4, "eval_every": 4}


def write_annotated(
    folder: Path, *, train: int, test: int, strength: float = 1.0, **facts
) -> Manifest:
    """Two clips, of one expression each, of every person; the last `test` people are of split test.

    `facts` replaces fields of every record.
    """
    samples = []
    for person in range(train + test):
        split = "train" if person < train else "test"
        for which, label in enumerate(LABELS):
            seed = 2 * person + which
            expression = Expression.sample(
                label, strength, frames=FRAMES, fps=25, rng=np.random.default_rng(seed)
            )
            spec = ClipSpec(
                Face.from_seed(person),
                Scene.sample(person, seed, seconds=FRAMES / 25),
                expression,
                FRAMES,
                25,
                (SIZE, SIZE),
            )
            valence, arousal = AFFECT[label]
            known = {
                "label": label,
                "subject_id": f"p{person}",
                "split": split,
                "num_frames": FRAMES,
                "onset": expression.onset,
                "apex": expression.apex,
                "apex_source": "annotated",
                "action_units": tuple(expression.action_units.split("+")),
                "votes": {label: 3, LABELS[1 - which]: 1},
                "valence": valence,
                "arousal": arousal,
            }
            samples.append((record(f"c{seed:03d}", **known | facts), encode(render_clip(spec))))
    return write_samples(folder, [samples], labels=LABELS)


def training(name: str, shards: Path, output: Path, **run) -> FinetuneConfig:
    """A run of a recipe in this process, of 4 steps of 4 clips; validates on split test."""
    config = getattr(recipes, name)()
    return replace(
        config,
        data=replace(config.data, shards=(str(shards),), streams=4, loader_workers=0),
        run=replace(config.run, log_every=1, **RUN | run),
        cluster=replace(config.cluster, workers=0, output=str(output)),
        tracking=replace(config.tracking, uri=f"sqlite:///{output.parent / 'mlflow.db'}"),
        validation_split="test",
    )
