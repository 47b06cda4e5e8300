"""The configuration of a fine-tuning run, and what follows from it.

Owns the composition, the checks across its parts, and what data its network and losses need. What a
field of a part means stands beside the code that reads it; the published numbers are in
`recipes.py` and `recipes_micro.py`.
"""

from dataclasses import dataclass, field

from finetune.identity import IdentityConfig
from finetune.inputs import carrying
from finetune.losses import LossesConfig
from finetune.mixing import MixConfig
from finetune.models import check_add_on
from finetune.models.configs import predicted_units
from finetune.models.facesleuth_config import FaceSleuthConfig
from finetune.models.hsta_config import HstaConfig
from finetune.outputs import HeadsConfig, Outputs
from launch.cluster import ClusterConfig
from launch.engine import RunConfig
from launch.tracking import PublishConfig
from mira.encoder import EncoderConfig
from shards.config import DataConfig


@dataclass(frozen=True)
class FinetuneConfig:
    """A whole fine-tuning run."""

    encoder: EncoderConfig | HstaConfig | FaceSleuthConfig
    """The network: a recipe's kind, with these sizes."""
    data: DataConfig
    mixing: MixConfig
    run: RunConfig
    cluster: ClusterConfig
    tracking: PublishConfig
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    init: str | None = None
    """Where the encoder's weights come from: a folder or file (also a public checkpoint),
    `models:/name@alias`, or `runs:/id/encoder`; None starts from random weights. HSTA and
    FaceSleuth-R start from a folder of their own kind."""
    layer_decay: float = 0.75
    """Learning rate of a layer as a share of that of the layer above it."""
    validation_split: str | None = "val"
    """Split that is measured during training and picks the best step; None trains to the last."""

    def __post_init__(self) -> None:
        for theirs, ours in (("frames", "frames"), ("image_size", "size")):
            wanted, given = getattr(self.encoder, theirs), getattr(self.data, ours)
            if wanted != given:
                raise ValueError(
                    f"encoder.{theirs} is {wanted} but data.{ours} is {given}: set both alike"
                )
        if self.validation_split is not None and self.validation_split == self.data.split:
            raise ValueError(
                f"validation_split and data.split are both {self.data.split!r}: "
                "choose the best step on clips that are not trained on"
            )
        if getattr(self.encoder, "statistics", None) == "batch_ema":
            raise ValueError(
                "encoder.statistics is batch_ema, which is for pretraining: use instance"
            )
        check_add_on(self.encoder, soa=self.heads.soa)
        self._check_outputs()
        if self.encoder.inputs and self.mixing.enabled:
            raise ValueError(
                f"the network takes {' and '.join(self.encoder.inputs)} beside the clip, which "
                "mixing.mixup and mixing.cutmix do not mix: set both to 0"
            )

    def outputs(self, labels: tuple[str, ...]) -> Outputs:
        """What the network tells, where the shards have these labels."""
        units = self.heads.units or predicted_units(self.encoder)
        return Outputs(labels if self.heads.labels else (), units, self.heads.affect)

    def data_for(self, *, train: bool = True) -> DataConfig:
        """`data` with what the network, its outputs and losses need of every clip."""
        return carrying(
            self.data,
            self.encoder,
            self.outputs(()),
            votes=self.losses.votes and self.heads.labels,
            subjects=train and self.identity.weight > 0,
        )

    def _check_outputs(self) -> None:
        """ValueError where there is nothing to learn, or units are named in two ways."""
        told, units = self.outputs(("",)), predicted_units(self.encoder)
        if not told.size:
            raise ValueError(
                "heads has nothing to learn: set heads.labels, heads.units or heads.affect"
            )
        losses = self.losses
        if not self.heads.labels and (losses.balance or losses.focal or losses.votes):
            raise ValueError(
                "losses.balance, focal and votes are of classes, which heads.labels False leaves "
                "out: set them to 0, 0 and False"
            )
        if units and told.units != units:
            raise ValueError(
                f"heads.units is {self.heads.units}, but the network predicts encoder.units "
                f"{units}: leave heads.units out"
            )
        if units and told.size == len(units):
            raise ValueError(
                "encoder.action_units='predicted' tells classes with the help of action units: set "
                "heads.labels, or action_units off and heads.units"
            )
        if "units" in self.encoder.inputs and told.units:
            raise ValueError(
                "encoder.action_units='oracle' takes the annotated units as an input: they cannot "
                "be told as well; leave heads.units out"
            )
