"""The configuration of a study: a recipe, a protocol, and what is allowed.

Owns the fields and their checks. Refuses to know how a study is run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from finetune.config import FinetuneConfig
from finetune.protocols import ProtocolConfig


@dataclass(frozen=True)
class StudyConfig:
    """A recipe, and the protocol it is judged by."""

    finetune: Annotated[FinetuneConfig, tyro.conf.arg(name="")]
    plan: Annotated[ProtocolConfig, tyro.conf.arg(name="")] = field(default_factory=ProtocolConfig)
    out: str = "runs/study"
    """Folder of the study; cluster.output and validation_split are set by it. On several nodes it
    must lie on storage that all of them share."""
    select_last: bool = False
    """Train on all clips that are not tested, also a stored `val`, and take the last step."""
    select_on_test: bool = False
    """Pick the best step on the test clips themselves. No honest figure: every table says so."""
    vary_seed: bool = False
    """Fold i takes run.seed + i and data.seed + i: what differs between folds then holds the choice
    of a seed, too."""
    allow_label_in_names: bool = False
    """Go on where keys or file names tell the label; every result says so."""
    allow_trained_init: bool = False
    """Go on where finetune.init was fine-tuned on these shards; every table says so."""
    drop_duplicates: bool = False
    """Keep the first of each group of clips whose videos are the same."""
    retries: int = 2
    """How often a fold is tried again whose process was lost."""
    at_once: int | None = None
    """No more folds than these at a time; None runs as many as the cluster holds."""
    accept_code: bool = False
    """Keep folds that another version of the code finished."""

    def __post_init__(self) -> None:
        if self.select_last and self.select_on_test:
            raise ValueError("select_last and select_on_test exclude each other: choose one")
        if self.retries < 0 or (self.at_once is not None and self.at_once < 1):
            raise ValueError("retries must be at least 0, at_once at least 1")
        if self.finetune.data.splits is not None:
            raise ValueError("data.splits: a study writes the split files itself; leave it out")
        if self.finetune.tracking.register is not None:
            raise ValueError(
                "tracking.register: a study registers no model, its folds are for measuring; leave "
                "it out, and register what launch/finetune.py trains on all clips"
            )
        if not self.finetune.heads.labels:
            raise ValueError("heads.labels is off: a study needs a classifier")
