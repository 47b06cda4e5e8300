"""Complete configurations of pretraining runs: a recipe is a function, a variant is three lines.

Owns the composition of a run and the published numbers. What a field means stands beside the code
that reads it.
"""

from dataclasses import dataclass, replace

from launch.cluster import ClusterConfig
from launch.engine import RunConfig
from launch.tracking import PublishConfig
from mira.encoder import EncoderConfig
from pretrain.masking import MaskConfig
from pretrain.model import DecoderConfig
from shards.augment import AugmentConfig
from shards.stream import DataConfig


@dataclass(frozen=True)
class PretrainConfig:
    """A whole pretraining run."""

    encoder: EncoderConfig
    decoder: DecoderConfig
    mask: MaskConfig
    data: DataConfig
    run: RunConfig
    cluster: ClusterConfig
    tracking: PublishConfig
    validation_split: str | None = None
    """Split of the same shards on which the reconstruction loss is measured; None measures none."""

    def __post_init__(self) -> None:
        for theirs, ours in (("frames", "frames"), ("image_size", "size")):
            wanted, given = getattr(self.encoder, theirs), getattr(self.data, ours)
            if wanted != given:
                raise ValueError(
                    f"encoder.{theirs} is {wanted} but data.{ours} is {given}: set both alike"
                )
        if self.data.pair:
            raise ValueError("data.pair is for fine-tuning: pretraining takes data.frames alone")
        if self.validation_split is not None and self.data.split in (None, self.validation_split):
            raise ValueError(
                f"validation_split is {self.validation_split!r}, data.split {self.data.split!r}: "
                "measure on clips that are not trained on, for example with --data.split train"
            )


def debug() -> PretrainConfig:
    """Seconds on two CPU cores: a toy of the same parts, to see that an installation works.

    `python launch/pretrain.py debug --data.shards DIR`.
    """
    config = demo()
    return replace(
        config,
        encoder=replace(config.encoder, dim=48, depth=2, heads=2),
        decoder=DecoderConfig(dim=32, depth=1, heads=2),
        run=replace(config.run, steps=8, global_batch=4, micro_batch=2, log_every=1, save_every=4),
    )


def demo() -> PretrainConfig:
    """About a minute on two CPU cores: rendered faces, 64 px, 8 frames, a small network.

    `make demo` runs it with two workers. Expect the loss to fall (1: each patch's mean).
    """
    return PretrainConfig(
        encoder=EncoderConfig(
            image_size=64,
            frames=8,
            dim=128,
            depth=2,
            heads=2,
            attention="mira_flashlite",
            statistics="batch_ema",
        ),
        decoder=DecoderConfig(dim=96, depth=1, heads=2),
        mask=MaskConfig(ratio=0.75),
        data=DataConfig(
            shards=(),
            split="train",
            streams=4,
            frames=8,
            stride=None,
            size=64,
            loader_workers=0,
            augment=pretraining_crops(),
        ),
        run=RunConfig(
            epochs=None,
            steps=100,
            global_batch=32,
            micro_batch=16,
            base_lr=8e-3,
            min_lr=8e-4,
            warmup=0.1,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            clip_grad=1.0,
            precision="fp32",
            zero_stage=1,
            log_every=10,
            save_every=50,
            eval_every=0,
        ),
        cluster=ClusterConfig(workers=2, output="runs/pretrain"),
        tracking=PublishConfig(experiment="pretrain"),
    )


def vit_s() -> PretrainConfig:
    """ViT-S, 24.0 M parameters, VideoMAE's schedule: 800 epochs, 40 of warm-up, 1.5e-4 for 256.

    One node of 8 GPUs. `python launch/pretrain.py vit_s --data.shards DIR --cluster.workers 8`.
    """
    return _published(
        EncoderConfig(dim=384, depth=12, heads=6),
        DecoderConfig(dim=192, depth=4, heads=3),
        epochs=800,
        warmup_epochs=40,
        base_lr=1.5e-4,
        micro_batch=64,
    )


