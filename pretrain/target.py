"""What a hidden tubelet's prediction is compared with, and how far off it is.

Owns the normalised-pixel target of VideoMAE (NeurIPS 2022) and its squared error. It knows tensors
and the grid, no network.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from mira.tubelets import IMAGENET_STD, Grid, tubelets


def reconstruction_target(x: Tensor, grid: Grid, tokens: Tensor) -> Tensor:
    """What the model is to predict: each tubelet's pixels, normalised a channel.

    The published target takes pixels in [0, 1], subtracts a tubelet's channel mean and divides by
    its deviation (unbiased) + 1e-6. Working on the normalised clip is the same, the 1e-6 scaled by
    the channel's ImageNet deviation, and spares undoing the normalisation.

    Args:
        x: [B, C, T, h, w], normalised.
        tokens: int64 [B, M], which tubelets.

    Returns:
        float32 (float64 for a float64 clip) [B, M, tubelet · patch² · C], channel fastest.
    """
    centred, scale = _centred(x, grid, tokens)
    return (centred * scale).transpose(2, 3).flatten(2)


def token_errors(prediction: Tensor, x: Tensor, grid: Grid, tokens: Tensor) -> Tensor:
    """Mean squared error of each token, [B, M], in the target's dtype.

    Args:
        prediction: [B, M, tubelet · patch² · C], channel fastest, any floating dtype.
        x, tokens: those of `reconstruction_target`.
    """
    return _TokenErrors.apply(prediction, *_centred(x, grid, tokens))


class _TokenErrors(torch.autograd.Function):
    """Squared error against `centred · scale`, reading the largest tensors of a step only once.

    Autograd's own chain of subtract, square and mean, and the target laid out as the prediction,
    would each pass over [B, M, values] again.
    """

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, centred: Tensor, scale: Tensor) -> Tensor:
        by_channel = prediction.unflatten(2, (-1, centred.shape[2])).transpose(2, 3)
        difference = torch.addcmul(by_channel.to(centred.dtype), centred, scale, value=-1)
        ctx.save_for_backward(difference)  # [B, M, C, values]
        ctx.dtype, ctx.values = prediction.dtype, prediction.shape[2]
        return torch.linalg.vector_norm(difference, dim=(2, 3)).square() / ctx.values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        by_channel = difference * (grads[0] * (2 / ctx.values))[..., None, None]
        return by_channel.transpose(2, 3).flatten(2).to(ctx.dtype), None, None


@torch.no_grad()
def _centred(x: Tensor, grid: Grid, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tubelets without their channel means [B, M, C, values], and their factors [B, M, C, 1]."""
    pieces = tubelets(x, grid, tokens).flatten(3)
    pieces = pieces.to(torch.promote_types(x.dtype, torch.float32))
    centred = pieces - pieces.mean(3, keepdim=True)
    # A vector norm is several times faster than torch.std, which accumulates value by value.
    deviation = torch.linalg.vector_norm(centred, dim=3, keepdim=True)
    deviation = deviation / math.sqrt(centred.shape[3] - 1)
    return centred, 1 / (deviation + _floor(grid.channels, x.device, pieces.dtype))


@functools.cache
def _floor(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of a deviation [C, 1]; made once, as the host would wait for a GPU each time."""
    spread = IMAGENET_STD if channels == len(IMAGENET_STD) else (1.0,) * channels
    return 1e-6 / torch.tensor(spread, device=device, dtype=dtype)[:, None]
