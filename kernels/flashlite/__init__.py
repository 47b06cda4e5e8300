"""Fused attention with one additive bias a key, which is what MiRA's FlashLite mode needs."""

from kernels.flashlite.op import flashlite_attention, key_energy

__all__ = ["flashlite_attention", "key_energy"]
