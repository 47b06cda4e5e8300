"""The network that pretraining and fine-tuning share: tubelets, MiRA attention, encoder, weights.

Knows no data, no clusters and no losses. Importing it needs torch, numpy and safetensors alone.
"""

from mira.cores import attention
from mira.marginals import MiraConstants

__all__ = ["MiraConstants", "attention"]