def vit_b() -> PretrainConfig:
    """ViT-B, 94.2 M parameters, MiRA's schedule: 301 epochs, 20 of warm-up, 1.5e-4 for 256.

    The published run is on VoxCeleb2 (1.09 M clips) and fine-tunes to 65.1 UAR on DFEW. 64 GPUs:
    `ray job submit --working-dir . -- python launch/pretrain.py vit_b --data.shards DIR
    --cluster.workers 64 --cluster.output /shared/runs/vit_b`.
    """
    return _published(
        EncoderConfig(dim=768, depth=12, heads=12),
        DecoderConfig(dim=384, depth=4, heads=6),
        epochs=301,
        warmup_epochs=20,
        base_lr=1.5e-4,
        micro_batch=16,
    )


def vit_l() -> PretrainConfig:
    """ViT-L, 343 M parameters, a decoder of 12 blocks, 201 epochs, 20 of warm-up, 7e-5 for 256.

    64 GPUs: `… launch/pretrain.py vit_l --data.shards DIR --cluster.workers 64`.
    """
    return _published(
        EncoderConfig(dim=1024, depth=24, heads=16, checkpoint_blocks=True),
        DecoderConfig(dim=512, depth=12, heads=8),
        epochs=201,
        warmup_epochs=20,
        base_lr=7e-5,
        micro_batch=16,
    )


def vit_h() -> PretrainConfig:
    """ViT-H, 692 M parameters, a decoder of 12 blocks, 201 epochs, 20 of warm-up, 8e-5 for 256.

    64 GPUs: `… launch/pretrain.py vit_h --data.shards DIR --cluster.workers 64`. The published
    ViT-H fine-tunes to 68.25 UAR on DFEW.
    """
    return _published(
        EncoderConfig(dim=1280, depth=32, heads=16, checkpoint_blocks=True),
        DecoderConfig(dim=640, depth=12, heads=8),
        epochs=201,
        warmup_epochs=20,
        base_lr=8e-5,
        micro_batch=8,
    )


RECIPES = {f.__name__: f for f in (debug, demo, vit_s, vit_b, vit_l, vit_h)}


def pretraining_crops() -> AugmentConfig:
    """VideoMAE's: multi-scale crops, no flip, no colour."""
    return AugmentConfig(
        crop="multi_scale", flip=0.0, randaugment_ops=0, erase=0.0, colour_jitter=0.0
    )


def _published(
    encoder: EncoderConfig,
    decoder: DecoderConfig,
    *,
    epochs: float,
    warmup_epochs: float,
    base_lr: float,
    micro_batch: int,
) -> PretrainConfig:
    """What all sizes share: 16 frames of 224 px at stride 4, 90 % tubes, AdamW (0.9, 0.95).

    MiRA FlashLite in every block with statistics smoothed over steps; plain VideoMAE is
    `--encoder.attention sdpa --encoder.statistics instance`.
    """
    return PretrainConfig(
        encoder=replace(encoder, attention="mira_flashlite", statistics="batch_ema"),
        decoder=decoder,
        mask=MaskConfig(ratio=0.9),
        data=DataConfig(
            shards=(),
            streams=64,
            frames=16,
            stride=4,
            size=224,
            loader_workers=10,
            augment=pretraining_crops(),
        ),
        run=RunConfig(
            epochs=epochs,
            steps=None,
            global_batch=1024,
            micro_batch=micro_batch,
            base_lr=base_lr,
            min_lr=1e-5,
            warmup=warmup_epochs / epochs,
            weight_decay=0.05,
            betas=(0.9, 0.95),
            clip_grad=None,
            precision="bf16",
            zero_stage=1,
            log_every=20,
            save_every=2000,
            eval_every=0,
        ),
        cluster=ClusterConfig(
            workers=8, gpus_per_worker=1, cpus_per_worker=12, output=f"runs/vit-{encoder.dim}"
        ),
        tracking=PublishConfig(experiment="pretrain"),
    )
