"""Attention around class tokens: inside a branch that has one, and from one branch to another.

Owns how a class token lives beside MiRA's frame statistics, and the cross-attention of HSTA
(arXiv 2405.03202). It knows no network and no configuration; the cores are `mira.cores`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mira.blocks import LAYER_NORM_EPS, Attention
from mira.cores import How, attention_share


class ClassAttention(Attention):
    """Joint space-time attention of a branch with its class token first: [B, 1 + N, E].

    The plain core is attention over all 1 + N tokens. A framewise core needs as many tokens in
    every frame, so it sees the N patch tokens alone: frame statistics come from them, and the class
    token belongs to no frame and keeps weight 1. Of a patch token's attention the class token takes
    the share s that plain attention gives it, the patch tokens the rest as the core deals it out:
    `s · v_class + (1 - s) · core(patches)`. The class token itself asks plainly. With constants
    that weigh all frames alike this is plain attention.
    """

    def forward(
        self, x: Tensor, *, asking: int | None = None, importance: list[Tensor] | None = None
    ) -> Tensor:
        """Attend: [B, 1 + N, E] to the same; `importance` as in `Attention.forward`."""
        assert asking is None, "a branch's tokens all ask"
        q, k, v = self.project(x)
        how = How(self.frames, self._statistics(), self.constants, self.scale, self.backend)
        frame = None
        if self.core.framewise:
            patches = [t[:, :, 1:].contiguous() for t in (q, k, v)]
            values, frame = self.core.attend(patches[0], patches[1], patches[2], how)
            share = class_share(q[:, :, 1:], k, self.scale)
            values = values + share * (v[:, :, :1] - values)
            asked = functional.scaled_dot_product_attention(q[:, :, :1], k, v, scale=self.scale)
            out = torch.cat([asked, values], 2)
        else:
            out, _ = self.core.attend(q, k, v, how)
        if importance is not None:
            if frame is None:
                frame = attention_share(q[:, :, 1:], k[:, :, 1:], self.frames, self.scale)
            importance.append(frame.detach().expand(len(x), -1))
        return self.proj(out.transpose(1, 2).flatten(2))


def class_share(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The share of plain attention that the first key receives, [B, H, N, 1], in O(N) memory.

    Attention whose values are 1 at the first key and 0 elsewhere; q [B, H, N, D], k [B, H, M, D].
    """
    first = torch.zeros_like(k)
    first[:, :, 0] = 1.0
    return functional.scaled_dot_product_attention(q, k, first, scale=scale)[..., :1]


class Exchange(nn.Module):
    """Half of CSTA: a branch's class token looks at the other branch's patch tokens.

    Projected to the other's dim (LayerNorm, GELU, Linear), it asks over itself and those patch
    tokens (pre-norm, one query, residual, no MLP), and is projected back.

    Args:
        dim: E of the branch whose class token asks.
        other: E of the branch that answers.
        heads: H.
    """

    def __init__(self, dim: int, other: int, heads: int):
        super().__init__()
        self.outward = _projection(dim, other)
        self.norm = nn.LayerNorm(other, eps=LAYER_NORM_EPS)
        self.attn = Attention(other, heads)
        self.back = _projection(other, dim)

    def forward(self, own: Tensor, patches: Tensor) -> Tensor:
        """own [B, 1, E] and the other's patches [B, N, E'] to the new class token [B, 1, E]."""
        asking = self.outward(own)
        tokens = self.norm(torch.cat([patches, asking], 1))
        return self.back(asking + self.attn(tokens, asking=1))


def exchange_flops(dim: int, other: int, tokens: int) -> float:
    """`Exchange` over `tokens` tokens, its own included: keys and values of all, one query."""
    one_token = 2 * dim * other + 2 * other * other
    return 2.0 * one_token + 4.0 * tokens * other * other + 4.0 * tokens * other


def _projection(dim: int, out: int) -> nn.Sequential:
    norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
    return nn.Sequential(norm, nn.GELU(), nn.Linear(dim, out))
