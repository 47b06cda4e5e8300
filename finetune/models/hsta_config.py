"""The configuration of HSTA: its sizes and what its special branch sees.

Owns the fields, their checks and the grids of tokens. It knows no layers; they are in `hsta.py`.
"""

from dataclasses import dataclass, field
from typing import get_args

from mira import MiraConstants, Statistics
from mira.cores import AttentionName, core
from mira.tubelets import Grid


@dataclass(frozen=True)
class HstaConfig:
    """Sizes and attention; the defaults are the published size, on onset and apex in RGB."""

    image_size: int = 224
    """Height and width in pixels of clip and pair; a multiple of patch_size."""
    frames: int = 6
    """Video frames of the clip, the pair not counted; a multiple of tubelet."""
    patch_size: int = 16
    """Height and width of a video token in pixels."""
    tubelet: int = 2
    """Video frames in a video token."""
    dim: int = 768
    """Embedding dim of the video branch; a multiple of heads."""
    channels: int = 3
    """Colour channels of the clip."""
    special_patch: int = 12
    """Height and width of a special token in pixels; what of image_size is left over is cut off."""
    special_frames: int = 2
    """Pictures of the special branch, one token deep: 2 for onset and apex, 1 for optical flow."""
    special_channels: int = 3
    """Channels of such a picture: 3 for RGB, 2 for flow, 3 for flow with its strain."""
    special_dim: int = 384
    """Embedding dim of the special branch; a multiple of heads."""
    heads: int = 12
    """Attention heads of either branch and of CSTA."""
    stages: int = 4
    """Stages of special blocks, video blocks and CSTA."""
    video_blocks: int = 2
    """Blocks a stage in the video branch."""
    special_blocks: int = 1
    """Blocks a stage in the special branch."""
    mlp_ratio: float = 4.0
    """Hidden size of a block's MLP as a multiple of its dim."""
    attention: AttentionName = "sdpa"
    """Attention core of the video branch: sdpa (plain), mira_exact, mira_flashlite."""
    statistics: Statistics = "instance"
    """Where MiRA's frame statistics come from while training; in evaluation each clip's own."""
    constants: MiraConstants = field(default_factory=MiraConstants)
    """Constants of MiRA."""
    dropout: float = 0.0
    """Dropout of the embedded tokens and before the head; 0.2 as published."""
    drop_path: float = 0.0
    """Largest rate of dropped residual branches; grows linearly from 0; 0.2 as published."""

    def __post_init__(self) -> None:
        core(self.attention)
        for name, unit in (
            ("image_size", "patch_size"),
            ("image_size", "special_patch"),
            ("frames", "tubelet"),
            ("dim", "heads"),
            ("special_dim", "heads"),
        ):
            whole, part = getattr(self, name), getattr(self, unit)
            # At the published 224 px and patch 12 a border of 8 px fills no token.
            exact = unit != "special_patch"
            if part < 1 or whole < part or (exact and whole % part):
                raise ValueError(
                    f"HstaConfig.{name}={whole} must be a positive multiple of {unit}={part}"
                )
        for name in (
            "channels", "special_frames", "special_channels", "stages", "video_blocks",
            "special_blocks", "mlp_ratio",
        ):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ValueError(f"HstaConfig.{name}={getattr(self, name)} must be positive")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"HstaConfig.{name}={getattr(self, name)} must lie in [0, 1)")
        if self.statistics not in get_args(Statistics):
            raise ValueError(
                f"HstaConfig.statistics={self.statistics!r} does not exist; choose one of "
                f"{', '.join(get_args(Statistics))}"
            )

    @property
    def grid(self) -> Grid:
        """The tubelets of the clip."""
        side = self.image_size // self.patch_size
        frames = self.frames // self.tubelet
        return Grid(frames, side, side, self.tubelet, self.patch_size, self.channels)

    @property
    def pair(self) -> bool:
        """Whether onset and apex follow the frames of a clip."""
        return True

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network takes beside the clip: a single special picture is flow."""
        return ("flow",) if self.special_frames == 1 else ()

    @property
    def flow_channels(self) -> int:
        """Channels of the flow, where it is an input: 2, or 3 with its strain."""
        return self.special_channels

    @property
    def special_grid(self) -> Grid:
        """The tokens of the pair, after its border that fills no token is cut off."""
        side = self.image_size // self.special_patch
        return Grid(1, side, side, self.special_frames, self.special_patch, self.special_channels)
