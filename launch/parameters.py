"""Optimiser groups: which parameters decay, and at which share of the learning rate they move.

Owns the grouping rule shared by every objective. It knows tensors and names, no architecture: the
caller says how a parameter's name maps to its share of the learning rate.
"""

from collections.abc import Callable
from typing import Any

from torch import nn


def decay_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
) -> list[dict[str, Any]]:
    """Group trainable parameters by (decays, share of the learning rate).

    One-dimensional parameters (norms, biases, the mask token's kin) do not decay: VideoMAE's rule,
    NeurIPS 2022. A token stored as [1, 1, E] counts as one-dimensional.

    Args:
        module: its `named_parameters()` that require gradients are grouped.
        weight_decay: decay of matrices.
        lr_scale: parameter name → share of the learning rate (layer decay).

    Returns:
        Groups in order of first appearance: `params`, `weight_decay`, `lr_scale`, `name`.
    """
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = sum(size > 1 for size in parameter.shape) > 1
        scale = lr_scale(name)
        group = groups.setdefault(
            (decays, scale),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": scale,
                "name": f"{'decay' if decays else 'no_decay'}_x{scale:.4g}",
            },
        )
        group["params"].append(parameter)
    return list(groups.values())
