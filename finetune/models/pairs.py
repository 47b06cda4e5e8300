"""Onset and apex: how a batch of clips gives the pair of frames that some networks take.

Owns the one convention. A loader that knows the marks decodes T sampled frames and, behind them,
onset and apex: one tensor [B, C, T + 2, h, w], so that cropping, augmentation and mixing treat all
frames alike; `split_pair` takes it apart. Where the marks are positions in frames that are there
already, `onset_apex` picks them. It knows no network and no files.
"""

import torch
from torch import Tensor


def split_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """The clip and its pair from one tensor.

    Args:
        x: [B, C, T + 2, h, w]; the last two frames are onset and apex.

    Returns:
        the clip [B, C, T, h, w], T may be 0, and the pair [B, C, 2, h, w]; views.

    Raises:
        ValueError: fewer than two frames.
    """
    if x.ndim != 5 or x.shape[2] < 2:
        raise ValueError(
            f"clips have shape {tuple(x.shape)}, the model takes [B, C, T + 2, h, w] with onset "
            "and apex behind the T frames; append them, or give the pair as its own argument"
        )
    return x[:, :, :-2], x[:, :, -2:]


def onset_apex(clip: Tensor, onset: Tensor, apex: Tensor) -> Tensor:
    """Pick onset and apex out of the clip's own frames.

    Args:
        clip: [B, C, T, h, w].
        onset, apex: int64 [B], positions in 0 … T - 1.

    Returns:
        [B, C, 2, h, w].

    Raises:
        ValueError: a position outside the clip, such as -1 for an unknown one.
    """
    frames = clip.shape[2]
    at = torch.stack([onset, apex], 1)  # [B, 2]
    if bool(((at < 0) | (at >= frames)).any()):
        raise ValueError(
            f"onset {onset.tolist()} and apex {apex.tolist()} must be positions in 0 … "
            f"{frames - 1}; leave out clips without marks, or mark their first and middle frames"
        )
    index = at[:, None, :, None, None].expand(-1, clip.shape[1], -1, *clip.shape[3:])
    return clip.gather(2, index)
