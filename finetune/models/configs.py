"""The configurations of all networks as one type, and from plain values back to the right one.

Owns telling them apart in files. It knows no layers. (The configuration of a whole run is read by
`launch/config.py`, which a packaged model does not carry.)
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from mira.encoder import EncoderConfig

NetworkConfig = EncoderConfig | HstaConfig | FaceSleuthConfig


def read_config(data: Mapping[str, Any]) -> NetworkConfig:
    """The inverse of `dataclasses.asdict`, from JSON values.

    Raises:
        ValueError: the names of the fields are those of no network of this version.
    """
    for kind in get_args(NetworkConfig):
        if {f.name for f in fields(kind)} == set(data):
            return _build(kind, data)
    raise ValueError("these are not the fields of a network of this version")


def predicted_units(config: NetworkConfig) -> tuple[str, ...]:
    """Action units that the network tells by itself; only FaceSleuth-R has a head for them."""
    return getattr(config, "predicted", ())


def privileged(config: NetworkConfig) -> list[str]:
    """What evaluation takes from annotations for the network, to stamp results with.

    Of a video alone onset and apex are spotted; without the units it is not answered at all.
    """
    return (["onset and apex"] if config.pair else []) + unanswerable(config)


def unanswerable(config: NetworkConfig) -> list[str]:
    """Inputs that annotations alone give: without them the network cannot be asked."""
    return ["action_units"] if "units" in config.inputs else []


def identity(config: NetworkConfig) -> dict[str, Any]:
    """The fields as plain values, without those that change how it is computed, not what."""
    return {k: v for k, v in asdict(config).items() if k not in ("backend", "checkpoint_blocks")}


def _build(kind: Any, data: Mapping[str, Any]) -> Any:
    hints = get_type_hints(kind)
    values = {}
    for name, value in data.items():
        if is_dataclass(hints[name]):
            value = _build(hints[name], value)
        elif get_origin(hints[name]) is tuple:
            value = tuple(value)
        values[name] = value
    return kind(**values)
