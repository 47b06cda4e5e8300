"""Expression recognition as a task: labelled clips in, one classification loss a clip out.

Owns normalisation and mixing on the device, soft targets, and layer decay. It knows no cluster and
no files; the network is in `models/`, the figures in `metrics.py`.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from finetune.mixing import MixConfig, mix
from finetune.models.classifier import Classifier
from finetune.predictor import probabilities
from launch.parameters import decay_groups
from mira.tubelets import normalise
from shards.batch import ClipBatch


class ClassifyTask(nn.Module):
    """A classifier with its objective.

    Args:
        model: clips [B, C, T, h, w] → logits [B, classes].
        mixing: mixup, CutMix and label smoothing of training batches.
        layer_decay: learning rate of a layer as a share of that of the layer above it.
    """

    def __init__(self, model: Classifier, mixing: MixConfig, *, layer_decay: float = 1.0):
        super().__init__()
        self.model = model
        self.mixing = mixing
        self.layer_decay = layer_decay
        self.flops_per_clip = 3 * model.flops()  # the backward pass costs two forwards

    def forward(self, batch: ClipBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft-target cross entropy.

        Returns:
            losses [B], float32, and `accuracy` [B]: whether the likeliest class is the likeliest
            target (of a mixed clip: its larger part).
        """
        x = normalise(batch.pixels)
        x, targets = mix(
            x,
            batch.labels,
            batch.weights,
            batch.seeds,
            classes=self.model.num_classes,
            mix=self.mixing,
        )
        logits = self.model(x).float()
        losses = -(targets * functional.log_softmax(logits, dim=1)).sum(1)
        hit = logits.detach().argmax(1) == targets.argmax(1)
        return losses, {"accuracy": hit.float()}

    def predict(self, batch: ClipBatch) -> Tensor:
        """Probabilities [B, classes], float32, averaged over a clip's views."""
        return probabilities(self.model(normalise(batch.pixels)), views=batch.views)

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Rate of layer i of L: decay^(L + 1 - i), patch embedding 0, head L + 1 (BEiT's rule)."""
        layers = self.model.layer_ids()
        top = max(layers.values())
        return decay_groups(
            self,
            weight_decay,
            lr_scale=lambda name: self.layer_decay ** (top - layers[name.removeprefix("model.")]),
        )
