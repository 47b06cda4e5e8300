"""Complete configurations of fine-tuning runs: a recipe is a function, a variant is three lines.

Owns the published numbers of video transformers; those for micro-expressions are in
`recipes_micro.py`. What a field means stands beside the code that reads it.
"""

from dataclasses import replace

from finetune.config import FinetuneConfig
from finetune.mixing import MixConfig
from finetune.recipes_micro import facesleuth, facesleuth_debug, hsta, hsta_debug
from launch.cluster import ClusterConfig
from launch.engine import RunConfig
from launch.tracking import PublishConfig
from mira.encoder import EncoderConfig
from shards.augment import AugmentConfig, ViewConfig
from shards.stream import DataConfig


def debug() -> FinetuneConfig:
    """Seconds on two CPU cores: a toy of the same parts, to see that an installation works.

    `python launch/finetune.py debug --data.shards DIR [--init ENCODER]`.
    """
    config = demo()
    return replace(
        config,
        encoder=replace(config.encoder, dim=48, depth=2, heads=2),
        run=replace(
            config.run,
            steps=8,
            global_batch=4,
            micro_batch=2,
            log_every=1,
            save_every=4,
            eval_every=4,
        ),
    )


def demo() -> FinetuneConfig:
    """About two minutes on two CPU cores: the encoder of the demo's pretraining, with FlashLite.

    `make demo` runs it with two workers and tests on persons it has not seen.
    """
    return FinetuneConfig(
        encoder=EncoderConfig(
            image_size=64,
            frames=8,
            dim=128,
            depth=2,
            heads=2,
            attention="mira_flashlite",
        ),
        data=DataConfig(
            shards=(),
            split="train",
            streams=4,
            frames=8,
            stride=None,
            size=64,
            loader_workers=0,
            augment=AugmentConfig(crop="none", flip=0.5),
        ),
        mixing=MixConfig(mixup=0.0, cutmix=0.0),
        run=RunConfig(
            epochs=None,
            steps=450,
            global_batch=32,
            micro_batch=16,
            base_lr=8e-3,
            min_lr=8e-5,
            warmup=0.1,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=1.0,
            precision="fp32",
            zero_stage=1,
            log_every=10,
            save_every=150,
            eval_every=150,
        ),
        cluster=ClusterConfig(workers=2, output="runs/finetune"),
        tracking=PublishConfig(experiment="finetune"),
        layer_decay=1.0,
    )


def vit_s() -> FinetuneConfig:
    """ViT-S, 22 M parameters, 100 epochs. One node of 8 GPUs.

    `python launch/finetune.py vit_s --data.shards DIR --init models:/encoder@champion`.
    """
    return _published(EncoderConfig(dim=384, depth=12, heads=6), base_lr=1e-3, micro_batch=16)


def vit_b() -> FinetuneConfig:
    """ViT-B, 86 M parameters, 100 epochs at 1e-3 for 256: MiRA-B.

    Published: 65.11 UAR on DFEW with FlashLite, 65.29/75.86 UAR/WAR exact (5-fold means). One node
    of 8 GPUs. `python launch/finetune.py vit_b --data.shards DIR --init models:/encoder@champion`.
    """
    return _published(EncoderConfig(dim=768, depth=12, heads=12), base_lr=1e-3, micro_batch=8)


def vit_l() -> FinetuneConfig:
    """ViT-L, 304 M parameters, 100 epochs. Two nodes of 8 GPUs.

    `… launch/finetune.py vit_l --data.shards DIR --init ENCODER --cluster.workers 16`.
    """
    config = _published(
        EncoderConfig(dim=1024, depth=24, heads=16, checkpoint_blocks=True),
        base_lr=1e-3,
        micro_batch=4,
    )
    return replace(config, cluster=replace(config.cluster, workers=16))


def vit_h() -> FinetuneConfig:
    """ViT-H, 632 M parameters, 100 epochs at 1.5e-3 for 256: MiRA-H.

    Published with FlashLite: 68.25/78.24 UAR/WAR on DFEW, 45.12/55.64 on FERV39k, 48.22/61.45 on
    MAFW. `… launch/finetune.py vit_h --data.shards DIR --init ENCODER --cluster.workers 16`.
    """
    config = _published(
        EncoderConfig(dim=1280, depth=32, heads=16, checkpoint_blocks=True),
        base_lr=1.5e-3,
        micro_batch=2,
    )
    return replace(config, cluster=replace(config.cluster, workers=16))


RECIPES = {
    f.__name__: f
    for f in (debug, demo, vit_s, vit_b, vit_l, vit_h)
    + (hsta, hsta_debug, facesleuth, facesleuth_debug)
}


def _published(encoder: EncoderConfig, *, base_lr: float, micro_batch: int) -> FinetuneConfig:
    """What all sizes share: 16 frames of 224 px, stride 4, FlashLite with a clip's own statistics.

    Layer decay 0.75, mixup 0.8, CutMix 1, smoothing 0.1, RandAugment m7 n4, erasing 0.25, drop
    path 0.1, 5 of 100 epochs of warm-up. Exact MiRA is `--encoder.attention mira_exact`.
    """
    return FinetuneConfig(
        encoder=replace(encoder, attention="mira_flashlite", drop_path=0.1),
        data=DataConfig(
            shards=(),
            split="train",
            streams=64,
            frames=16,
            stride=4,
            size=224,
            loader_workers=10,
            augment=AugmentConfig(
                crop="resized",
                flip=0.5,
                randaugment_ops=4,
                randaugment_magnitude=7.0,
                erase=0.25,
                colour_jitter=0.0,
            ),
            views=ViewConfig(temporal=2, spatial=1),
        ),
        mixing=MixConfig(),
        run=RunConfig(
            epochs=100,
            steps=None,
            global_batch=128,
            micro_batch=micro_batch,
            base_lr=base_lr,
            min_lr=1e-6,
            warmup=0.05,
            weight_decay=0.05,
            betas=(0.9, 0.999),
            clip_grad=None,
            precision="bf16",
            zero_stage=1,
            log_every=20,
            save_every=1000,
            eval_every=500,
        ),
        cluster=ClusterConfig(
            workers=8, gpus_per_worker=1, cpus_per_worker=12, output=f"runs/finetune-{encoder.dim}"
        ),
        tracking=PublishConfig(experiment="finetune"),
    )
