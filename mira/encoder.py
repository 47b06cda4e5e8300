"""The video encoder: its configuration, and what a clip passes through.

Owns the sizes, which block attends how, and which tokens are encoded. It knows no objective, no
files and no data; the layers are in `blocks.py`. Layout and defaults: VideoMAE, NeurIPS 2022
(arXiv 2203.12602).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.backends import BackendName
from kernels.marginals import POOLS, MiraConstants, Statistics
from mira.blocks import LAYER_NORM_EPS, Attention, Block, PatchEmbed, replaying
from mira.cores import AttentionName, core
from mira.tubelets import Grid, sinusoids, token_positions


@dataclass(frozen=True)
class EncoderConfig:
    """Size of the encoder and how it attends; the defaults are ViT-B on 16 frames of 224 px."""

    image_size: int = 224
    """Height and width of a clip in pixels; a multiple of patch_size."""
    frames: int = 16
    """Video frames in a clip; a multiple of tubelet."""
    patch_size: int = 16
    """Height and width of a token in pixels."""
    tubelet: int = 2
    """Video frames in a token."""
    channels: int = 3
    """Colour channels."""
    dim: int = 768
    """Embedding dim; a multiple of heads."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden size of a block's MLP as a multiple of dim."""
    attention: AttentionName = "sdpa"
    """Attention core: sdpa (plain), mira_exact, mira_flashlite."""
    backend: BackendName | None = None
    """What computes MiRA attention: triton, sdpa, flash_attn, reference; None: Triton on CUDA, else
    SDPA."""
    mira_layers: int | None = None
    """How many of the last blocks use MiRA, the others being plain; None means all."""
    statistics: Statistics = "instance"
    """Where MiRA's frame statistics come from while training; instance in evaluation, too."""
    drop_path: float = 0.0
    """Largest rate of dropped residual branches; it grows linearly from 0 with depth."""
    constants: MiraConstants = field(default_factory=MiraConstants)
    """Constants of MiRA."""
    eval_statistics: Literal["instance", "batch"] = "instance"
    """What the others use in evaluation; `batch` is as published: clips then affect one another."""
    layer_norm_eps: float = LAYER_NORM_EPS
    """Added to the variance in every LayerNorm; 1e-6 as published, 1e-5 in MARLIN's weights."""
    checkpoint_blocks: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    pair: ClassVar[bool] = False
    """Whether onset and apex follow the frames of a clip."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """What the network takes beside the clip."""

    def __post_init__(self) -> None:
        core(self.attention)
        for name, unit in (("image_size", "patch_size"), ("frames", "tubelet"), ("dim", "heads")):
            whole, part = getattr(self, name), getattr(self, unit)
            if part < 1 or whole < part or whole % part:
                raise ValueError(
                    f"EncoderConfig.{name}={whole} must be a positive multiple of {unit}={part}"
                )
        if self.depth < 1 or self.channels < 1 or self.mlp_ratio <= 0:
            raise ValueError("EncoderConfig.depth, channels and mlp_ratio must be positive")
        if not 0.0 < self.layer_norm_eps < 1.0:
            raise ValueError(f"EncoderConfig.layer_norm_eps={self.layer_norm_eps} must be small")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"EncoderConfig.drop_path={self.drop_path} must lie in [0, 1)")
        if self.backend is not None and self.backend not in get_args(BackendName):
            raise ValueError(
                f"EncoderConfig.backend={self.backend!r} does not exist; choose one of "
                f"{', '.join(get_args(BackendName))}"
            )
        if self.statistics not in (*POOLS, "batch_ema"):
            raise ValueError(
                f"EncoderConfig.statistics={self.statistics!r} does not exist; choose instance, "
                "batch or batch_ema"
            )
        if self.eval_statistics not in POOLS:
            raise ValueError(
                f"EncoderConfig.eval_statistics={self.eval_statistics!r} does not exist; choose "
                "instance or batch"
            )
        if self.mira_layers is not None and not 0 <= self.mira_layers <= self.depth:
            raise ValueError(
                f"EncoderConfig.mira_layers={self.mira_layers} must lie in 0 … depth={self.depth}"
            )

    @property
    def grid(self) -> Grid:
        """The tubelets of a clip."""
        side = self.image_size // self.patch_size
        return Grid(
            frames=self.frames // self.tubelet,
            rows=side,
            columns=side,
            tubelet=self.tubelet,
            patch=self.patch_size,
            channels=self.channels,
        )

    def core_of(self, block: int) -> AttentionName:
        """Which core block `block` (from 0) uses."""
        last = self.depth if self.mira_layers is None else self.mira_layers
        return self.attention if block >= self.depth - last else "sdpa"

    def identity(self) -> dict[str, Any]:
        """The fields as plain values, without those that change how it is computed, not what."""
        return {k: v for k, v in asdict(self).items() if k not in ("backend", "checkpoint_blocks")}

    @property
    def framewise(self) -> bool:
        """Whether any block reads the frame structure, so that frames must keep equal tokens."""
        return any(core(self.core_of(block)).framewise for block in range(self.depth))


class Trunk(nn.Module):
    """Tubelet embedding, fixed positions and blocks: what every network on tokens starts with.

    Args:
        config: see `EncoderConfig`.
    """

    positions: Tensor  # [N, E], not in the state dict

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        grid = config.grid
        self.patch_embed = PatchEmbed(grid, config.dim)
        self.register_buffer("positions", sinusoids(grid.tokens, config.dim), persistent=False)
        self.blocks = nn.ModuleList(_block(config, index) for index in range(config.depth))
        initialise(self.blocks)

    def embed(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tubelet embeddings with positions.

        Args:
            x: [B, C, T, h, w], normalised.
            visible: int64 [B, M] ascending token positions, or bool [B, N] true where visible and
                with as many in every clip, best on the CPU; None embeds all.

        Returns:
            [B, M, E].

        Raises:
            ValueError: clips of another shape, or with a framewise core a mask that does not leave
                as many tokens in every frame.
        """
        if visible is None:
            return self.patch_embed(x) + self.positions
        visible = token_positions(visible) if visible.dtype == torch.bool else visible
        if self.config.framewise:
            _check_frames(visible, self.config.grid)
        visible = visible.to(x.device, non_blocking=True)
        return self.patch_embed(x, visible) + self.positions[visible]

    def run(self, tokens: Tensor, blocks: int, *, importance: list[Tensor] | None = None) -> Tensor:
        """Pass tokens [B, M, E] through the first `blocks` blocks."""
        for index in range(blocks):
            tokens = self.run_block(index, tokens, importance=importance)
        return tokens

    def run_block(
        self,
        index: int,
        tokens: Tensor,
        *,
        pooled: bool = False,
        importance: list[Tensor] | None = None,
    ) -> Tensor:
        """One block, recomputed in the backward pass if the configuration says so.

        Args:
            pooled: return the mean over tokens.
            importance: receives the block's frame importance [B, F] if it is one that
                `frame_importance` averages.

        Returns:
            [B, M, E], or with `pooled` [B, E].
        """
        block = cast(Block, self.blocks[index])
        run = block.pooled if pooled else block
        if importance is not None:
            return run(tokens, importance=importance if self._reports(index) else None)
        if not (self.config.checkpoint_blocks and torch.is_grad_enabled()):
            return run(tokens)
        return _recomputed(run, block.attn, tokens)

    @torch.no_grad()
    def frame_importance(self, x: Tensor) -> Tensor:
        """How much each frame counts, [B, F], float32, sums to 1; F = frames / tubelet.

        The mean over MiRA layers of their frame-marginal importance π (arXiv 2606.30611). A plain
        network has none: there it is the share of attention that a frame's tokens receive in the
        last block, averaged over heads and queries.

        Args:
            x: [B, C, T, h, w], normalised.
        """
        found: list[Tensor] = []
        self.run(self.embed(x), self.config.depth, importance=found)
        return mean_importance(found)

    def _reports(self, index: int) -> bool:
        config = self.config
        framewise = core(config.core_of(index)).framewise
        return framewise or (not config.framewise and index == config.depth - 1)


