"""HSTA, hierarchical space-time attention on a video and its onset-apex pair (arXiv 2405.03202).

Owns the network: two branches of transformer blocks (USTA) whose class tokens look at each other's
patch tokens after every stage (CSTA), and the head on both. It knows no loss, data or metric.
Blocks are `mira.blocks`, attention around class tokens `class_tokens.py`; the class token is first
in a branch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.class_tokens import ClassAttention, Exchange, exchange_flops
from finetune.models.hsta_config import HstaConfig
from finetune.models.pairs import split_pair
from mira.blocks import LAYER_NORM_EPS, Block, PatchEmbed
from mira.encoder import initialise, mean_importance
from mira.flops import block_flops
from mira.tubelets import Grid, sinusoids

__all__ = ["Hsta", "HstaConfig"]


class Stage(nn.Module):
    """USTA in either branch, then CSTA; both class tokens look before either is replaced.

    Args:
        config: see `HstaConfig`.
        index: of the stage, from 0; decides the rates of drop path.
    """

    def __init__(self, config: HstaConfig, index: int):
        super().__init__()
        first = index * config.video_blocks
        self.special = nn.ModuleList(
            _block(config, first, video=False) for _ in range(config.special_blocks)
        )
        self.video = nn.ModuleList(
            _block(config, first + i, video=True) for i in range(config.video_blocks)
        )
        self.special_asks = Exchange(config.special_dim, config.dim, config.heads)
        self.video_asks = Exchange(config.dim, config.special_dim, config.heads)

    def forward(
        self, special: Tensor, video: Tensor, *, importance: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [B, 1 + Ns, Es] and [B, 1 + N, E] to the same; importance of the video blocks."""
        for block in self.special:
            special = block(special)
        for block in self.video:
            video = block(video, importance=importance)
        own = self.special_asks(special[:, :1], video[:, 1:])
        other = self.video_asks(video[:, :1], special[:, 1:])
        return torch.cat([own, special[:, 1:]], 1), torch.cat([other, video[:, 1:]], 1)


