"""What a network and its training need of a clip: from the data configuration to its arguments.

Owns how a run's data configuration follows from its network and outputs, and what of a batch goes
into the network beside the clip. It knows configurations and batches, no layers and no losses.
"""

from dataclasses import replace
from typing import Any

from finetune.models import NetworkConfig
from finetune.outputs import Outputs
from shards.batch import ClipBatch
from shards.config import DataConfig
from shards.labelling import Extra


def carrying(
    data: DataConfig,
    network: NetworkConfig,
    outputs: Outputs,
    *,
    votes: bool = False,
    subjects: bool = False,
) -> DataConfig:
    """The same clips, with what the network looks at and what its outputs are compared with.

    Args:
        network: decides on the pair, and on flow and annotated action units as inputs.
        outputs: decide on action units, valence and arousal as targets.
        votes: whether annotators' votes are targets.
        subjects: whether it matters who is seen.
    """
    wanted: dict[Extra, bool] = {
        "subject": subjects,
        "votes": votes,
        "units": bool(outputs.units) or "units" in network.inputs,
        "affect": outputs.affect,
        "flow": "flow" in network.inputs,
    }
    more = tuple(name for name, needed in wanted.items() if needed and name not in data.extra)
    units = outputs.units or getattr(network, "units", ())
    return replace(
        data,
        pair=data.pair or network.pair,
        extra=data.extra + more,
        units=units if wanted["units"] else data.units,
    )


def inputs_of(network: Any, batch: ClipBatch) -> dict[str, Any]:
    """What `network.features` takes beside the clips, by name.

    Args:
        network: has a `config` with `inputs`.

    Returns:
        of these: flow [B · views, flow_channels, h, w], units [B · views, U], 0 where unknown.
    """
    given: dict[str, Any] = {}
    if "flow" in network.config.inputs:
        given["flow"] = batch.extra["flow"][:, : network.config.flow_channels]
    if "units" in network.config.inputs:
        given["units"] = batch.extra["units"].nan_to_num().repeat_interleave(batch.views, 0)
    return given
