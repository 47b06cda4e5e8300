"""MARLIN's checkpoints: renaming between their layout and ours, with the same function computed.

Owns what differs beside names (MARLIN, CVPR 2023, arXiv 2211.06627, and its public code): LayerNorm
eps 1e-5; fixed positions that are stored; clips in [0, 1] without mean and deviation, which the
tubelet embedding can absorb; decoder outputs with the channel slowest. It knows tensors, no files
and no modules.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mira.tubelets import IMAGENET_MEAN, IMAGENET_STD, sinusoids

State = dict[str, Tensor]
LAYER_NORM_EPS = 1e-5
ADVERSARY = "discriminator."
POSITIONS = "pos_embedding.emb"
POSITIONS_WITHIN = 5e-3
"""Theirs are computed in float32: at position 1567 the angle is good to about 1e-4."""

NAMES = (
    ("patch_embedding.projection.", "patch_embed.proj."),
    ("mlp.layers.0.linear.", "mlp.fc1."),
    ("mlp.layers.1.linear.", "mlp.fc2."),
    ("enc_dec_proj.", "encoder_to_decoder."),
)
"""Theirs and ours; `decoder.mask_token` apart, every other name is the same."""


def is_marlin(names: Mapping[str, object]) -> bool:
    """Whether a checkpoint has MARLIN's names."""
    return f"encoder.{POSITIONS}" in names


def from_marlin(state: Mapping[str, Tensor]) -> tuple[State, tuple[str, ...]]:
    """MARLIN's names and conventions to ours.

    Args:
        state: of the encoder alone or of the whole network, Lightning's wrapper removed.

    Returns:
        our names (the encoder's with the prefix `encoder.`), and what was left out by design: the
        positions, which are ours, and the discriminator. A network with these weights and
        LayerNorm eps 1e-5, fed clips that `mira.tubelets.normalise` made, computes what MARLIN
        computes from the same pixels; its predictions are pixels, not yet normalised a patch.

    Raises:
        ValueError: positions that are not MARLIN's fixed ones, or layer scales, which the encoder
            here does not have.
    """
    scales = [name for name in state if re.search(r"\.gamma_[12]$", name)]
    if scales:
        raise ValueError(
            f"this MARLIN checkpoint has layer scales ({scales[0]}), which the published ones do "
            "not have and this encoder cannot hold"
        )
    dropped = tuple(n for n in state if n.endswith(POSITIONS) or n.startswith(ADVERSARY))
    for name in dropped:
        if name.endswith(POSITIONS):
            _check_positions(name, state[name])
    ours = {_renamed(n, theirs=False): t for n, t in state.items() if n not in dropped}
    weight, bias = ours["encoder.patch_embed.proj.weight"], ours["encoder.patch_embed.proj.bias"]
    mean, std = _statistics(weight)
    # W (std x + mean) + b = (W std) x + (b + W mean)
    ours["encoder.patch_embed.proj.weight"] = weight * std
    ours["encoder.patch_embed.proj.bias"] = bias + (weight * mean).flatten(1).sum(1)
    for name in ("decoder.head.weight", "decoder.head.bias"):
        if name in ours:
            ours[name] = ours[name].unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
    return ours, dropped


def to_marlin(state: Mapping[str, Tensor], *, tokens: int) -> State:
    """Our names and conventions to MARLIN's: the inverse of `from_marlin`.

    MARLIN's LayerNorm eps is 1e-5 whatever ours was, and it does not have MiRA's attention: only a
    plain network trained with `layer_norm_eps=1e-5` computes exactly the same there.

    Args:
        state: of `VideoMAE`, or of `Encoder` (names without prefix).
        tokens: N, for the stored positions.
    """
    if "patch_embed.proj.weight" in state:
        state = {f"encoder.{name}": tensor for name, tensor in state.items()}
    if any(name.startswith("encoder.head.") for name in state):
        raise ValueError("MARLIN's layout has no classifier; give the encoder's state dict alone")
    kept = {n: t for n, t in state.items() if not n.endswith("attn.c_buf")}
    theirs = {_renamed(name, theirs=True): tensor for name, tensor in kept.items()}
    projection = "encoder.patch_embedding.projection"
    mean, std = _statistics(theirs[f"{projection}.weight"])
    weight = theirs[f"{projection}.weight"] / std
    theirs[f"{projection}.weight"] = weight
    theirs[f"{projection}.bias"] = theirs[f"{projection}.bias"] - (weight * mean).flatten(1).sum(1)
    for name in ("decoder.head.weight", "decoder.head.bias"):
        if name in theirs:
            theirs[name] = theirs[name].unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    for part in ("encoder", "decoder"):
        if f"{part}.norm.weight" in theirs:
            positions = sinusoids(tokens, len(theirs[f"{part}.norm.weight"]))
            theirs[f"{part}.{POSITIONS}"] = positions[None]
    return theirs


def _renamed(name: str, *, theirs: bool) -> str:
    if name in ("mask_token", "decoder.mask_token"):
        return "decoder.mask_token" if theirs else "mask_token"
    for their_part, our_part in NAMES:
        old, new = (our_part, their_part) if theirs else (their_part, our_part)
        name = name.replace(old, new)
    return name


def _statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """ImageNet mean and deviation for a weight [E, 3, t, p, p]."""
    if weight.shape[1] != 3:
        raise ValueError(f"MARLIN takes RGB clips, this embedding has {weight.shape[1]} channels")
    mean, std = (torch.tensor(v).to(weight) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.view(1, 3, 1, 1, 1), std.view(1, 3, 1, 1, 1)


def _check_positions(name: str, found: Tensor) -> None:
    shape = found.shape
    if found.ndim != 3 or len(found) != 1:
        raise ValueError(f"{name} is {list(shape)}, not [1, N, E] as MARLIN stores positions")
    if not bool(((found[0].float() - sinusoids(*shape[1:])).abs() < POSITIONS_WITHIN).all()):
        raise ValueError(
            f"{name} does not hold MARLIN's fixed sine and cosine positions: they were trained or "
            "interpolated, and this encoder has fixed ones"
        )
