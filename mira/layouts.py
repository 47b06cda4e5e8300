"""Public checkpoint layouts: recognising them, and renaming between them and ours.

Owns the key names of VideoMAE, VideoMAE V2, MiRA and Hugging Face checkpoints, and which layout a
checkpoint has; what is special about MARLIN's is in `marlin.py`. It knows names and tensors, no
files and no modules. Ours is the public VideoMAE layout, so those three only lose prefixes; a
Hugging Face state dict is renamed and its q, k, v matrices are joined.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mira.marlin import LAYER_NORM_EPS as MARLIN_EPS
from mira.marlin import from_marlin, is_marlin

Kind = Literal["pretraining", "classifier", "encoder"]
State = dict[str, Tensor]

WRAPPERS = ("_orig_mod.", "module.", "backbone.")
"""Prefixes that compilation, data parallelism and detection frameworks put before every name."""

HUGGING_FACE_NAMES = (
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("attention.output.dense", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
)
"""Inside a layer or the embeddings, theirs and ours; the longer of two like endings comes first."""


@dataclass(frozen=True)
class PublicCheckpoint:
    """A checkpoint in canonical names.

    Attributes:
        state_dict: public VideoMAE names; of a `pretraining` checkpoint the encoder's carry the
            prefix `encoder.`, of the other kinds nothing.
        kind: `pretraining` (encoder and decoder), `classifier` (with a head), `encoder`.
        layout: where the names came from.
        dropped: names left out by design: those without effect (`key.bias`: softmax is invariant)
            and MARLIN's stored positions and discriminator.
        layer_norm_eps: what the network's LayerNorms were trained with.
    """

    state_dict: State
    kind: Kind
    layout: Literal["videomae", "huggingface", "marlin"]
    dropped: tuple[str, ...] = ()
    layer_norm_eps: float = 1e-6

    def encoder_state(self) -> State:
        """The encoder's part without prefix; decoder, head and `fc_norm` left out."""
        if self.kind == "pretraining":
            return {
                name.removeprefix("encoder."): tensor
                for name, tensor in self.state_dict.items()
                if name.startswith("encoder.")
            }
        heads = ("fc_norm.", "head.")
        return {n: t for n, t in self.state_dict.items() if not n.startswith(heads)}


def canonical(source: Mapping[str, Any]) -> PublicCheckpoint:
    """Recognise a checkpoint's layout and rename it to ours.

    Args:
        source: a state dict, or what a training script saved around one under `model`, `module` or
            `state_dict`.

    Raises:
        ValueError: a layout that is not known or not supported, or q and v biases of Hugging Face
            that are all zero.
    """
    state = _unwrapped(source)
    if is_marlin(state):
        state, dropped = from_marlin(state)
        return _recognised(state, "marlin", dropped, MARLIN_EPS)
    if any("patch_embeddings.projection" in name for name in state):
        state, dropped = _from_hugging_face(state)
        return _recognised(state, "huggingface", dropped)
    return _recognised(state, "videomae")


def _recognised(
    state: State,
    layout: Literal["videomae", "huggingface", "marlin"],
    dropped: tuple[str, ...] = (),
    eps: float = 1e-6,
) -> PublicCheckpoint:
    """Which kind of checkpoint these canonical names are."""
    if "encoder.patch_embed.proj.weight" in state:
        if any(name.startswith("decoder.") for name in state):
            return PublicCheckpoint(state, "pretraining", layout, dropped, eps)
        state = {name.removeprefix("encoder."): tensor for name, tensor in state.items()}
    if "patch_embed.proj.weight" not in state:
        raise ValueError(
            "not a known checkpoint layout: it has neither VideoMAE's patch_embed.proj.weight, "
            "Hugging Face's patch_embeddings.projection.weight nor MARLIN's "
            f"encoder.pos_embedding.emb; it starts with {_first(state)}"
        )
    kind: Kind = "classifier" if "head.weight" in state else "encoder"
    return PublicCheckpoint(state, kind, layout, dropped, eps)


def to_hugging_face(
    state: Mapping[str, Tensor],
    *,
    biases: Literal["on_disk", "in_memory"] = "on_disk",
) -> State:
    """Our names to those of `transformers`' VideoMAE models.

    Args:
        state: canonical names, of any kind.
        biases: `on_disk` writes `q_bias` and `v_bias`, as in published files; `in_memory` writes
            `query.bias` and `value.bias`, as modules of transformers 5.18 and later hold them.

    Returns:
        A state dict with separate q, k, v matrices; MiRA's moving averages are left out.
    """
    query, value = ("q_bias", "v_bias") if biases == "on_disk" else ("query.bias", "value.bias")
    renamed: State = {}
    for name, tensor in state.items():
        if name.endswith("attn.c_buf"):
            continue
        theirs = _their_name(name)
        if name.endswith("attn.qkv.weight"):
            stem = theirs.removesuffix("attn.qkv.weight") + "attention.attention."
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{stem}{part}.weight"] = third.clone()
        elif name.endswith(("attn.q_bias", "attn.v_bias")):
            stem, _, which = theirs.rpartition("attn.")
            renamed[f"{stem}attention.attention.{query if which[0] == 'q' else value}"] = tensor
        else:
            renamed[theirs] = tensor
    return renamed


