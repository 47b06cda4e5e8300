"""FaceSleuth-R: motion with learned directions beside appearance (after arXiv 2506.02695).

Owns the network: a motion stream of convolutions with Single-Orientation Attention, an appearance
stream of a window transformer on onset and apex, their fusion and the head. The paper's exact
layers are not public; sizes not named in it are ours. It knows no loss, data or metric.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.pairs import split_pair
from finetune.models.soa import SingleOrientationAttention, SoaConfig
from finetune.models.windows import WindowTransformer
from mira.blocks import LAYER_NORM_EPS

__all__ = ["FaceSleuth", "FaceSleuthConfig"]


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
        num_classes: logits a clip, with action_units="predicted" those of the units among them.
        units_at: index of the first of these; None: they are the last.
    """

    def __init__(self, config: FaceSleuthConfig, num_classes: int, *, units_at: int | None = None):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be positive")
        self.config, self.num_classes = config, num_classes
        predicted = len(config.units) if config.action_units == "predicted" else 0
        others = num_classes - predicted
        self.units_at = others if units_at is None else units_at
        if others < 1 or not 0 <= self.units_at <= others:
            raise ValueError(
                f"num_classes={num_classes} logits cannot hold {predicted} predicted action units "
                f"from index {self.units_at} and something that is told from them"
            )
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
            self.unit_head = nn.Linear(dim, predicted)
        if config.action_units != "off":
            self.unit_embed = nn.Linear(len(config.units), dim)
        self.head = nn.Linear(dim, others)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, x: Tensor, *, flow: Tensor | None = None, units: Tensor | None = None
    ) -> Tensor:
        """Logits [B, num_classes]; the arguments are those of `features`."""
        return self.classify(self.features(x, flow=flow, units=units))

    def features(
        self, x: Tensor, *, flow: Tensor | None = None, units: Tensor | None = None
    ) -> Tensor:
        """The fused streams' mean over pixels, normalised, [B, E].

        Args:
            x: [B, C, T + 2, h, w], normalised; the last two frames are onset and apex, the T
                before them, if any, are not looked at.
            flow: [B, flow_channels, h, w], from onset to apex; with motion="flow".
            units: [B, U], 1 where annotated; with action_units="oracle", and then part of it.
        """
        pooled = self._pooled(x, flow)
        if self.config.action_units == "oracle":
            if units is None:
                raise ValueError("action_units='oracle' needs `units` [B, U] with every batch")
            return pooled + self.unit_embed(units.to(pooled.dtype))
        if units is not None:
            raise ValueError(
                f"`units` are given, but FaceSleuthConfig.action_units="
                f"{self.config.action_units!r}; set oracle, which marks the results as privileged"
            )
        return pooled

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] from what `features` returned.

        With action_units="predicted" the units' own are among them, from index `units_at`, and the
        others are told with their help.
        """
        if self.config.action_units != "predicted":
            return self.head(functional.dropout(features, self.config.dropout, self.training))
        units = self.unit_head(features)
        features = features + self.unit_embed(units.sigmoid())
        others = self.head(functional.dropout(features, self.config.dropout, self.training))
        return torch.cat([others[:, : self.units_at], units, others[:, self.units_at :]], 1)

    @torch.no_grad()
    def explain(
        self, x: Tensor, *, flow: Tensor | None = None, units: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, num_classes] and frame importance [B, 0]: no frame but the pair is seen."""
        logits = self(x, flow=flow, units=units)
        return logits, logits.new_zeros(len(logits), 0)

    def _pooled(self, x: Tensor, flow: Tensor | None) -> Tensor:
        """The fused streams' mean over pixels, normalised, [B, E]."""
        onset, apex = self._pair(x)
        motion = self._motion(onset, apex, flow)
        gate = None
        for stage in self.motion:
            motion, gate = stage(motion, gate)
        both = self.appearance(torch.cat([onset, apex]))  # [2 B, E, side, side]
        appearance = both[: len(onset)] + both[len(onset) :]
        fused = functional.gelu(self.fuse(torch.cat([motion, appearance], 1)))
        return self.fc_norm(fused.mean((2, 3)))

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

        Layer decay does not apply to them. Of one element, θ is not decayed (`launch.parameters`).
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
