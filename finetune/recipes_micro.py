"""Complete configurations of runs on micro-expressions: HSTA and FaceSleuth-R.

Owns their published numbers. Both look at onset and apex, so the shards should know them
(`python -m shards ingest` with an adapter, or columns `onset`, `apex`); of a clip that does not,
the first and the middle frame are taken.
"""

from dataclasses import replace

from finetune.config import FinetuneConfig
from finetune.mixing import MixConfig
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from launch.cluster import ClusterConfig
from launch.engine import RunConfig
from launch.tracking import PublishConfig
from shards.augment import AugmentConfig
from shards.config import DataConfig


def hsta() -> FinetuneConfig:
    """HSTA, 82 M parameters, 150 epochs at 5e-4 for 256, batch 32. One GPU, an hour or two a fold.

    As published: 6 frames and the pair in RGB at 224 px, layer decay 0.9, dropout and drop path
    0.2, classes equally often. The published CASME3 figures are of folds that share subjects. With
    MiRA in the video branch: `--encoder.attention mira_flashlite`; with flow in place of onset and
    apex: `--encoder.special_frames 1`. `python launch/finetune.py hsta --data.shards DIR`.
    """
    return FinetuneConfig(
        encoder=HstaConfig(dropout=0.2, drop_path=0.2),
        data=_data(frames=6, size=224),
        mixing=MixConfig(mixup=0.0, cutmix=0.0),
        run=_run(),
        cluster=ClusterConfig(
            workers=1, gpus_per_worker=1, cpus_per_worker=12, output="runs/finetune-hsta"
        ),
        tracking=PublishConfig(experiment="finetune"),
        layer_decay=0.9,
    )


def hsta_debug() -> FinetuneConfig:
    """Seconds on two CPU cores: a small HSTA of the same parts.

    `python launch/finetune.py hsta_debug --data.shards DIR`.
    """
    small = HstaConfig(
        image_size=48, dim=24, special_dim=16, heads=2, stages=2, dropout=0.0, drop_path=0.0
    )
    return _debug(replace(hsta(), encoder=small, data=_data(frames=6, size=48)))


def facesleuth() -> FinetuneConfig:
    """FaceSleuth-R, onset and apex at 224 px, θ learnt at ten times the rate. One GPU.

    Depths 2-2-6 and heads 4-8-16 are the paper's; its training is not public: rate, length,
    regularisation and sampling are those of `hsta`. Every θ is logged, modulo π. With flow:
    `--encoder.motion flow`; with predicted action units: `--encoder.action_units predicted
    --encoder.units 1 2 4 12`. `python launch/finetune.py facesleuth --data.shards DIR`.
    """
    return FinetuneConfig(
        encoder=FaceSleuthConfig(dropout=0.2, drop_path=0.2),
        data=_data(frames=0, size=224),
        mixing=MixConfig(mixup=0.0, cutmix=0.0),
        run=_run(),
        cluster=ClusterConfig(
            workers=1, gpus_per_worker=1, cpus_per_worker=12, output="runs/finetune-facesleuth"
        ),
        tracking=PublishConfig(experiment="finetune"),
        layer_decay=0.9,
    )


def facesleuth_debug() -> FinetuneConfig:
    """Seconds on two CPU cores: a small FaceSleuth-R of the same parts.

    `python launch/finetune.py facesleuth_debug --data.shards DIR`.
    """
    small = FaceSleuthConfig(
        image_size=48, dims=(8, 16, 24), depths=(1, 1, 2), heads=(1, 2, 2), window=3
    )
    return _debug(replace(facesleuth(), encoder=small, data=_data(frames=0, size=48)))


def _data(*, frames: int, size: int) -> DataConfig:
    """Frames spread over the clip, onset and apex, classes equally often, hardly any change.

    Movements are small and their place tells the class: crops stay close to the whole face.
    """
    return DataConfig(
        shards=(),
        split="train",
        balance=1.0,
        streams=32,
        frames=frames,
        stride=None,
        size=size,
        pair=True,
        loader_workers=10,
        augment=AugmentConfig(crop="resized", area=(0.8, 1.0), aspect=(0.9, 1.1), flip=0.5),
    )


def _run() -> RunConfig:
    return RunConfig(
        epochs=150,
        steps=None,
        global_batch=32,
        micro_batch=32,
        base_lr=5e-4,
        min_lr=1e-6,
        warmup=5 / 150,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        clip_grad=None,
        precision="bf16",
        zero_stage=1,
        log_every=10,
        save_every=500,
        eval_every=200,
    )


def _debug(config: FinetuneConfig) -> FinetuneConfig:
    """A few steps in one or two workers without a GPU."""
    return replace(
        config,
        data=replace(config.data, streams=4, loader_workers=0),
        run=replace(
            config.run,
            epochs=None,
            steps=8,
            global_batch=4,
            micro_batch=2,
            base_lr=0.1,
            min_lr=1e-3,
            precision="fp32",
            clip_grad=1.0,
            log_every=1,
            save_every=4,
            eval_every=4,
        ),
        cluster=ClusterConfig(workers=0, output=config.cluster.output),
        layer_decay=1.0,
    )
