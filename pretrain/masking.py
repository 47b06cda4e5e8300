"""What a pretraining step hides: tube masks for the encoder, running cells for the decoder.

Owns mask patterns and their configuration. It knows a clip's grid and seeds, no pixels and no
network. Masks are bool [B, N] in frame-major order, true where hidden. They derive from a clip's
own seed alone, so that they do not depend on the batch it is in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mira.encoder import EncoderConfig
from mira.tubelets import Grid

CELL = 4
"""Positions of a running cell, 2 x 2."""


@dataclass(frozen=True)
class MaskConfig:
    """How much is hidden."""

    ratio: float = 0.9
    """Share of every frame hidden from the encoder, the same places in all frames (VideoMAE)."""
    decoder_ratio: float = 0.0
    """Share hidden from the decoder by running cells (VideoMAE V2): 0, 0.25, 0.5 or 0.75."""

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio < 1.0:
            raise ValueError(f"MaskConfig.ratio={self.ratio} must lie between 0 and 1")
        if self.decoder_ratio not in (0.0, 0.25, 0.5, 0.75):
            raise ValueError(
                f"MaskConfig.decoder_ratio={self.decoder_ratio} must be 0, 0.25, 0.5 or 0.75: a "
                "running cell has four positions"
            )

    def hidden_per_frame(self, grid: Grid) -> int:
        """Tokens of a frame hidden from the encoder: floor(ratio · P).

        Raises:
            ValueError: none or all of them.
        """
        # The product of a decimal ratio may fall a rounding error short of the integer it means.
        hidden = int(self.ratio * grid.per_frame + 1e-9)
        if not 0 < hidden < grid.per_frame:
            raise ValueError(
                f"MaskConfig.ratio={self.ratio} hides {hidden} of the {grid.per_frame} tokens of a "
                "frame; some must be hidden and some visible: change the ratio, or take more "
                "tokens a frame (a larger image_size or a smaller patch_size)"
            )
        return hidden


def tube_mask(config: MaskConfig, grid: Grid, seeds: Tensor) -> Tensor:
    """Hide the same places in all frames, floor(ratio · P) of each (VideoMAE, NeurIPS 2022).

    Args:
        seeds: int64 [B], one a clip.

    Returns:
        bool [B, N] on the CPU, true where hidden from the encoder.
    """
    hidden = config.hidden_per_frame(grid)
    places = torch.zeros(len(seeds), grid.per_frame, dtype=torch.bool)
    for clip, seed in enumerate(seeds.tolist()):
        order = torch.randperm(grid.per_frame, generator=_generator(seed, "tube"))
        places[clip, order[:hidden]] = True
    return places.repeat(1, grid.frames)


def decoder_mask(config: MaskConfig, grid: Grid, seeds: Tensor) -> Tensor:
    """Hide positions of 2 x 2 cells from the decoder (VideoMAE V2, CVPR 2023, "running cell").

    The hidden positions rotate by one a frame; the phase of a clip is random.

    Args:
        seeds: int64 [B], one a clip.

    Returns:
        bool [B, N] on the CPU, true where hidden from the decoder.

    Raises:
        ValueError: a frame that 2 x 2 cells do not tile.
    """
    if grid.rows % 2 or grid.columns % 2:
        raise ValueError(
            f"MaskConfig.decoder_ratio={config.decoder_ratio} needs frames of an even number of "
            f"tokens each way, not {grid.rows} x {grid.columns}: change image_size, or set it to 0"
        )
    phases = [
        int(torch.randint(CELL, (), generator=_generator(seed, "cell"))) for seed in seeds.tolist()
    ]
    row, column = torch.arange(grid.rows), torch.arange(grid.columns)
    place = 2 * (row % 2)[:, None] + column % 2  # [rows, columns], position in the cell
    turn = torch.arange(grid.frames)[:, None] + torch.tensor(phases)[:, None, None]  # [B, F, 1]
    on = (place.flatten() + turn) % CELL < round(CELL * config.decoder_ratio)  # [B, F, P]
    return on.flatten(1)


def make_masks(
    config: MaskConfig,
    encoder: EncoderConfig,
    seeds: Tensor,
) -> tuple[Tensor, ...]:
    """The masks of a batch, as the model takes them after the clips.

    Args:
        seeds: int64 [B], one a clip.

    Returns:
        (encoder mask,) or, with a decoder ratio, (encoder mask, decoder mask): bool [B, N] on the
        CPU, where the model wants them.
    """
    masks = [tube_mask(config, encoder.grid, seeds)]
    if config.decoder_ratio:
        masks.append(decoder_mask(config, encoder.grid, seeds))
    return tuple(masks)


def _generator(seed: int, purpose: str) -> torch.Generator:
    """A stream of its own for each purpose, whatever else uses the clip's seed."""
    salt = {"tube": 0x7475_6265, "cell": 0x6365_6C6C}[purpose]
    return torch.Generator().manual_seed((seed ^ salt) & 0x7FFF_FFFF_FFFF_FFFF)
