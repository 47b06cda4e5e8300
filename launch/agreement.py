"""What a checkpoint and the run that would go on from it must have in common.

Owns the comparison and its messages. Refuses to know files and DeepSpeed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn


class CheckpointError(ValueError):
    """A checkpoint this run cannot continue from."""


@dataclass(frozen=True)
class Agreement:
    """A run, as its checkpoints know it."""

    model: dict[str, Any] = field(default_factory=dict)
    """The network, its data and its inputs, plain JSON: never another one."""
    recipe: dict[str, str] = field(default_factory=dict)
    """Every other setting that tells in the weights, by dotted name: another one must be meant."""
    allow_change: bool = False
    """Whether another recipe may go on."""

    def check(self, path: Path, meta: Mapping[str, Any]) -> None:
        """Raise CheckpointError, naming the first field, unless `path` belongs to this run."""
        configured = json.loads(json.dumps(self.model))  # tuples are lists in a file
        for name, (theirs, ours) in _differences(meta["model"], configured).items():
            raise CheckpointError(
                f"{path}: this checkpoint is of another model: {name} was {theirs}, this run has "
                f"{ours}; {_fix(path)}"
            )
        for name, (theirs, ours) in self.changes(meta).items():
            if not self.allow_change:
                raise CheckpointError(
                    f"{path}: this run has gone {meta['step']} steps with {name} {theirs}, now it "
                    f"is {ours}; {_fix(path)}, or let it change from here on: --run.allow_change"
                )

    def changes(self, meta: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """Settings of the recipe by name: as they were, and as they are. One that the other version
        of this program does not know is none."""
        theirs = meta.get("recipe", {})
        return {
            name: (theirs[name], ours)
            for name, ours in self.recipe.items()
            if _value(theirs.get(name, ours)) != _value(ours)
        }

    def check_tensors(
        self, path: Path, meta: Mapping[str, Any], task: nn.Module, zero_stage: int
    ) -> None:
        """Raise CheckpointError, naming the tensor, unless `task` has those of the checkpoint."""
        ours = shapes(task)
        for name in sorted(set(ours) | set(meta["tensors"])):
            was, now = meta["tensors"].get(name), ours.get(name)
            if was != now:
                raise CheckpointError(
                    f"{path}: this checkpoint is of another shape: {name} was {was or 'absent'}, "
                    f"is {now or 'absent'}; {_fix(path)}"
                )
        if (meta["zero_stage"] == 0) != (zero_stage == 0):
            raise CheckpointError(
                f"{path}: written with --run.zero_stage {meta['zero_stage']}, this run has "
                f"{zero_stage}; stages 1 and 2 exchange checkpoints, 0 does not: {_fix(path)}"
            )


def shapes(task: nn.Module) -> dict[str, list[int]]:
    """The shapes of all tensors of a module, by name."""
    return {name: list(value.shape) for name, value in task.state_dict().items()}


def _value(text: str) -> Any:
    """What a setting says: 7 is 7.0, which a whole number becomes in a field for any."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _fix(path: Path) -> str:
    return f"take the setting back, or choose another --cluster.output, or delete {path.parent}"


def _differences(theirs: Any, ours: Any, at: str = "model") -> dict[str, tuple[Any, Any]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = {}
        for key in dict.fromkeys([*theirs, *ours]):
            found |= _differences(theirs.get(key), ours.get(key), f"{at}.{key}")
        return found
    return {} if theirs == ours else {at: (theirs, ours)}
