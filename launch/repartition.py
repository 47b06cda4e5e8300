"""Optimiser state that one number of ranks wrote, read by another number of ranks.

Owns the layout of DeepSpeed's ZeRO 1 and 2 files. Refuses to know when a checkpoint is read.
DeepSpeed has its own way, the universal checkpoint: it writes four files a parameter beside the
checkpoint first, has to be chosen before the engine exists, and leaves the buffers of the module
out. This reads the files as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def repartition(engine: Any, files: Path, world: int) -> None:
    """Give a DeepSpeed engine the module and its slice of the optimiser from `files` of `world`
    ranks."""
    engine.module.load_state_dict(_read(files / "mp_rank_00_model_states.pt")["module"])
    parts = [
        _read(files / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        for rank in range(world)
    ]
    for index, group in enumerate(engine.optimizer.optimizer.param_groups):
        _fill_slice(engine.optimizer, index, group, parts)


def _read(path: Path) -> dict:
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _fill_slice(optimizer: Any, index: int, group: dict, parts: list[dict]) -> None:
    """Fill this rank's flat slice of parameter group `index` from the slices `parts` of another
    number of ranks.

    Every part maps a parameter's name to where its fragment starts in that part's flat tensors; the
    fragments of a parameter, in the order of the ranks, are the whole parameter.
    """
    master = group["params"][0]
    mappings = [part["param_slice_mappings"][index] for part in parts]
    states = [part["base_optimizer_state"]["state"].get(index, {}) for part in parts]
    flat = {"fp32": [part["single_partition_of_fp32_groups"][index] for part in parts]}
    for key in ("exp_avg", "exp_avg_sq"):
        if all(key in state for state in states):
            flat[key] = [state[key] for state in states]
    targets = {key: torch.zeros_like(master) for key in flat}
    for param in optimizer.bit16_groups[index]:
        here = param._hp_mapping
        if here is None:
            continue  # this parameter lies wholly in other ranks' slices
        name = optimizer.param_names[param]
        there, mine = here.lp_fragment_address, here.hp_fragment_address
        for key, sources in flat.items():
            fragments = [
                source.narrow(0, mapping[name].start, mapping[name].numel)
                for source, mapping in zip(sources, mappings, strict=True)
                if name in mapping
            ]
            whole = torch.cat(fragments)
            targets[key].narrow(0, mine.start, mine.numel).copy_(
                whole.narrow(0, there.start, there.numel)
            )
    with torch.no_grad():
        master.copy_(targets.pop("fp32"))
    if targets:
        optimizer.optimizer.state[master] = {"step": states[0]["step"].clone(), **targets}
