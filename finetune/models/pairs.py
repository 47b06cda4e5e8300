"""Onset and apex: how a batch of clips gives the pair of frames that some networks take.

Owns the one convention. A loader that knows the marks decodes T sampled frames and, behind them,
onset and apex: one tensor [B, C, T + 2, h, w], so that cropping, augmentation and mixing treat all
frames alike; `split_pair` takes it apart. It knows no network and no files.
"""

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