def _their_name(name: str) -> str:
    """Layer prefix and plain renames of one of our names; q, k, v are left to the caller."""
    bare = name.removeprefix("encoder.")
    if bare.startswith(("fc_norm.", "encoder_to_decoder.", "decoder.norm.", "decoder.head.")):
        return bare
    if bare == "mask_token":
        return bare
    if bare.startswith("head."):
        return bare.replace("head.", "classifier.", 1)
    if bare.startswith("norm."):
        return bare.replace("norm.", "videomae.layernorm.", 1)
    for theirs, ours in HUGGING_FACE_NAMES:
        bare = re.sub(rf"\b{re.escape(ours)}\b", theirs, bare)
    if bare.startswith("embeddings."):
        return f"videomae.{bare}"
    if bare.startswith("decoder.blocks."):
        return bare.replace("decoder.blocks.", "decoder.decoder_layers.", 1)
    if bare.startswith("blocks."):
        return bare.replace("blocks.", "videomae.encoder.layer.", 1)
    raise ValueError(f"{name} has no place in a Hugging Face VideoMAE checkpoint")


def _unwrapped(source: Mapping[str, Any]) -> State:
    """The tensors of a checkpoint, without the dicts and prefixes around them."""
    inner = source
    for key in ("model", "module", "state_dict"):
        if isinstance(inner.get(key), Mapping):
            inner = inner[key]
    state: State = {}
    for name, tensor in inner.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name!r} in the checkpoint is a {type(tensor).__name__}, not a tensor; pass the "
                "state dict, or a dict that holds it under 'model', 'module' or 'state_dict'"
            )
        if _bare(name) in state:
            raise ValueError(f"{name!r} occurs twice in the checkpoint, with different prefixes")
        state[_bare(name)] = tensor
    return state


def _bare(name: str) -> str:
    """A name without wrappers, however many and in whatever order."""
    stripped = name
    for wrapper in WRAPPERS:
        stripped = stripped.removeprefix(wrapper)
    return name if stripped == name else _bare(stripped)


def _from_hugging_face(state: State) -> tuple[State, tuple[str, ...]]:
    pretraining = any(name.startswith("decoder.") for name in state)
    renamed: State = {}
    for name, tensor in state.items():
        renamed[_our_name(name.removeprefix("videomae."), pretraining)] = tensor
    dropped = tuple(name for name in state if name.endswith("attention.key.bias"))
    joined = _join_qkv({n: t for n, t in renamed.items() if not n.endswith("attn.key.bias")})
    biases = [t for n, t in joined.items() if n.endswith(("attn.q_bias", "attn.v_bias"))]
    if biases and not any(bool(bias.any()) for bias in biases):
        raise ValueError(
            "all q and v biases of this Hugging Face checkpoint are zero: transformers 5.5 to 5.17 "
            "lose them when they load a published file, and save the zeros. Load the original "
            "file, or save it again with another version"
        )
    return joined, dropped


def _our_name(name: str, pretraining: bool) -> str:
    """One of their names, `videomae.` removed, to ours; q, k, v still apart."""
    if name.startswith(("decoder.norm.", "decoder.head.", "encoder_to_decoder.", "fc_norm.")):
        return name
    if name == "mask_token":
        return name
    if name.startswith("classifier."):
        return name.replace("classifier.", "head.", 1)
    prefix = "encoder." if pretraining and not name.startswith("decoder.") else ""
    name = name.replace("decoder.decoder_layers.", "decoder.blocks.", 1)
    name = re.sub(r"^encoder\.layer\.", "blocks.", name)
    name = re.sub(r"^layernorm\.", "norm.", name)
    name = re.sub(r"attention\.attention\.", "attn.", name)
    name = name.replace("attn.query.bias", "attn.q_bias").replace("attn.value.bias", "attn.v_bias")
    for theirs, ours in HUGGING_FACE_NAMES:
        name = name.replace(theirs, ours)
    return prefix + name


def _join_qkv(state: State) -> State:
    """Query, key and value matrices to the thirds of one `qkv.weight`."""
    joined: State = {}
    for name, tensor in state.items():
        stem, found, part = name.rpartition("attn.")
        if not found or part not in ("query.weight", "key.weight", "value.weight"):
            joined[name] = tensor
        elif part == "query.weight":
            names = [f"{stem}attn.{which}.weight" for which in ("query", "key", "value")]
            missing = [other for other in names if other not in state]
            if missing:
                raise ValueError(f"the checkpoint holds {name} but not {', '.join(missing)}")
            joined[f"{stem}attn.qkv.weight"] = torch.cat([state[other] for other in names])
    return joined


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (" …" if len(listed) > 3 else "") if listed else "nothing"
