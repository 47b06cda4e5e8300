"""The networks that `benchmarks.recognition` compares, at the size of two cores and at full size.

Owns their sizes, the people they see, and the one budget: every network sees the same clips for the
same number of steps with the same optimiser. It runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from finetune.config import FinetuneConfig
from finetune.mixing import MixConfig
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from finetune.recipes import RECIPES
from launch.cluster import ClusterConfig
from launch.engine import RunConfig
from launch.tracking import PublishConfig
from mira.cores import AttentionName
from mira.encoder import EncoderConfig
from shards.augment import AugmentConfig
from shards.config import DataConfig

CORES: dict[str, AttentionName] = {
    "plain": "sdpa",
    "mira_exact": "mira_exact",
    "mira_flashlite": "mira_flashlite",
}
"""Attention cores of the video transformers: nothing else differs between these."""
HSTAS: dict[str, AttentionName] = {"hsta": "sdpa", "hsta_flashlite": "mira_flashlite"}
"""Attention cores of HSTA's video branch."""
MODELS = (*CORES, *HSTAS, "facesleuth")


STRENGTHS = ("1", "0.5", "0.3", "0.15")
"""Of the expressions that networks are tested on; 0.3 and below are brief, as micro-expressions."""


@dataclass(frozen=True)
class Part:
    """A set of rendered people, and how long a network is trained on it."""

    people: int
    clips: int
    """Of each person."""
    fps: float
    strengths: tuple[str, ...]
    seed: int
    """Of the people: another one, other people."""
    steps: int
    rate: float
    """For 256 clips a step; the full scale takes that of each network's recipe."""


@dataclass(frozen=True)
class Scale:
    """How large a comparison is."""

    name: Literal["small", "full"]
    picture: int
    """Pixels a side of the rendered videos."""
    size: int
    """Pixels a side of the stored crops."""
    first: Part
    """Expressions at full strength, of people who are in no test."""
    then: Part
    """Expressions of four strengths."""
    folds: int
    """By person: each is the test of networks that were trained on the others."""
    seeds: int
    """Trainings of every network, each on both sets."""


SCALES = {
    "small": Scale(
        *("small", 256, 64),
        first=Part(people=400, clips=7, fps=8, strengths=("1",), seed=8, steps=600, rate=2.4e-2),
        then=Part(people=600, clips=7, fps=16, strengths=STRENGTHS, seed=7, steps=120, rate=8e-3),
        folds=2,
        seeds=5,
    ),
    "full": Scale(
        *("full", 640, 256),
        first=Part(people=400, clips=7, fps=25, strengths=("1",), seed=8, steps=3000, rate=0),
        then=Part(people=100, clips=56, fps=100, strengths=STRENGTHS, seed=7, steps=6000, rate=0),
        folds=5,
        seeds=5,
    ),
}


def config_of(model: str, part: Part, scale: str) -> FinetuneConfig:
    """The configuration of one training of a network, without the clips' place and seeds."""
    return _small(model, part) if scale == "small" else _full(model, part.steps)


def _small(model: str, part: Part) -> FinetuneConfig:
    """About a million parameters, 64 px, one process without a GPU."""
    encoder: EncoderConfig | HstaConfig | FaceSleuthConfig
    if model in CORES:
        encoder = EncoderConfig(
            image_size=64, frames=8, dim=128, depth=2, heads=4, attention=CORES[model]
        )
    elif model in HSTAS:
        encoder = HstaConfig(
            image_size=64,
            frames=6,
            dim=96,
            special_dim=64,
            heads=4,
            stages=2,
            special_patch=8,
            special_frames=1,  # flow from onset to apex: from two pictures it learns too slowly
            attention=HSTAS[model],
        )
    else:
        encoder = FaceSleuthConfig(
            image_size=64, dims=(32, 64, 128), depths=(1, 1, 2), heads=(2, 4, 8), window=4
        )
    return FinetuneConfig(
        encoder=encoder,
        data=DataConfig(
            shards=(),
            balance=1.0,
            streams=4,
            frames=encoder.frames,
            stride=None,
            size=64,
            pair=encoder.pair,
            loader_workers=0,
            augment=AugmentConfig(crop="none", flip=0.5),
        ),
        mixing=MixConfig(mixup=0.0, cutmix=0.0),
        run=RunConfig(
            epochs=None,
            steps=part.steps,
            global_batch=32,
            micro_batch=32,
            base_lr=part.rate,
            min_lr=part.rate / 100,
            warmup=0.1,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=1.0,
            precision="fp32",
            zero_stage=1,
            log_every=10,
            save_every=part.steps,
            eval_every=part.steps,
        ),
        cluster=ClusterConfig(workers=0),
        tracking=PublishConfig(experiment="recognition"),
        layer_decay=1.0,
    )


def _full(model: str, steps: int) -> FinetuneConfig:
    """The published recipes at 224 px on one GPU a fold, with one length and one sampling."""
    recipe = "vit_s" if model in CORES else "hsta" if model in HSTAS else model
    config = RECIPES[recipe]()
    if core := (CORES | HSTAS).get(model):
        config = replace(config, encoder=replace(config.encoder, attention=core))
    return replace(
        config,
        data=replace(config.data, balance=1.0, stride=None, streams=32),
        mixing=MixConfig(mixup=0.0, cutmix=0.0),
        run=replace(
            config.run, epochs=None, steps=steps, global_batch=32, micro_batch=32, save_every=1000
        ),
        cluster=ClusterConfig(workers=0, gpus_per_worker=1, cpus_per_worker=12),
        tracking=PublishConfig(experiment="recognition"),
    )
