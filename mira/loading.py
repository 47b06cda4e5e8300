"""Copying weights into a model without silence, and reading a model's sizes off its weights.

Owns the rule that nothing is loaded partially unnoticed. It knows modules and state dicts, no files
and no layouts of others.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from mira.encoder import EncoderConfig

RUNNING_STATE = ".attn.c_buf"
"""MiRA's moving averages: a plain checkpoint has none, and a plain core needs none."""


class CheckpointError(ValueError):
    """Weights that do not fit the model they are meant for."""


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by name.

    Attributes:
        loaded: copied into the model.
        dropped: in the file, left out by design.
        new: in the model, not in the file, left at their initial values by design.
        wrong_shape: in both with different shapes, left at their initial values by design.
    """

    loaded: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]
    wrong_shape: tuple[str, ...]

    def also_dropped(self, names: tuple[str, ...]) -> "LoadReport":
        """This report, with names that were left out before the model saw them."""
        return replace(self, dropped=names + self.dropped)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for what in ("dropped", "new", "wrong_shape"):
            names = getattr(self, what)
            if names:
                parts.append(f"{len(names)} {what.replace('_', ' ')} ({_short(names)})")
        return ", ".join(parts)


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    may_drop: tuple[str, ...] = (),
    may_be_new: tuple[str, ...] = (),
) -> LoadReport:
    """Copy a state dict into a module; every exception to a perfect fit must have been named.

    MiRA's moving averages may always be absent, superfluous or of another frame count: they are
    running state, and start anew.

    Args:
        may_drop: prefixes of names that may be in `state` only.
        may_be_new: prefixes of names that may be in `module` only, or have another shape.

    Raises:
        CheckpointError: any other difference; names the tensors, their shapes and the fix. The
            module is then untouched.
    """
    wanted = module.state_dict()
    extra = [name for name in state if name not in wanted]
    new = [name for name in wanted if name not in state]
    differing = [n for n in wanted if n in state and wanted[n].shape != state[n].shape]
    _refuse(extra, may_drop, "are in the checkpoint but not in the model")
    _refuse(new, may_be_new, "are in the model but not in the checkpoint")
    for name in differing:
        if not _allowed(name, may_be_new):
            raise CheckpointError(
                f"{name} is {list(state[name].shape)} in the checkpoint and "
                f"{list(wanted[name].shape)} in the model: {_remedy(name)}"
            )
    loaded = {n: t for n, t in state.items() if n in wanted and n not in differing}
    module.load_state_dict(loaded, strict=False)
    return LoadReport(tuple(loaded), tuple(extra), tuple(new), tuple(differing))


def encoder_config(
    state: Mapping[str, Tensor], *, heads: int, frames: int, image_size: int, **choices: Any
) -> EncoderConfig:
    """The configuration whose encoder a state dict (without prefix) fits.

    Sizes come from the tensors' shapes; heads, frames and image size cannot be seen there.

    Args:
        choices: further fields of `EncoderConfig`, such as `attention`.
    """
    dim, channels, tubelet, patch, _ = state["patch_embed.proj.weight"].shape
    return EncoderConfig(
        image_size=image_size,
        frames=frames,
        patch_size=patch,
        tubelet=tubelet,
        channels=channels,
        dim=dim,
        depth=block_count(state),
        heads=heads,
        mlp_ratio=mlp_ratio(state, dim),
        **choices,
    )


def block_count(state: Mapping[str, Tensor], prefix: str = "") -> int:
    """How many blocks a state dict has under a prefix."""
    start = f"{prefix}blocks."
    return len({n[len(start) :].split(".")[0] for n in state if n.startswith(start)})


def mlp_ratio(state: Mapping[str, Tensor], dim: int, prefix: str = "") -> float:
    """Hidden size of the MLPs under a prefix as a multiple of dim."""
    name = f"{prefix}blocks.0.mlp.fc1.weight"
    if name not in state:
        raise CheckpointError(
            f"{name} is not in the checkpoint: the file is cut or of another kind"
        )
    return state[name].shape[0] / dim


def _refuse(names: Iterable[str], allowed: tuple[str, ...], what: str) -> None:
    wrong = [name for name in names if not _allowed(name, allowed)]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors {what}: {_short(wrong)}. Depth, kind of checkpoint and "
            "attention biases must be those of the model"
        )


def _allowed(name: str, prefixes: tuple[str, ...]) -> bool:
    return name.endswith(RUNNING_STATE) or name.startswith(prefixes)


def _remedy(name: str) -> str:
    """What to change when a tensor has another shape, from what its shape depends on."""
    if "patch_embed" in name:
        return "set patch_size, tubelet, channels and dim of the encoder to the checkpoint's"
    if name.startswith("head."):
        return "set num_classes to the checkpoint's, or start from its encoder for a new head"
    if name.startswith(("decoder.", "encoder_to_decoder", "mask_token")):
        return "set dim and mlp_ratio of the decoder to the checkpoint's"
    return "set dim and mlp_ratio of the encoder to the checkpoint's"


def _short(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
