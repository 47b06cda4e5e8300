"""Networks that recognise expressions: a clip [B, C, T, h, w] in, logits [B, O] out.

The table NETWORKS says which configuration makes which network. Every network has `features(x,
**inputs)` [B, E], `classify(features)` [B, O], `explain(x, **inputs)` (logits, and the importance
of its frames [B, F]), `head`, `layer_ids()`, `rate_scales()`, `flops()` and `num_classes`, which is
O; its `config` has `frames`, `image_size`, `pair` and `inputs`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from finetune.models.classifier import Classifier
from finetune.models.configs import NetworkConfig, read_config
from finetune.models.facesleuth import FaceSleuth, FaceSleuthConfig
from finetune.models.hsta import Hsta, HstaConfig
from finetune.models.soa import SoaConfig
from finetune.outputs import Outputs
from mira.encoder import EncoderConfig
from mira.loading import CheckpointError, LoadReport, load_weights
from mira.weights import load_artifact

__all__ = ["NETWORKS", "Classifier", "Network", "NetworkConfig", "build", "check_add_on", "start"]

Network = Classifier | Hsta | FaceSleuth


class Kind(NamedTuple):
    """How networks of one kind are made."""

    build: Callable[[Any, Outputs, SoaConfig | None], Network]
    """From a configuration, outputs, and Single-Orientation Attention as an add-on."""
    fresh: tuple[str, ...] = ("head.",)
    """Prefixes of what starts anew where other weights are taken for the rest."""
    from_encoder: bool = False
    """Whether it starts from a pretrained encoder; else from a network of the same kind."""
    soa: bool = False
    """Whether it takes the add-on."""


NETWORKS: dict[type, Kind] = {
    EncoderConfig: Kind(
        lambda config, outputs, soa: Classifier(config, outputs.size, soa=soa),
        from_encoder=True,
        soa=True,
    ),
    HstaConfig: Kind(lambda config, outputs, soa: Hsta(config, outputs.size)),
    FaceSleuthConfig: Kind(
        lambda config, outputs, soa: FaceSleuth(config, outputs.size, units_at=len(outputs.labels)),
        fresh=("head.", "unit_head.", "unit_embed."),
    ),
}


def build(config: NetworkConfig, outputs: Outputs, *, soa: bool = False) -> Network:
    """A network with fresh weights.

    Args:
        soa: asks for Single-Orientation Attention as an add-on; see `check_add_on`.
    """
    check_add_on(config, soa=soa)
    return NETWORKS[type(config)].build(config, outputs, SoaConfig() if soa else None)


def check_add_on(config: NetworkConfig, *, soa: bool) -> None:
    """ValueError where Single-Orientation Attention is asked of a network that does not take it."""
    if soa and not NETWORKS[type(config)].soa:
        raise ValueError(
            f"heads.soa is for video transformers, this network has a {type(config).__name__}: set "
            "heads.soa False"
        )


def start(
    folder: str | Path, config: NetworkConfig, outputs: Outputs, *, soa: bool = False
) -> tuple[Network, LoadReport]:
    """A network with the weights of another and a fresh head, and what became of every tensor.

    Args:
        folder: for a video transformer what `Classifier.from_encoder` takes; for the others what
            fine-tuning a network of the same kind wrote.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: another kind, or weights that do not fit.
    """
    check_add_on(config, soa=soa)
    kind = NETWORKS[type(config)]
    if kind.from_encoder:
        add_on = SoaConfig() if soa else None
        return Classifier.from_encoder(folder, cast(Any, config), outputs.size, soa=add_on)
    network = kind.build(config, outputs, None)
    state = _state_of_same_kind(Path(folder), config)
    kept = {name: t for name, t in state.items() if not name.startswith(kind.fresh)}
    return network, load_weights(network, kept, may_be_new=kind.fresh)


def _state_of_same_kind(folder: Path, config: NetworkConfig) -> dict[str, Any]:
    """The weights of a network of the same kind. CheckpointError for another kind."""
    wanted = type(config).__name__
    if not (folder / "provenance.json").is_file():
        raise CheckpointError(
            f"init {folder} is no folder that fine-tuning wrote: a network of {wanted} starts from "
            "one of its own kind, or from random weights (--init None)"
        )
    artifact = load_artifact(folder)
    try:
        saved = read_config(artifact.config["encoder"])
    except (KeyError, ValueError):
        saved = None
    if type(saved) is not type(config):
        found = "another kind" if saved is None else type(saved).__name__
        raise CheckpointError(
            f"init {folder} holds a network of {found}, this run trains one of {wanted}: starting "
            "one from the other is not supported; give a folder of the same kind, or --init None"
        )
    for field in ("heads", "window", "motion"):  # no tensor's shape shows them
        theirs, ours = getattr(saved, field, None), getattr(config, field, None)
        if theirs != ours:
            raise CheckpointError(
                f"init {folder} was trained with {field}={theirs}, this run has {ours}: set "
                f"--encoder.{field} alike"
            )
    return artifact.state_dict
