"""Clips and tubelet tokens: normalisation, cutting a clip into tubelets and back, fixed positions.

Owns the geometry: which pixels make which token, in which order. It knows no parameters and no
model; sizes come as arguments. Tokens are in frame-major order, N = F · P: token
`(f · rows + row) · columns + column`.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Grid:
    """How a clip [C, T, h, w] divides into tubelets.

    Attributes:
        frames: F, frames after tubelets.
        rows, columns: tubelets down and across a frame; P = rows · columns.
        tubelet: video frames in a tubelet.
        patch: height and width of a tubelet in pixels.
        channels: C.
    """

    frames: int
    rows: int
    columns: int
    tubelet: int
    patch: int
    channels: int

    @property
    def per_frame(self) -> int:
        """P, tokens a frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """N, tokens a clip."""
        return self.frames * self.per_frame

    @property
    def tubelet_dim(self) -> int:
        """Values in a tubelet."""
        return self.channels * self.tubelet * self.patch**2

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w)."""
        return (
            self.channels,
            self.frames * self.tubelet,
            self.rows * self.patch,
            self.columns * self.patch,
        )

    def check(self, x: Tensor) -> None:
        """ValueError unless x is [B, C, T, h, w] of this grid."""
        if x.ndim != 5 or tuple(x.shape[1:]) != self.clip_shape:
            raise ValueError(
                f"clips have shape {tuple(x.shape)}, the model takes [B, C, T, h, w] = "
                f"[B, {', '.join(map(str, self.clip_shape))}]; sample and resize the clips to "
                "that, or set image_size, frames and channels of the encoder"
            )


def normalise(pixels: Tensor) -> Tensor:
    """RGB bytes to the values the networks take: scaled to [0, 1], ImageNet mean and deviation.

    Args:
        pixels: uint8 [B, 3, T, h, w].

    Returns:
        float32 [B, 3, T, h, w].
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 5 or pixels.shape[1] != 3:
        raise ValueError(
            f"pixels must be uint8 [B, 3, T, h, w] in RGB, not {pixels.dtype} {tuple(pixels.shape)}"
        )
    mean, std = _statistics(pixels.device)
    return (pixels.float() - 255 * mean) / (255 * std)


def to_pixels(x: Tensor) -> Tensor:
    """The inverse of `normalise`: [B, 3, T, h, w] to float32 in [0, 1], clipped."""
    mean, std = _statistics(x.device)
    return (x.float() * std + mean).clamp(0, 1)


@functools.cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [1, 3, 1, 1, 1]; made once, as the host would wait for a GPU each time."""
    shape = (1, 3, 1, 1, 1)
    made = [
        torch.tensor(values, device=device, dtype=torch.float32).view(shape)
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    ]
    return made[0], made[1]


def tubelets(x: Tensor, grid: Grid, tokens: Tensor | None = None) -> Tensor:
    """Cut clips into tubelets, all of them or only those asked for.

    Args:
        x: [B, C, T, h, w].
        tokens: int64 [B, M], positions in 0 … N - 1; None takes all in order.

    Returns:
        [B, M, C, tubelet, patch, patch], contiguous: the order of a convolution's weight.
    """
    grid.check(x)
    blocks = x.unflatten(4, (grid.columns, grid.patch)).unflatten(3, (grid.rows, grid.patch))
    blocks = blocks.unflatten(2, (grid.frames, grid.tubelet))
    blocks = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7)  # [B, F, rows, columns, C, tubelet, p, p]
    if tokens is None:
        return blocks.contiguous().flatten(1, 3)
    clip = torch.arange(len(x), device=x.device)[:, None]
    if 2 * tokens.shape[1] > grid.tokens:
        # Whole rows of a contiguous copy are faster to pick than many pieces of a strided clip.
        pieces = blocks.contiguous().flatten(0, 3)
        return pieces.index_select(0, (clip * grid.tokens + tokens).flatten()).unflatten(
            0, tokens.shape
        )
    frame = tokens // grid.per_frame
    row = tokens // grid.columns % grid.rows
    return blocks[clip, frame, row, tokens % grid.columns]


def from_tubelets(pieces: Tensor, grid: Grid) -> Tensor:
    """The inverse of `tubelets`: [B, N, C, tubelet, patch, patch] to clips [B, C, T, h, w]."""
    blocks = pieces.unflatten(1, (grid.frames, grid.rows, grid.columns))
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(pieces), *grid.clip_shape)


def token_positions(mask: Tensor) -> Tensor:
    """Where a mask is true: bool [B, N] to ascending positions, int64 [B, M], on the mask's device.
    Masks are best left on the CPU: looking at one on a GPU makes the host wait.

    Raises:
        ValueError: clips with different numbers, which no rectangular batch can hold.
    """
    counts = mask.sum(1)
    if not bool((counts == counts[0]).all()):
        raise ValueError(
            "the mask selects different numbers of tokens in the clips of a batch "
            f"({int(counts.min())} to {int(counts.max())}); use masks with one fixed ratio"
        )
    return mask.nonzero()[:, 1].view(len(mask), -1)


def sinusoids(n: int, dim: int) -> Tensor:
    """Fixed positions [n, dim], float32: sine on even channels, cosine on odd ones, interleaved.

    Over the flattened token index with base 10000, as in "Attention Is All You Need" (2017); both
    the encoder and the decoder of VideoMAE use it, and no checkpoint stores it.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000.0 ** (-2 * (channel // 2) / dim)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()