class Branch(nn.Module):
    """What turns pictures into tokens: tubelet embedding, class token, fixed positions."""

    positions: Tensor  # [1 + N, E], not in the state dict

    def __init__(self, grid: Grid, dim: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.patch_embed = PatchEmbed(grid, dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.register_buffer("positions", sinusoids(1 + grid.tokens, dim), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, h, w] to [B, 1 + N, E]."""
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), self.patch_embed(x)], 1)
        return functional.dropout(tokens + self.positions, self.dropout, self.training)


class Hsta(nn.Module):
    """The network: clip and pair to logits.

    Args:
        config: see `HstaConfig`.
        num_classes: logits a clip.
    """

    def __init__(self, config: HstaConfig, num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be positive")
        self.config, self.num_classes = config, num_classes
        self.special = Branch(config.special_grid, config.special_dim, config.dropout)
        self.video = Branch(config.grid, config.dim, config.dropout)
        self.stages = nn.ModuleList(Stage(config, index) for index in range(config.stages))
        initialise(self.stages)
        self.special_norm = nn.LayerNorm(config.special_dim, eps=LAYER_NORM_EPS)
        self.video_norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(config.special_dim + config.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        x: Tensor,
        pair: Tensor | None = None,
        *,
        flow: Tensor | None = None,
        importance: list[Tensor] | None = None,
    ) -> Tensor:
        """Logits [B, num_classes]; the arguments are those of `features`."""
        return self.classify(self.features(x, pair, flow=flow, importance=importance))

    def features(
        self,
        x: Tensor,
        pair: Tensor | None = None,
        *,
        flow: Tensor | None = None,
        importance: list[Tensor] | None = None,
    ) -> Tensor:
        """What the head sees: both class tokens, normalised, [B, special_dim + dim].

        Args:
            x: the clip [B, C, T, h, w], normalised; without `pair` [B, C, T + 2, h, w] with onset
                and apex behind the T frames (`pairs.split_pair`).
            pair: special pictures [B, special_channels, special_frames, h, w], in place of them.
            flow: [B, special_channels, h, w], from onset to apex, in place of onset and apex.
            importance: receives every video block's frame importance [B, F].
        """
        if pair is None:
            x, pair = split_pair(x)
        if flow is not None:
            pair = flow[:, :, None]
        special, video = self.special(self._inside(pair)), self.video(x)
        for stage in self.stages:
            special, video = stage(special, video, importance=importance)
        own, other = self.special_norm(special[:, 0]), self.video_norm(video[:, 0])
        return torch.cat([own, other], 1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] from what `features` returned."""
        return self.head(functional.dropout(features, self.config.dropout, self.training))

    @torch.no_grad()
    def explain(
        self, x: Tensor, pair: Tensor | None = None, *, flow: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, num_classes] and frame importance [B, F], the mean over video blocks."""
        found: list[Tensor] = []
        logits = self(x, pair, flow=flow, importance=found)
        return logits, mean_importance(found)

    def rate_scales(self) -> dict[str, float]:
        """Parameters with a learning rate of their own: none."""
        return {}

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter, for layer decay: embedding 0, stage i is i + 1, head S + 1."""
        top = self.config.stages + 1
        ids = {}
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            if part == "stages":
                ids[name] = int(rest.partition(".")[0]) + 1
            else:
                ids[name] = 0 if part in ("special", "video") else top
        return ids

    def flops(self) -> float:
        """Floating point operations of one clip's forward pass, 2 a multiply-add."""
        config = self.config
        dims = config.special_dim + config.dim
        return self.embedding_flops() + self.stage_flops() + 2.0 * dims * self.num_classes

    def embedding_flops(self) -> float:
        """Of the two tubelet embeddings."""
        config = self.config
        grid, special = config.grid, config.special_grid
        video = grid.tokens * grid.tubelet_dim * config.dim
        return 2.0 * (video + special.tokens * special.tubelet_dim * config.special_dim)

    def stage_flops(self) -> float:
        """Of all stages with plain attention; framewise cores add their own statistics."""
        config = self.config
        video, special = 1 + config.grid.tokens, 1 + config.special_grid.tokens
        blocks = config.special_blocks * block_flops(special, config.special_dim, config.mlp_ratio)
        blocks += config.video_blocks * block_flops(video, config.dim, config.mlp_ratio)
        crossing = exchange_flops(config.special_dim, config.dim, video)
        crossing += exchange_flops(config.dim, config.special_dim, special)
        return config.stages * (blocks + crossing)

    def _inside(self, pair: Tensor) -> Tensor:
        """The middle of the pair that fills whole tokens: published 224 px are 18 · 12 and 8."""
        grid, side = self.config.special_grid, self.config.image_size
        expected = (*grid.clip_shape[:2], side, side)
        if tuple(pair.shape[1:]) != expected:
            raise ValueError(
                f"the pair has shape {tuple(pair.shape)}, the model takes [B, special_channels, "
                f"special_frames, h, w] = [B, {', '.join(map(str, expected))}]; resize it, or set "
                "special_channels, special_frames and image_size of HstaConfig"
            )
        size = grid.rows * grid.patch
        start = (side - size) // 2
        return pair[..., start : start + size, start : start + size]


def _block(config: HstaConfig, index: int, *, video: bool) -> Block:
    """Block `index`, counted over the stages in the video branch; special ones share the rate."""
    dim = config.dim if video else config.special_dim
    attention = ClassAttention(
        dim,
        config.heads,
        attention=config.attention if video else "sdpa",
        frames=config.grid.frames if video else 1,
        statistics=config.statistics,
        constants=config.constants,
    )
    rate = config.drop_path * index / max(config.stages * config.video_blocks - 1, 1)
    return Block(dim, attention, mlp_ratio=config.mlp_ratio, drop_path=rate)
