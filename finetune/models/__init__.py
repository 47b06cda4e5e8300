"""Networks that recognise expressions: a clip [B, C, T, h, w] in, logits [B, classes] out."""

from finetune.models.classifier import Classifier

__all__ = ["Classifier"]
