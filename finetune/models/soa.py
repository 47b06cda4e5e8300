"""Single-Orientation Attention: a gate on a feature map from its means along one learned direction.

Owns the formulas, on maps and on a video transformer's token grid. The idea is FaceSleuth's (arXiv
2506.02695), whose exact formulas are not public; these are ours. It knows no network around it.

Geometry: pixel p has x to the right and y down, both in [-1, 1] from the first pixel's centre to
the last's. The direction θ is (cos θ, sin θ); means are taken along it, bins lie across it. So
θ = 0 gives row means and θ = π/2 column means, and a horizontal flip maps θ to π - θ.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class SoaConfig:
    """How Single-Orientation Attention pools."""

    bins: int | None = None
    """K, bins across the direction; None for the longer side of the map, at which the means at
    θ = 0 and π/2 are those of single rows and columns of a square map. Fewer, three quarters of it,
    lead θ past those angles more smoothly: it then finds gratings within 2°, else within 5°."""
    theta: float = pi / 4
    """θ at the start, in radians; at 0 and π/2 its gradient has a kink."""
    learned: bool = True
    """Whether θ is trained."""
    reduction: int = 32
    """The gate's hidden channels are channels / reduction, at least 8."""

    def __post_init__(self) -> None:
        if self.bins is not None and self.bins < 2:
            raise ValueError(f"SoaConfig.bins={self.bins} must be at least 2, or None")
        if self.reduction < 1:
            raise ValueError(f"SoaConfig.reduction={self.reduction} must be positive")
        if not -10.0 < self.theta < 10.0:
            raise ValueError(
                f"SoaConfig.theta={self.theta} is an angle in radians; set it in 0 … π"
            )


def across(theta: Tensor, rows: int, columns: int) -> Tensor:
    """Every pixel's coordinate across the direction, t = -x sin θ + y cos θ, [rows · columns]."""
    x = _axis(columns, theta)
    y = _axis(rows, theta)
    return (y[:, None] * theta.cos() - x[None] * theta.sin()).flatten()


def hat_weights(theta: Tensor, rows: int, columns: int, bins: int) -> Tensor:
    """How much of every pixel lies in every bin.

    K bins with hat weights, evenly over t in ∓(|sin θ| + |cos θ|): a partition of unity, linear
    between neighbouring bins, differentiable in θ almost everywhere.

    Args:
        theta: scalar, floating.

    Returns:
        w [K, P], P = rows · columns, θ's dtype; the sum over K is 1.
    """
    reach = theta.sin().abs() + theta.cos().abs()
    place = (across(theta, rows, columns) / reach + 1) * ((bins - 1) / 2)  # 0 … K - 1
    place = place.clamp(0, bins - 1)
    centre = torch.arange(bins, dtype=place.dtype, device=place.device)
    return (1 - (place - centre[:, None]).abs()).clamp(min=0)


def pooled(features: Tensor, weights: Tensor) -> Tensor:
    """Means along the direction: z[c, k] = Σ_p w_k F[c, p] / Σ_p w_k.

    Args:
        features: F [B, C, P].
        weights: w [K, P].

    Returns:
        z [B, C, K]; 0 in a bin that no pixel reaches, which only many bins on few pixels leave.
    """
    mass = weights.sum(1)
    return features @ weights.t() / mass.clamp(min=1e-6)


