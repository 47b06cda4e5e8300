"""MiRA attention inside models of `transformers`, through its registry of attention functions.

Owns how the registry's call becomes ours, what a model's configuration tells us, and the refusal of
whatever MiRA does not define: masks, causal attention, dropout on the attention map, frames of
unequal size. It knows no weights and subclasses no model. `transformers` is an optional extra, and
imported when `register` is called.

    from mira.huggingface import register
    register()
    model = VideoMAEForVideoClassification.from_pretrained(name, attn_implementation="mira_exact")

A model's configuration may carry a field `mira`, a dict of plain values that is saved with it:
`frames` (F, where `num_frames // tubelet_size` does not give it), `tokens` (N of a whole clip,
where `image_size` and `patch_size` do not give it), `statistics` (`instance` or `batch`),
`constants` (fields of `MiraConstants`) and `backend` (see `mira.attention`). What is left out has
the published value.

Nothing else of a model changes, its LayerNorms neither. VideoMAE was trained with eps 1e-6;
`transformers` takes `config.layer_norm_eps`, 1e-12 by default, for all LayerNorms but two, which
have 1e-5 whatever the configuration says: `VideoMAEForVideoClassification.fc_norm` and
`VideoMAEForPreTraining.decoder.norm`. With `layer_norm_eps=1e-6` in the configuration and `eps` of
that one module set to 1e-6, a model's numbers are those of `mira.encoder` to rounding.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial, wraps
from typing import Any

from torch import Tensor, nn

from kernels.marginals import MiraConstants
from mira.cores import Mode, attention

MODES: dict[str, Mode] = {"mira_exact": "exact", "mira_flashlite": "flashlite"}
"""Names in the registry, and what `mira.attention` calls them."""

SETTINGS = ("frames", "tokens", "statistics", "constants", "backend")
CONSTANTS = tuple(field.name for field in fields(MiraConstants))
NOT_FOR_ATTENTION = ("num_items_in_batch", "output_hidden_states", "output_router_logits")
"""What transformers hands down to every layer, and other parts of a model use."""
MASKS_CHECKED = "mira_masks_checked"
"""Set on the attention modules whose masks `check_masks` sees."""
DECODED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Sizes that a decoder's configuration, a copy of the model's, has from its fields `decoder_…`."""


def register() -> None:
    """Make `attn_implementation="mira_exact"` and `"mira_flashlite"` known to `transformers`.

    Call it once in every process, before a model is built; calling it again changes nothing.

    Raises:
        ImportError: `transformers` is not installed.
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise ImportError(
            "mira.huggingface needs transformers 5.18 or newer: pip install 'mira-video[hf]'"
        ) from error
    _keep_from_flash_attention()
    for name, mode in MODES.items():
        AttentionInterface.register(name, partial(_attend, mode=mode))
        # Without a mask function transformers would drop a padding mask in silence.
        AttentionMaskInterface.register(name, sdpa_mask)


def check_masks(model: Any) -> None:
    """Let a `VideoMAEForPreTraining` (or a `VideoMAEModel`) take masks with MiRA attention.

    From then on every mask is checked before the tokens are embedded, because attention itself
    cannot see which tokens are missing. The decoder, whose tokens are in no frame order, attends
    plainly: so give the whole model, not its `videomae`, or the decoder raises. The check does not
    survive `save_pretrained`: call this again after loading.

    Raises:
        ValueError: a model that is not a VideoMAE; later, from the model's call, a mask that does
            not leave as many tokens in every frame.
    """
    base: Any = getattr(model, "videomae", model)
    if not hasattr(base, "embeddings") or not hasattr(base, "encoder"):
        raise ValueError(f"{type(model).__name__} is not a VideoMAE model of transformers")
    if hasattr(model, "decoder"):
        model.decoder.config._attn_implementation = "sdpa"  # its own copy of the configuration
    attending = [m for m in base.encoder.modules() if hasattr(m, "is_causal")]  # they call us
    if not all(getattr(module, MASKS_CHECKED, False) for module in attending):
        base.embeddings.register_forward_pre_hook(_check_mask, with_kwargs=True)
    for module in attending:
        setattr(module, MASKS_CHECKED, True)


def _keep_from_flash_attention() -> None:
    """Stop transformers from looking for a FlashAttention package behind our names.

    It takes every name with "flash" in it for one, registered or not, and fails without a package.
    """
    from transformers import modeling_utils

    load = getattr(modeling_utils, "lazy_import_flash_attention", None)
    if load is None or hasattr(load, "__wrapped__"):
        return

    @wraps(load)
    def load_theirs(implementation: str | None, *args: Any, **kwargs: Any) -> Any:
        return None if implementation in MODES else load(implementation, *args, **kwargs)

    setattr(modeling_utils, "lazy_import_flash_attention", load_theirs)  # noqa: B010 (private)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    *,
    mode: Mode,
    **others: Any,
) -> tuple[Tensor, None]:
    """The registry's signature: q, k, v [B, H, N, D] → (values [B, N, H, D], no attention map).

    Raises:
        ValueError: anything that MiRA does not define; names it and what to do.
    """
    _refuse(module, attention_mask, dropout, is_causal, others)
    settings = _settings(module.config)
    _check_tokens(module, query.shape[2], settings["frames"])
    out = attention(query, key, value, mode=mode, scale=scaling, **settings)
    return out.transpose(1, 2).contiguous(), None


def _refuse(
    module: nn.Module,
    attention_mask: Tensor | None,
    dropout: float,
    is_causal: bool | None,
    others: Mapping[str, Any],
) -> None:
    if attention_mask is not None:
        raise ValueError(
            "MiRA attention takes no attention_mask: its frame statistics need every token; leave "
            "the mask out, or use attn_implementation='sdpa'"
        )
    if dropout > 0.0:
        raise ValueError(
            f"MiRA attention takes no dropout on the attention map, and got {dropout}; set "
            "config.attention_probs_dropout_prob = 0.0"
        )
    if getattr(module, "is_causal", False) if is_causal is None else is_causal:
        raise ValueError("MiRA attention is not causal; use attn_implementation='sdpa'")
    asked = {name for name, value in others.items() if value is not None and value is not False}
    unknown = sorted(asked - set(NOT_FOR_ATTENTION))
    if unknown:
        raise ValueError(
            f"MiRA attention does not know what {', '.join(unknown)} should change; leave it out, "
            "or use attn_implementation='sdpa' (attention maps: 'eager')"
        )


def _settings(config: Any) -> dict[str, Any]:
    """The settings of a configuration, as `mira.attention` takes them."""
    given = _fields(getattr(config, "mira", None), SETTINGS, "config.mira")
    constants = _fields(given.get("constants"), CONSTANTS, "config.mira['constants']")
    for name, value in constants.items():
        if not isinstance(value, int | float):
            raise ValueError(f"config.mira['constants'][{name!r}] must be a number, not {value!r}")
    frames = _count(given, "frames")
    return {
        "frames": _frames(config) if frames is None else frames,
        "statistics": given.get("statistics", "instance"),
        "constants": MiraConstants(**constants),
        "backend": given.get("backend"),
    }


def _fields(given: Any, known: tuple[str, ...], what: str) -> Mapping[str, Any]:
    """What a dict of a configuration sets; ValueError if it is none, or has unknown fields."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} must be a dict with fields of {', '.join(known)}, not {given!r}")
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{what} has no field {', '.join(unknown)}; choose of {', '.join(known)}")
    return {name: value for name, value in given.items() if value is not None}


