"""The network that pretraining and fine-tuning share: tubelets, MiRA attention, encoder, weights.

Knows no data, no clusters and no losses. Importing it needs torch, numpy and safetensors alone.
"""

from kernels.marginals import MiraConstants, Statistics
from mira.cores import attention

__all__ = ["MiraConstants", "Statistics", "attention"]
