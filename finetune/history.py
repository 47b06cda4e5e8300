"""What weights of ours have been through: how their step was picked, and which clips they know.

Owns reading this from the record that lies beside them, and the stamp of figures that they give.
Weights of others have no such record, and nothing is said of them. Shards are told by the hash of
their manifest: those that were ingested again, and what weights were started from, are not found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.models.configs import privileged
from finetune.predictor_config import PredictorConfig, artifact_folder

SPLIT_FILE = "input.splits.sha256"
Origin = Mapping[str, str]
"""`launch.provenance.provenance`, with `input.NAME.sha256` of what was read."""


def record_of(weights: Path) -> dict[str, Any]:
    """The provenance of a folder that a run of ours wrote or registered, or of the weights in it;
    of anything else empty."""
    folder = weights.parent if weights.is_file() else artifact_folder(weights)
    file = folder / "provenance.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def shared_shards(record: Mapping[str, Any], origin: Origin) -> list[str]:
    """Which of the shards of `origin` (manifest_0, …) the weights were trained or measured on."""
    ours = {v: k.split(".")[1] for k, v in origin.items() if re.match(r"input\.manifest_.*sha", k)}
    return sorted({ours[value] for value in map(str, record.values()) if value in ours})


def fine_tuned(record: Mapping[str, Any]) -> bool:
    """Whether the weights were trained with labels."""
    return "selection" in record


def picked_on(record: Mapping[str, Any], split: str | None, origin: Origin) -> list[str]:
    """A warning where the step was picked by the clips that are measured: `split` of shards that
    picked it, by the same split file if there is one, or all of them."""
    rule = str(record.get("selection", ""))
    best, _, where = rule.rpartition(" on ")
    if not best or split not in (None, where) or not shared_shards(record, origin):
        return []
    if record.get(SPLIT_FILE) != origin.get(SPLIT_FILE):
        return []
    return [f"the step was selected on these clips ({rule})"]


def trained_on(record: Mapping[str, Any], split: str | None, origin: Origin) -> list[str]:
    """A warning where the labels of clips that are measured were trained with, or may have been:
    `split` of shards that were trained on, by the same split file if there is one, or all of
    them."""
    if not fine_tuned(record) or not shared_shards(record, origin):
        return []
    if record.get(SPLIT_FILE) != origin.get(SPLIT_FILE):
        return ["some of these clips may have been trained on (by another split file)"]
    if split is not None and "train_split" not in record:  # an earlier version wrote it
        return ["some of these clips may have been trained on (the weights' record names no split)"]
    both = split is None or record["train_split"] in (None, split)
    return ["some of these clips were trained on"] if both else []


def leaks(record: Mapping[str, Any], split: str | None, origin: Origin) -> list[str]:
    """What makes figures of these weights on a split too good."""
    return picked_on(record, split, origin) + trained_on(record, split, origin)


def stamp(
    model: str, predictor: PredictorConfig, split: str | None, origin: Origin
) -> dict[str, Any]:
    """How figures of a predictor on a split came about: its classes, what it is told besides
    pixels, how its step was picked (None: no record), and what makes the figures too good.

    Args:
        model: its folder.
        origin: of the measurement.
    """
    record = record_of(Path(model))
    return {
        "labels": list(predictor.labels),
        "privileged": privileged(predictor.encoder),
        "selection": record.get("selection"),
        "leaks": leaks(record, split, origin),
    }


def cautions(result: dict[str, Any]) -> list[str]:
    """What a reader of the figures must not miss."""
    told = result["privileged"]
    given = [f"PRIVILEGED: told {', '.join(told)}"] if told else []
    return given + [f"LEAKS: {leak}" for leak in result["leaks"]]