def _count(given: Mapping[str, Any], name: str) -> int | None:
    count = given.get(name)
    if count is not None and (not isinstance(count, int) or count < 1):
        raise ValueError(f"config.mira[{name!r}] must be a whole number above 0, not {count!r}")
    return count


def _frames(config: Any) -> int:
    frames, tubelet = getattr(config, "num_frames", None), getattr(config, "tubelet_size", None)
    if not isinstance(frames, int) or not isinstance(tubelet, int):
        raise ValueError(
            f"{type(config).__name__} does not tell the number of frames by num_frames and "
            "tubelet_size; set config.mira = {'frames': F}, F counted after tubelets"
        )
    return frames // tubelet


def _check_tokens(module: nn.Module, tokens: int, frames: int) -> None:
    """ValueError for tokens that are no whole clip in order, unless `check_masks` sees to them."""
    config: Any = module.config
    if getattr(module, MASKS_CHECKED, False):
        return
    expected = _tokens(config, frames)
    if tokens != expected:
        raise ValueError(
            f"MiRA attention got {tokens} tokens where a clip has {expected}. If some are masked, "
            "call mira.huggingface.check_masks(model) once, so that a mask leaving frames of "
            "unequal size is refused; if there is a class token, use attn_implementation='sdpa'"
        )
    if all(getattr(config, f"decoder_{n}", None) == getattr(config, n, 0) for n in DECODED):
        raise ValueError(
            "MiRA attention got a layer with the sizes of a decoder, whose tokens are in no frame "
            "order. Call mira.huggingface.check_masks(model) once with the whole model, not with "
            "its encoder: its decoder, if it has one, then attends plainly"
        )


def _tokens(config: Any, frames: int) -> int:
    """N of a whole clip."""
    given = _count(_fields(getattr(config, "mira", None), SETTINGS, "config.mira"), "tokens")
    image, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if given is not None:
        return given
    if image is None or patch is None:
        raise ValueError(
            f"{type(config).__name__} does not tell the tokens of a clip by image_size and "
            f"patch_size; set config.mira = {{'frames': {frames}, 'tokens': N}}, N of a whole "
            "clip, so that masked tokens are not taken for one"
        )
    (high, wide), (tall, broad) = _pair(image), _pair(patch)
    return frames * (high // tall) * (wide // broad)


def _check_mask(embeddings: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a VideoMAE's embeddings: ValueError unless its mask hides as many in every frame."""
    config: Any = embeddings.config
    mask = args[1] if len(args) > 1 else kwargs.get("bool_masked_pos")
    if mask is None or config._attn_implementation not in MODES:
        return
    frames = _settings(config)["frames"]
    if mask.shape[1] % frames:
        raise ValueError(f"a mask of {mask.shape[1]} tokens does not divide into {frames} frames")
    hidden = mask.unflatten(1, (frames, -1)).sum(2)  # [B, F]
    if bool((hidden != hidden[:1, :1]).any()):
        raise ValueError(
            "MiRA attention needs as many visible tokens in every frame; this mask leaves unequal "
            "numbers. Use a tube mask (one spatial mask for all frames), or "
            "attn_implementation='sdpa'"
        )


def _pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