class Encoder(Trunk):
    """Clips to tokens. Its state dict is the public VideoMAE encoder layout without prefix.

    Args:
        config: see `EncoderConfig`.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Clips [B, C, T, h, w] to tokens [B, M, E]; arguments and errors are those of `embed`."""
        return self.norm(self.run(self.embed(x, visible), self.config.depth))


def mean_importance(found: list[Tensor]) -> Tensor:
    """The mean over layers of frame importance [B, F], float32."""
    return torch.stack(found).float().mean(0)


def initialise(module: nn.Module) -> None:
    """Xavier-uniform matrices and zero biases in every linear layer, as VideoMAE pretrains from."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _block(config: EncoderConfig, index: int) -> Block:
    attention = Attention(
        config.dim,
        config.heads,
        attention=config.core_of(index),
        frames=config.grid.frames,
        statistics=config.statistics,
        eval_statistics=config.eval_statistics,
        constants=config.constants,
        backend=config.backend,
    )
    rate = config.drop_path * index / max(config.depth - 1, 1)
    return Block(
        config.dim,
        attention,
        mlp_ratio=config.mlp_ratio,
        drop_path=rate,
        eps=config.layer_norm_eps,
    )


def _recomputed(run: Callable[[Tensor], Tensor], attention: Attention, tokens: Tensor) -> Tensor:
    """Checkpoint a block whose second run must see the moving average that its first run used."""
    if attention.statistics != "batch_ema" or not attention.core.framewise:
        return cast(Tensor, checkpoint(run, tokens, use_reentrant=False))  # compilers know this one
    averages: list[Tensor] = []

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), replaying(averages)

    out = checkpoint(run, tokens, use_reentrant=False, context_fn=contexts)
    averages.append(attention.c_buf.clone())
    return out


def _check_frames(visible: Tensor, grid: Grid) -> None:
    """ValueError unless every frame keeps as many tokens, in frame-major order."""
    share, rest = divmod(visible.shape[1], grid.frames)
    frame = torch.arange(grid.frames, device=visible.device).repeat_interleave(share)
    if rest or not bool((visible // grid.per_frame == frame).all()):
        raise ValueError(
            "MiRA attention needs as many visible tokens in every frame, in frame order; this mask "
            "leaves unequal numbers. Use a tube mask (one spatial mask for all frames), or "
            "attention='sdpa'"
        )
