"""The layers of the video transformer: attention with its state, MLP, block, tubelet embedding.

Owns parameters, their names in a state dict (the public VideoMAE layout) and the moving average of
MiRA's statistics. It knows no configuration of a whole network and no objective; how attention is
computed is `cores.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from kernels.backends import BackendName
from kernels.exact import MovingAverage
from kernels.marginals import MiraConstants, Statistics, statistics_dtype
from mira.cores import AttentionName, How, attention_share, core
from mira.tubelets import Grid, tubelets

LAYER_NORM_EPS = 1e-6
EMA_MOMENTUM = 0.9
_replayed: ContextVar[Tensor | None] = ContextVar("_replayed", default=None)


@torch.library.custom_op("mira::moved_average", mutates_args=("average",))
def moved_average(average: Tensor, mean: Tensor) -> Tensor:
    """Move the average towards the mean over ranks, so that every rank holds the same.

    Under `replaying` nothing moves. That is decided in here, where no compiler sees it: a block
    that is recomputed must be the same program as before, or it keeps other tensors for the
    backward. Nor may a compiler make the average anew in the backward, from what has moved by then.

    Args:
        average: [1, F], changed in place.
        mean: the batch mean of the confidence [1, F], any floating dtype.

    Returns:
        The average to use [1, F], a copy, which later updates leave alone.
    """
    replayed = _replayed.get()
    if replayed is not None:
        return replayed.clone()
    if distributed.is_available() and distributed.is_initialized():
        world = distributed.get_world_size()
        if world > 1:
            mean = mean.clone(memory_format=torch.contiguous_format)
            distributed.all_reduce(mean)
            mean = mean / world
    # A batch that is not finite is skipped by the loop; the average must survive it as well.
    mean = torch.where(mean.isfinite().all(), mean.to(average.dtype), average)
    average.lerp_(mean, 1 - EMA_MOMENTUM)
    return average.clone(memory_format=torch.contiguous_format)


@moved_average.register_fake
def _(average: Tensor, mean: Tensor) -> Tensor:
    return torch.empty_like(average, memory_format=torch.contiguous_format)


@contextmanager
def replaying(averages: list[Tensor]) -> Iterator[None]:
    """Use the last of these averages [1, F], if any, not an update: for a recomputed forward."""
    token = _replayed.set(averages[-1] if averages else None)
    try:
        yield
    finally:
        _replayed.reset(token)


class Attention(nn.Module):
    """Multi-head self-attention with one of the cores; biases on q and v, none on k.

    With a framewise core it holds `c_buf` [1, F], the moving average of the frames' confidence
    (momentum 0.9, starts uniform). `statistics="batch_ema"` updates it in every training forward
    with the mean over the batch and over all ranks, then uses it. It stays float32 when the module
    is cast to a half type: its updates are too small for one. A forward that is recomputed moves it
    again unless it runs under `replaying`, as `EncoderConfig.checkpoint_blocks` does.

    Args:
        dim, heads: E and H.
        attention: name of the core.
        frames: F; read by framewise cores only.
        statistics, eval_statistics, constants, backend: see `mira.encoder.EncoderConfig`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        attention: AttentionName = "sdpa",
        frames: int = 1,
        statistics: Statistics = "instance",
        eval_statistics: Literal["instance", "batch"] = "instance",
        constants: MiraConstants | None = None,
        backend: BackendName | None = None,
    ):
        super().__init__()
        self.heads, self.frames = heads, frames
        self.scale = (dim // heads) ** -0.5
        self.core = core(attention)
        self.statistics, self.eval_statistics = statistics, eval_statistics
        self.constants = constants or MiraConstants()
        self.backend: BackendName | None = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        if self.core.framewise:
            self.register_buffer("c_buf", torch.full((1, frames), 1.0 / frames))

    def forward(
        self, x: Tensor, *, asking: int | None = None, importance: list[Tensor] | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: [B, N, E], frame-major.
            asking: only the last so many tokens ask, all answer; plain core only.
            importance: receives this layer's frame importance [B, F]: π of a framewise core, the
                share of attention each frame receives of a plain one.

        Returns:
            [B, asking or N, E].
        """
        q, k, v = self.project(x, asking=asking)
        how = How(self.frames, self._statistics(), self.constants, self.scale, self.backend)
        out, frame = self.core.attend(q, k, v, how)
        if importance is not None:
            if frame is None:
                frame = attention_share(q, k, self.frames, self.scale)
            importance.append(frame.detach().expand(len(x), -1))
        return self.proj(out.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, *, asking: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, N, E] to q [B, H, asking or N, D], k and v [B, H, N, D]."""
        weight = self.qkv.weight
        no_bias = torch.zeros_like(self.v_bias)
        if asking is None:
            bias = torch.cat([self.q_bias, no_bias, self.v_bias])
            qkv = functional.linear(x, weight, bias).unflatten(2, (3, self.heads, -1))
            q, k, v = qkv.unbind(2)
        else:
            assert not self.core.framewise, "frame statistics need every token to ask"
            dim = weight.shape[1]
            bias = torch.cat([no_bias, self.v_bias])
            q = functional.linear(x[:, -asking:], weight[:dim], self.q_bias)
            q = q.unflatten(2, (self.heads, -1))
            kv = functional.linear(x, weight[dim:], bias).unflatten(2, (2, self.heads, -1))
            k, v = kv.unbind(2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _statistics(self) -> str | MovingAverage:
        if self.statistics == "instance":
            return self.statistics
        if not self.training:
            return self.eval_statistics
        return self._moving_average if self.statistics == "batch_ema" else self.statistics

    def _moving_average(self, mean: Tensor) -> Tensor:
        return moved_average(self.c_buf, mean.detach())

    def _apply(self, fn, recurse=True):
        before = self.c_buf if self.core.framewise else None
        super()._apply(fn, recurse)
        if before is not None and statistics_dtype(self.c_buf.dtype) != self.c_buf.dtype:
            self.c_buf = before.to(self.c_buf.device)
        return self


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def hidden(self, x: Tensor) -> Tensor:
        """[…, E] to the hidden activations […, hidden]."""
        return functional.gelu(self.fc1(x))

    def forward(self, x: Tensor) -> Tensor:
        """[…, E] to […, E]."""
        return self.fc2(self.hidden(x))


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        dim: E.
        attention: its attention.
        mlp_ratio: hidden size of the MLP as a multiple of dim.
        drop_path: rate at which a clip's residual branch is dropped in training.
        eps: of the LayerNorms.
    """

    keep: Tensor | None  # 1 - drop_path, not in the state dict

    def __init__(
        self,
        dim: int,
        attention: Attention,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        eps: float = LAYER_NORM_EPS,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        # As a tensor: of a number, a compiler makes one program a block.
        keep = torch.tensor(1.0 - drop_path) if drop_path else None
        self.register_buffer("keep", keep, persistent=False)

    def forward(
        self, x: Tensor, *, asking: int | None = None, importance: list[Tensor] | None = None
    ) -> Tensor:
        """[B, N, E] to [B, asking or N, E]; the arguments are those of `Attention.forward`."""
        x = self._attended(x, asking, importance)
        return x + self._dropped(self.mlp(self.norm2(x)))

    def pooled(self, x: Tensor, *, importance: list[Tensor] | None = None) -> Tensor:
        """The mean of `forward` over tokens, [B, E].

        Equal to it exactly but cheaper: the mean goes through the last linear layer, which then
        runs on one vector a clip.
        """
        x = self._attended(x, None, importance)
        hidden = self.mlp.hidden(self.norm2(x)).mean(1)
        return x.mean(1) + self._dropped(self.mlp.fc2(hidden))

    def _attended(self, x: Tensor, asking: int | None, importance: list[Tensor] | None) -> Tensor:
        branch = self._dropped(self.attn(self.norm1(x), asking=asking, importance=importance))
        return (x if asking is None else x[:, -asking:]) + branch

    def _dropped(self, branch: Tensor) -> Tensor:
        """Zero a clip's branch at the rate of drop_path, scaling the others up (Huang, 2016)."""
        if not self.training or self.keep is None:
            return branch
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        return branch * (self.keep.expand(shape).bernoulli() / self.keep).to(branch.dtype)


def compile_blocks(network: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Let `torch.compile` have every block of a network, in place; names of weights stay.

    A block by itself compiles in seconds, once for all that are alike, and what is around them may
    depend on the data. The arguments are those of `torch.compile`.
    """
    for module in network.modules():
        if isinstance(module, Block):
            module.compile(*args, **kwargs)


class PatchEmbed(nn.Module):
    """Linear embedding of tubelets, stored as the convolution it is equal to."""

    def __init__(self, grid: Grid, dim: int):
        super().__init__()
        self.grid = grid
        size = (grid.tubelet, grid.patch, grid.patch)
        self.proj = nn.Conv3d(grid.channels, dim, kernel_size=size, stride=size)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Clips [B, C, T, h, w] to embeddings [B, M, E] of `tokens` int64 [B, M] (None: all)."""
        pieces = tubelets(x, self.grid, tokens).flatten(2)
        return functional.linear(pieces, self.proj.weight.flatten(1), self.proj.bias)
