"""The configuration of FaceSleuth-R: its sizes and inputs.

Owns the fields and their checks. It knows no layers; they are in `facesleuth.py`.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from finetune.models.soa import SoaConfig

ActionUnits = Literal["off", "oracle", "predicted"]
_UNITS = get_args(ActionUnits)


@dataclass(frozen=True)
class FaceSleuthConfig:
    """Sizes and inputs; the defaults are the paper's depths and heads at 224 px."""

    image_size: int = 224
    """Height and width of a frame in pixels; a multiple of 16 · window."""
    channels: int = 3
    """Colour channels of onset and apex."""
    dims: tuple[int, int, int] = (128, 256, 512)
    """Channels of the three stages of either stream, at 1/4, 1/8, 1/16 of the size."""
    depths: tuple[int, int, int] = (2, 2, 6)
    """Blocks of the appearance stages."""
    heads: tuple[int, int, int] = (4, 8, 16)
    """Attention heads of the appearance stages; each divides its dim."""
    window: int = 7
    """Side of an attention window in tokens."""
    motion: Literal["difference", "flow"] = "difference"
    """What the motion stream sees: apex - onset, or optical flow given beside the clip."""
    flow_channels: int = 2
    """Channels of the flow: 2, or 3 with its strain."""
    soa: SoaConfig = field(default_factory=SoaConfig)
    """Single-Orientation Attention of every motion stage."""
    action_units: ActionUnits = "off"
    """off; oracle: the annotated units as input, which is privileged; predicted from the maps."""
    units: tuple[str, ...] = ()
    """Names of the action units, such as 4 and 12, where they are not off."""
    theta_rate: float = 10.0
    """Learning rate of θ as a multiple of the run's."""
    dropout: float = 0.0
    """Dropout before the head."""
    drop_path: float = 0.0
    """Largest rate of dropped residual branches of the appearance stream."""

    def __post_init__(self) -> None:
        if self.window < 1 or self.image_size < 1 or self.image_size % (16 * self.window):
            raise ValueError(
                f"FaceSleuthConfig.image_size={self.image_size} must be a positive multiple of "
                f"16 · window={16 * self.window}"
            )
        for name in ("dims", "depths", "heads"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"FaceSleuthConfig.{name}={getattr(self, name)} must have three values, one a "
                    "stage"
                )
        for dim, heads, depth in zip(self.dims, self.heads, self.depths, strict=True):
            if min(dim, heads, depth) < 1 or dim % heads:
                raise ValueError(
                    f"FaceSleuthConfig.dims={self.dims} must be positive multiples of "
                    f"heads={self.heads}, and depths={self.depths} positive"
                )
        for name, known in (("motion", ("difference", "flow")), ("action_units", _UNITS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"FaceSleuthConfig.{name}={getattr(self, name)!r} does not exist; choose one "
                    f"of {', '.join(known)}"
                )
        if (self.action_units == "off") != (not self.units):
            raise ValueError(
                f"FaceSleuthConfig.units={self.units} does not go with action_units="
                f"{self.action_units!r}: name them (--encoder.units 1 4 12), or turn them off"
            )
        if self.channels < 1 or self.flow_channels < 1 or self.theta_rate < 0:
            raise ValueError(
                "FaceSleuthConfig.channels and flow_channels must be positive, theta_rate not "
                "negative"
            )
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"FaceSleuthConfig.{name}={getattr(self, name)} must be in [0, 1)")

    @property
    def frames(self) -> int:
        """Frames of the clip, the pair not counted: none is looked at."""
        return 0

    @property
    def pair(self) -> bool:
        """Whether onset and apex follow the frames of a clip."""
        return True

    @property
    def predicted(self) -> tuple[str, ...]:
        """Action units that the network tells by itself."""
        return self.units if self.action_units == "predicted" else ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network takes beside the clip."""
        flow = ("flow",) if self.motion == "flow" else ()
        return flow + (("units",) if self.action_units == "oracle" else ())
