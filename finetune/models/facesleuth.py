"""FaceSleuth-R: motion with learned directions beside appearance (after arXiv 2506.02695).

Owns the network: a motion stream of convolutions with Single-Orientation Attention, an appearance
stream of a window transformer on onset and apex, their fusion and the head. The paper's exact
layers are not public; sizes not named in it are ours. It knows no loss, data or metric.
"""

from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.pairs import split_pair
from finetune.models.soa import SingleOrientationAttention, SoaConfig, directions
from finetune.models.windows import WindowTransformer
from mira.blocks import LAYER_NORM_EPS

ActionUnits = Literal["off", "oracle", "predicted"]


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
    num_units: int = 0
    """Action units, where they are not off."""
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
        if (self.action_units == "off") != (self.num_units == 0) or self.num_units < 0:
            raise ValueError(
                f"FaceSleuthConfig.num_units={self.num_units} does not go with action_units="
                f"{self.action_units!r}: 0 where they are off, else their number"
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
    def privileged(self) -> tuple[str, ...]:
        """Inputs that no camera gives, to stamp results with."""
        return ("action_units",) if self.action_units == "oracle" else ()


_UNITS = get_args(ActionUnits)


class MotionStage(nn.Module):
    """Halve the map, a residual block of two convolutions, Single-Orientation Attention."""

    def __init__(self, channels: int, dim: int, *, stride: int, side: int, soa: SoaConfig):
        super().__init__()
        self.down = nn.Conv2d(channels, dim, stride, stride=stride)
        self.norm = nn.BatchNorm2d(dim)
        self.spatial = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.inner = nn.BatchNorm2d(dim)
        self.mix = nn.Conv2d(dim, dim, 1)
        self.soa = SingleOrientationAttention(dim, side, side, soa)

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, C, h, w] and the gate before to the map and gate, [B, E, side, side] each."""
        x = self.norm(self.down(x))
        x = x + self.mix(functional.gelu(self.inner(self.spatial(x))))
        return self.soa(functional.gelu(x), previous)

    def flops(self) -> float:
        """Of one clip; see `mira.flops` for what is counted."""
        weights = sum(c.weight.numel() for c in (self.down, self.spatial, self.mix))
        return 2.0 * weights * self.soa.rows * self.soa.columns + self.soa.flops()


class FaceSleuth(nn.Module):
    """The network: onset and apex to logits.

    Args:
        config: see `FaceSleuthConfig`.
        num_classes: logits a clip.
    """

    def __init__(self, config: FaceSleuthConfig, num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be positive")
        self.config, self.num_classes = config, num_classes
        seen = config.flow_channels if config.motion == "flow" else config.channels
        incoming = (seen, *config.dims[:2])
        self.motion = nn.ModuleList(
            MotionStage(
                incoming[i],
                config.dims[i],
                stride=4 if i == 0 else 2,
                side=config.image_size // (4, 8, 16)[i],
                soa=config.soa,
            )
            for i in range(3)
        )
        self.appearance = WindowTransformer(
            config.image_size,
            config.channels,
            dims=config.dims,
            depths=config.depths,
            heads=config.heads,
            window=config.window,
            drop_path=config.drop_path,
        )
        dim = config.dims[-1]
        self.fuse = nn.Conv2d(2 * dim, dim, 1)
        self.fc_norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        if config.action_units == "predicted":
            self.unit_head = nn.Linear(dim, config.num_units)
        if config.action_units != "off":
            self.unit_embed = nn.Linear(config.num_units, dim)
        self.head = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, x: Tensor, *, flow: Tensor | None = None, units: Tensor | None = None
    ) -> Tensor:
        """Logits [B, num_classes].

        Args:
            x: [B, C, T + 2, h, w], normalised; the last two frames are onset and apex, the T
                before them, if any, are not looked at.
            flow: [B, flow_channels, h, w], from onset to apex; with motion="flow".
            units: [B, num_units], 1 where annotated; with action_units="oracle".
        """
        return self.recognise(x, flow=flow, units=units)[0]

    def recognise(
        self, x: Tensor, *, flow: Tensor | None = None, units: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits, and with action_units="predicted" those of the units [B, num_units] for a loss.

        The arguments and errors are those of `forward`.
        """
        mode = self.config.action_units
        if mode == "oracle" and units is None:
            raise ValueError("action_units='oracle' needs `units` [B, num_units] with every batch")
        if mode != "oracle" and units is not None:
            raise ValueError(
                f"`units` are given, but FaceSleuthConfig.action_units={mode!r}; set oracle, which "
                "marks the results as privileged"
            )
        pooled, unit_logits = self.features(x, flow=flow), None
        if mode == "predicted":
            unit_logits = self.unit_head(pooled)
            units = unit_logits.sigmoid()
        if units is not None:
            pooled = pooled + self.unit_embed(units.to(pooled.dtype))
        pooled = functional.dropout(pooled, self.config.dropout, self.training)
        return self.head(pooled), unit_logits

    def features(self, x: Tensor, *, flow: Tensor | None = None) -> Tensor:
        """The fused streams' mean over pixels, normalised, [B, E]; no action units in it."""
        onset, apex = self._pair(x)
        motion = self._motion(onset, apex, flow)
        gate = None
        for stage in self.motion:
            motion, gate = stage(motion, gate)
        both = self.appearance(torch.cat([onset, apex]))  # [2 B, E, side, side]
        appearance = both[: len(onset)] + both[len(onset) :]
        fused = functional.gelu(self.fuse(torch.cat([motion, appearance], 1)))
        return self.fc_norm(fused.mean((2, 3)))

    def directions(self) -> dict[str, float]:
        """θ modulo π of every motion stage, in radians, to log."""
        return directions(self)

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter, for layer decay: embedding 0, stages 1 to 3, the rest 4."""
        return {name: _layer(name) for name, _ in self.named_parameters()}

    def flops(self) -> float:
        """Floating point operations of one clip's forward pass; see `mira.flops`."""
        maps = 2.0 * self.fuse.weight.numel() * self.appearance.side**2
        vectors = [m.weight.numel() for m in self.children() if isinstance(m, nn.Linear)]
        motion = sum(cast(MotionStage, stage).flops() for stage in self.motion)
        return motion + 2 * self.appearance.flops() + maps + 2.0 * sum(vectors)

    def rate_scales(self) -> dict[str, float]:
        """Parameters with a learning rate of their own as a multiple of the run's: every θ.

        Layer decay does not apply to them. A scalar, θ is not decayed by `launch.parameters`.
        """
        names = (name for name, p in self.named_parameters() if p.requires_grad)
        return {n: self.config.theta_rate for n in names if n.endswith("soa.theta")}

    def _pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Onset and apex [B, C, h, w]; ValueError for another shape."""
        _, pair = split_pair(x)
        size = self.config.image_size
        if tuple(pair.shape[1:]) != (self.config.channels, 2, size, size):
            raise ValueError(
                f"onset and apex have shape {tuple(pair.shape)}, the model takes [B, channels, 2, "
                f"h, w] = [B, {self.config.channels}, 2, {size}, {size}]; resize them, or set "
                "image_size and channels of FaceSleuthConfig"
            )
        return pair[:, :, 0], pair[:, :, 1]

    def _motion(self, onset: Tensor, apex: Tensor, flow: Tensor | None) -> Tensor:
        """What the motion stream sees."""
        if self.config.motion == "difference":
            if flow is not None:
                raise ValueError(
                    "`flow` is given, but FaceSleuthConfig.motion='difference'; set motion='flow'"
                )
            return apex - onset
        expected = (len(onset), self.config.flow_channels, *onset.shape[2:])
        if flow is None or tuple(flow.shape) != expected:
            found = None if flow is None else tuple(flow.shape)
            raise ValueError(
                f"motion='flow' needs `flow` of shape {expected}, not {found}; give it, or set "
                "motion='difference'"
            )
        return flow


def _layer(name: str) -> int:
    if name.startswith("motion."):
        return int(name.split(".")[1]) + 1
    if name.startswith("appearance.stages."):
        return int(name.split(".")[2]) + 1
    if name.startswith("appearance.halvings."):
        return int(name.split(".")[2]) + 2
    return 0 if name.startswith(("appearance.patch_embed", "appearance.embed_norm")) else 4
