"""Expression recognition as a task: clips with what is known of them in, one loss a clip out.

Owns what is done on the device, from augmentation to the sum of losses, and which parameters learn
at which rate. It knows no cluster and no files; networks are in `models/`, losses in `losses.py`,
targets in `targets.py`, figures in `metrics.py` and `measure.py`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from finetune.identity import IdentityConfig, IdentityHead
from finetune.inputs import inputs_of
from finetune.losses import LossesConfig, Objective
from finetune.mixing import MixConfig, Mixed, mix
from finetune.models import Network
from finetune.models.soa import orientation_layers
from finetune.outputs import Outputs
from finetune.targets import one_hot, targets_of
from launch.parameters import decay_groups
from mira.blocks import compile_blocks
from mira.tubelets import normalise
from shards.augment import AugmentConfig
from shards.batch import ClipBatch
from shards.draws_device import augmented


class ClassifyTask(nn.Module):
    """A network with its objective.

    Args:
        model: clips [B, C, T, h, w] → logits [B, O].
        mixing: mixup, CutMix and label smoothing of training batches.
        layer_decay: learning rate of a layer as a share of that of the layer above it.
        outputs: what the logits mean; None: O classes.
        losses: see `LossesConfig`.
        counts: training clips a class, for `losses.balance`.
        identity: see `IdentityConfig`.
        subjects: how many people the training clips show, for `identity`.
        augment: what is done to training clips here (`data.on_device`); None: the loader did it.
    """

    def __init__(
        self,
        model: Network,
        mixing: MixConfig,
        *,
        layer_decay: float = 1.0,
        outputs: Outputs | None = None,
        losses: LossesConfig | None = None,
        counts: list[int] | None = None,
        identity: IdentityConfig | None = None,
        subjects: int = 0,
        augment: AugmentConfig | None = None,
    ):
        super().__init__()
        self.model = model
        self.augment = augment
        self.mixing = mixing
        self.layer_decay = layer_decay
        self.outputs = outputs or Outputs(tuple(map(str, range(model.num_classes))))
        self.losses = losses or LossesConfig()
        self.objective = Objective(self.outputs, self.losses, counts=counts)
        self.adversary = identity or IdentityConfig()
        self.identity = None
        if self.adversary.weight:
            dim, strength = model.head.in_features, self.adversary.strength
            self.identity = IdentityHead(dim, subjects, strength=strength)
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        self._statistics = [part for part in model.modules() if isinstance(part, norms)]
        self.flops_per_clip = 3 * model.flops()  # the backward pass costs two forwards

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a clip's losses; an unknown target adds nothing to it.

        Returns:
            losses [B], float32, and figures [B]: `accuracy`, whether the likeliest class is the
            likeliest target (of a mixed clip: its larger part), 0 where the class is unknown; where
            there are several losses, each; and θ of every layer that has one, modulo π.
        """
        pixels = normalise(augmented(batch, self.augment))
        mixed = mix(pixels, batch.weights, batch.seeds, self.mixing)
        shown = self._shown(batch.weights)
        inputs = {name: value[shown] for name, value in inputs_of(self.model, batch).items()}
        features = self.model.features(mixed.pixels[shown], **inputs)
        logits = self.model.classify(features).float()
        targets = targets_of(
            batch, self.outputs, smoothing=self.mixing.label_smoothing, votes=self.losses.votes
        )
        targets = type(targets)(*(mixed.blend(t) for t in targets))
        losses, figures = self.objective(logits, targets), {}
        if self.outputs.labels:
            hit = self.outputs.split(logits.detach()).labels.argmax(1)
            there = ~targets.labels.isnan().any(1)
            right = hit == targets.labels.nan_to_num().argmax(1)
            figures["accuracy"] = (right & there).float()
        if self.identity is not None:
            adverse, figures["identity_accuracy"] = self._adverse(features, batch, mixed)
            losses["identity"] = self.adversary.weight * adverse
        if len(losses) > 1:
            figures |= {f"loss_{name}": value.detach() for name, value in losses.items()}
        return sum(losses.values(), logits.new_zeros(len(batch))), figures | self._directions(batch)

    def predict(self, batch: ClipBatch) -> Tensor:
        """Answers [B, O], float32, averaged over a clip's views: see `Outputs.answers`."""
        logits = self.model(normalise(batch.pixels), **inputs_of(self.model, batch))
        return self.outputs.answers(logits, views=batch.views)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` for every block of the network; what is around them stays as it is."""
        compile_blocks(self, *args, **kwargs)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Rate of layer i of L: decay^(L + 1 - i), patch embedding 0, head L + 1 (BEiT's rule).

        A parameter with a rate of its own (`rate_scales` of the network) keeps that one.
        """
        layers, own = self.model.layer_ids(), self.model.rate_scales()
        top = max(layers.values())

        def scale(name: str) -> float:
            if name.startswith("identity."):
                return self.adversary.rate
            inner = name.removeprefix("model.")
            return own.get(inner, self.layer_decay ** (top - layers[inner]))

        return decay_groups(self, weight_decay, lr_scale=scale)

    def _shown(self, weights: Tensor) -> Tensor | slice:
        """Whose clip the network is shown at each place, int64 [B].

        To statistics of batches, the black clip of an empty place is a clip like others. Where a
        network keeps some, clips that count stand in for those that do not, one after the other;
        where none counts, the statistics stay as they are.
        """
        if not self._statistics:
            return slice(None)
        counted = (weights > 0).nonzero().squeeze(1)
        for norm in self._statistics:
            norm.train(self.training and len(counted) > 0)
        if len(counted) in (0, len(weights)):
            return slice(None)
        places = torch.arange(len(weights), device=weights.device)
        return torch.where(weights > 0, places, counted[places % len(counted)])

    def _adverse(self, features: Tensor, batch: ClipBatch, mixed: Mixed) -> tuple[Tensor, Tensor]:
        """Loss and accuracy [B] of the head that tells subjects."""
        assert self.identity is not None
        subjects = one_hot(batch.extra["subject"], self.identity.subjects)
        return self.identity.losses(features, mixed.blend(subjects))

    def _directions(self, batch: ClipBatch) -> dict[str, Tensor]:
        """θ of every layer of Single-Orientation Attention, for each clip alike."""
        found = orientation_layers(self.model)
        return {f"theta/{n}": torch.stack([soa.direction] * len(batch)) for n, soa in found}
