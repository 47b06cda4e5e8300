"""The passes of exact MiRA attention on the CPU, made of PyTorch's fused attention.

Owns how each pass of `chunked.py` (whose docstrings say what each takes and returns, and whose
symbols these are) is a call of one operator. That operator is one parallel region however many
tiles it has, so it scales over cores, and on a busy machine it does not wait at every step, which
`chunked.py` does. Three identities make it enough:

- with a mask log α its output is Σ α A v / Σ α A, and its log-sum-exp less the plain one log Σ α A;
- with queries and keys exchanged and a mask −lse, its log-sum-exp is the log of the column mass;
- its backward recomputes exp(scale · q·k + mask − lse) from any lse it is given, and knows of the
  output nothing but dOut · out, which it subtracts from dOut · v. So lse − log b scales a query's
  row, one more channel of dOut and v adds a number a key, and one of `out` subtracts one a query.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.flashlite.layout import heads_last
from kernels.marginals import statistics_dtype

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def plain_with_mass(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Plain attention, lse and column mass."""
    wide_q, wide_k, wide_v = _wide(q), _wide(k), _wide(v)
    plain, lse = _forward(wide_q, wide_k, wide_v, scale=scale)
    lse = lse.contiguous()  # a mask that is not costs twice the time
    _, received = _forward(wide_k, wide_q, wide_v, attn_mask=-lse[:, :, None], scale=scale)
    return _like(plain, v), lse, received.exp().mean(1)


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plain: Tensor,
    lse: Tensor,
    weight: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, O' and Z."""
    values = _wide(v)
    found, reached = _forward(_wide(q), _wide(k), values, attn_mask=_mask(weight), scale=scale)
    reached = (1 - floor) * (reached - lse).exp()[..., None]  # (1 − ε) Σ α A
    norm = reached + floor
    mean = values.mean(2, keepdim=True)
    reweighted = found.mul_(reached / norm).addcmul_(floor / norm, mean)
    out = torch.lerp(_wide(plain), reweighted, residual_mix)
    return _like(out, v), _like(reweighted, v), norm[..., 0].contiguous()


def values_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    reweighted: Tensor,
    lse: Tensor,
    norm: Tensor,
    weight: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The part of the re-weighted map: of dV, dL/dα of every key; of dQ with δ, and of dK.

    The last two are [B, H, N, D + 1], for `scores_backward`.
    """
    grads, values = _wide(grad), _wide(v)
    share = residual_mix / norm[..., None]  # η / Z
    along = (grads * _wide(reweighted)).sum(-1, keepdim=True)  # D'
    uniform = (grads * values.mean(2, keepdim=True)).sum(-1, keepdim=True) - along
    delta = (grads * _wide(out)).sum(-1, keepdim=True) - residual_mix * along
    delta -= floor * share * uniform
    left, right = torch.cat([grads, along], -1), _with(values, -1.0)  # G − D'
    nothing = torch.zeros_like(left)
    scaled = lse - ((1 - floor) * share[..., 0]).log()
    dq, dk, dv = _backward(
        left, _with(_wide(q), 0.0), _with(_wide(k), 0.0), right, nothing, scaled, 0.0, False,
        attn_mask=_mask(weight), scale=scale,
    )  # fmt: skip
    per_key = ((right * dv).sum(-1) / weight[:, None]).sum(1)
    dv = dv[..., :-1] + floor / q.shape[2] * (share * grads).sum(2, keepdim=True)
    dq_and_delta = torch.cat([dq[..., :-1], delta], -1)
    return _like(dv, v), per_key, dq_and_delta, dk.contiguous()


def scores_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    norm: Tensor,
    weight: Tensor,
    dq_and_delta: Tensor,
    dk: Tensor,
    mass_grad: Tensor,
    *,
    floor: float,
    residual_mix: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ and dK, with the parts of the plain map and of the statistics, and what dV still lacks."""
    dq, delta = dq_and_delta[..., :-1], dq_and_delta[..., -1:]
    pull = mass_grad[:, None, :, None].expand(*q.shape[:3], 1)
    wide_q, wide_k = _wide(q), _wide(k)
    padding = (0, q.shape[3] - 1)
    average, _ = _forward(wide_q, wide_k, functional.pad(pull, padding), scale=scale)
    left = _with((1 - residual_mix) * _wide(grad), 1.0)
    right = torch.cat([_wide(v), pull], -1)
    subtracted = functional.pad(delta + average[..., :1], (q.shape[3], 0))
    plain_dq, plain_dk, plain_dv = _backward(
        left, _with(wide_q, 0.0), _with(wide_k, 0.0), right, subtracted, lse, 0.0, False,
        scale=scale,
    )  # fmt: skip
    dq, dk = dq + plain_dq[..., :-1], dk[..., :-1] + plain_dk[..., :-1]
    return _like(dq, q), _like(dk, q), _like(plain_dv[..., :-1], v)


def _wide(x: Tensor) -> Tensor:
    return x.to(statistics_dtype(x.dtype))


def _with(x: Tensor, channel: float) -> Tensor:
    """x with one more channel, a constant."""
    return functional.pad(x, (0, 1), value=channel)


def _mask(weight: Tensor) -> Tensor:
    return weight.log()[:, None, None]


def _like(x: Tensor, example: Tensor) -> Tensor:
    """x in the example's dtype, laid out as [B, N, H, D]; x itself if it is so already."""
    made = heads_last(example)
    return x if x.dtype == made.dtype and x.stride() == made.stride() else made.copy_(x)