class SingleOrientationAttention(nn.Module):
    """Gate a feature map by its means along θ.

    `a = σ(conv(hswish(BN(conv(z)))))` on the descriptor z [B, C, K], the convolutions of width 1 so
    that bins may be read from either end; `A[p] = Σ_k w_k(t_p) a_k`, times the previous layer's A.

    Args:
        channels: C.
        rows, columns: of the map.
        config: see `SoaConfig`.
    """

    def __init__(self, channels: int, rows: int, columns: int, config: SoaConfig | None = None):
        super().__init__()
        config = config or SoaConfig()
        if channels < 1 or rows < 2 or columns < 2:
            raise ValueError(
                f"channels={channels}, rows={rows}, columns={columns}: Single-Orientation "
                "Attention needs a channel and at least 2 × 2 pixels"
            )
        self.rows, self.columns = rows, columns
        self.bins = config.bins or max(rows, columns)
        hidden = max(8, channels // config.reduction)
        # Of one element, not a scalar: DeepSpeed cannot broadcast a parameter without dimensions.
        theta = torch.full((1,), float(config.theta))
        self.theta = nn.Parameter(theta, requires_grad=config.learned)
        self.reduce = nn.Conv1d(channels, hidden, 1)
        self.norm = nn.BatchNorm1d(hidden)
        self.expand = nn.Conv1d(hidden, channels, 1)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gate a map.

        Args:
            features: F [B, C, rows, columns].
            previous: A of the layer before, [B, C', h, w]; resized bilinearly to this map, and its
                mean over channels used where it has another number of them.

        Returns:
            F · A and A, both [B, C, rows, columns].

        Raises:
            ValueError: a map of another size.
        """
        if tuple(features.shape[2:]) != (self.rows, self.columns):
            raise ValueError(
                f"the map has {tuple(features.shape[2:])} pixels, Single-Orientation Attention "
                f"was built for rows={self.rows}, columns={self.columns}"
            )
        gate = self.gate(features.flatten(2)).unflatten(2, (self.rows, self.columns))
        if previous is not None:
            gate = gate * self._resized(previous, features.shape[1])
        return features * gate, gate

    def gate(self, features: Tensor) -> Tensor:
        """F [B, C, P] to A [B, C, P] in (0, 1), without a previous layer."""
        weights = self._weights().to(features.dtype)
        z = pooled(features, weights)
        a = self.expand(functional.hardswish(self.norm(self.reduce(z)))).sigmoid()
        return a @ weights  # [B, C, K] @ [K, P]

    def flops(self) -> float:
        """Of one map: means, gate and broadcast; see `mira.flops` for what is counted."""
        hidden, channels, _ = self.reduce.weight.shape
        spread = channels * self.bins * self.rows * self.columns
        return 4.0 * spread + 4.0 * hidden * channels * self.bins

    @property
    def direction(self) -> Tensor:
        """θ modulo π, in radians, a scalar to log."""
        return self.theta.detach()[0].remainder(pi)

    def _weights(self) -> Tensor:
        theta = self.theta[0] if self.theta.dtype == torch.float64 else self.theta[0].float()
        return hat_weights(theta, self.rows, self.columns, self.bins)

    def _resized(self, previous: Tensor, channels: int) -> Tensor:
        if previous.shape[1] != channels:
            previous = previous.mean(1, keepdim=True)
        if previous.shape[2:] == (self.rows, self.columns):
            return previous
        size = (self.rows, self.columns)
        return functional.interpolate(previous, size, mode="bilinear", align_corners=False)


class TokenOrientationAttention(nn.Module):
    """Single-Orientation Attention on the token grid of a video transformer.

    Every frame is a map of its own; θ and the gate's weights are shared over frames. Put it behind
    a block: `tokens = add_on(block(tokens))`.

    Args:
        dim: E.
        frames, rows, columns: of the grid, N = frames · rows · columns; see `mira.tubelets.Grid`.
        config: see `SoaConfig`.
    """

    def __init__(
        self, dim: int, frames: int, rows: int, columns: int, config: SoaConfig | None = None
    ):
        super().__init__()
        self.frames = frames
        self.soa = SingleOrientationAttention(dim, rows, columns, config)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, E], frame-major, to [B, N, E]. ValueError for another number of tokens."""
        per_frame = self.soa.rows * self.soa.columns
        if tokens.shape[1] != self.frames * per_frame:
            raise ValueError(
                f"{tokens.shape[1]} tokens are not {self.frames} frames of {per_frame}; give all "
                "patch tokens, without class token and unmasked"
            )
        maps = tokens.reshape(-1, per_frame, tokens.shape[2]).transpose(1, 2)  # [B · F, E, P]
        return (maps * self.soa.gate(maps)).transpose(1, 2).reshape(tokens.shape)

    def flops(self) -> float:
        """Of one clip."""
        return self.frames * self.soa.flops()


def orientation_layers(module: nn.Module) -> list[tuple[str, SingleOrientationAttention]]:
    """Every layer of Single-Orientation Attention in `module` with its name."""
    found = module.named_modules()
    return [(name, m) for name, m in found if isinstance(m, SingleOrientationAttention)]


def _axis(size: int, like: Tensor) -> Tensor:
    return torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
