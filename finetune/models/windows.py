"""A hierarchical window transformer: pictures to feature maps at a sixteenth of their size.

Owns how a map is cut into windows, and the stages. Blocks are `mira.blocks`. It knows no task. The
layout is Swin's (arXiv 2103.14030): patches of 4, three stages, halved in between. Instead of
shifting windows, every second block attends across them, within the tokens of equal place in
every window ("grid" attention of MaxViT, arXiv 2204.01697), which needs no mask; positions are
fixed sinusoids at the start of each stage.
"""

from typing import cast

from torch import Tensor, nn

from mira.blocks import LAYER_NORM_EPS, Attention, Block
from mira.encoder import initialise
from mira.flops import block_flops
from mira.tubelets import sinusoids


class WindowAttention(Attention):
    """Attention within windows of a square map, or across them.

    Args:
        dim, heads: E and H.
        side: of the map in tokens; a multiple of window.
        window: side of a window in tokens; across windows, the side of the group of tokens that
            lie side // window apart.
        across: whether to attend across windows.
    """

    def __init__(self, dim: int, heads: int, *, side: int, window: int, across: bool):
        super().__init__(dim, heads)
        self.side, self.window, self.across = side, window, across

    def forward(
        self, x: Tensor, *, asking: int | None = None, importance: list[Tensor] | None = None
    ) -> Tensor:
        """[B, side², E], row-major, to the same."""
        assert asking is None and importance is None, "pictures have no frames"
        groups = self._cut(x)
        out = super().forward(groups.flatten(0, 2).flatten(1, 2))
        return self._joined(out.reshape(groups.shape))

    def _cut(self, x: Tensor) -> Tensor:
        """[B, side², E] to [B, groups down, groups across, window, window, E]."""
        n, w = self.side // self.window, self.window
        inner = (w, n) if self.across else (n, w)
        maps = x.reshape(len(x), *inner, *inner, -1)
        order = (0, 2, 4, 1, 3, 5) if self.across else (0, 1, 3, 2, 4, 5)
        return maps.permute(order)

    def _joined(self, groups: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        order = (0, 3, 1, 4, 2, 5) if self.across else (0, 1, 3, 2, 4, 5)
        return groups.permute(order).reshape(len(groups), self.side**2, -1)


class Halving(nn.Module):
    """Four neighbouring tokens to one of another dim: [B, side², E] to [B, side² / 4, E']."""

    def __init__(self, dim: int, out: int, side: int):
        super().__init__()
        self.side, self.flops = side, 2.0 * side * side * dim * out
        self.norm = nn.LayerNorm(4 * dim, eps=LAYER_NORM_EPS)
        self.proj = nn.Linear(4 * dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        half = self.side // 2
        maps = x.reshape(len(x), half, 2, half, 2, -1).transpose(2, 3)
        return self.proj(self.norm(maps.reshape(len(x), half * half, -1)))


class WindowStage(nn.Module):
    """Positions and blocks on a square map of tokens."""

    positions: Tensor  # [side², E], not in the state dict

    def __init__(
        self, dim: int, depth: int, heads: int, *, side: int, window: int, drop_path: list[float]
    ):
        super().__init__()
        self.flops = depth * (side // window) ** 2 * block_flops(window * window, dim, 4.0)
        self.register_buffer("positions", sinusoids(side * side, dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                WindowAttention(dim, heads, side=side, window=window, across=bool(index % 2)),
                drop_path=drop_path[index],
            )
            for index in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, side², E] to the same."""
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return x


class WindowTransformer(nn.Module):
    """Pictures [B, C, h, w] to maps [B, E, h / 16, w / 16].

    Args:
        image_size: h = w; a multiple of 16 · window.
        channels: C.
        dims, depths, heads: of the three stages.
        window: side of a window in tokens.
        drop_path: largest rate; grows linearly from 0 with depth.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        dims: tuple[int, int, int],
        depths: tuple[int, int, int],
        heads: tuple[int, int, int],
        window: int,
        drop_path: float = 0.0,
    ):
        super().__init__()
        sides = [image_size // 4, image_size // 8, image_size // 16]
        self.side = sides[-1]
        self.patch_embed = nn.Conv2d(channels, dims[0], 4, stride=4)
        self.embed_norm = nn.LayerNorm(dims[0], eps=LAYER_NORM_EPS)
        self.halvings = nn.ModuleList(
            Halving(dims[i], dims[i + 1], sides[i]) for i in range(len(dims) - 1)
        )
        last = max(sum(depths) - 1, 1)
        rates = [drop_path * index / last for index in range(sum(depths))]
        self.stages = nn.ModuleList()
        for dim, depth, number, side in zip(dims, depths, heads, sides, strict=True):
            mine, rates = rates[:depth], rates[depth:]
            self.stages.append(
                WindowStage(dim, depth, number, side=side, window=window, drop_path=mine)
            )
        self.norm = nn.LayerNorm(dims[-1], eps=LAYER_NORM_EPS)
        initialise(self.halvings)
        initialise(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] to [B, E, h / 16, w / 16], h and w as configured."""
        tokens = self.embed_norm(self.patch_embed(x).flatten(2).transpose(1, 2))
        for index, stage in enumerate(self.stages):
            if index:
                tokens = self.halvings[index - 1](tokens)
            tokens = stage(tokens)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (self.side, self.side))

    def flops(self) -> float:
        """Floating point operations of one picture; see `mira.flops` for what is counted."""
        flops = 2.0 * self.patch_embed.weight.numel() * (4 * self.side) ** 2
        for part in (*self.halvings, *self.stages):
            flops += cast(Halving | WindowStage, part).flops
        return flops
