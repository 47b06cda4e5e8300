"""MiRA's exact mode: attention re-weighted by frame after the softmax, in O(N) memory."""

from kernels.exact.op import exact_attention, exact_attention_with_importance
from kernels.exact.weights import MovingAverage

__all__ = ["MovingAverage", "exact_attention", "exact_attention_with_importance"]
