"""Both modes over many steps: a small model trains as with the reference, with the same bits.

On a GPU this runs the kernels; on a CPU the SDPA path, for fewer steps.
"""

import pytest
import torch
from torch import nn

from kernels.exact import exact_attention
from kernels.flashlite import flashlite_attention, key_energy
from kernels.marginals import MiraConstants
from tests.kernels.conftest import NATIVE

FRAMES, HEADS = 8, 2
TRAINED = [("sdpa", torch.float32)]
TRAINED += [("triton", torch.float32), ("triton", torch.bfloat16)] if NATIVE else []
needs_gpu = pytest.mark.skipif(not NATIVE, reason="needs a CUDA GPU: races do not show without")


STRONG = MiraConstants(alpha_min=0.05, alpha_max=20.0, residual_mix=1.0, floor=0.05)


def flashlite(q, k, v, backend):
    bias = 2 * key_energy(k, backend=backend).log()
    return flashlite_attention(q, k, v, bias, backend=backend)


def exact(q, k, v, backend, statistics="instance"):
    options = {"frames": FRAMES, "constants": STRONG, "statistics": statistics}
    return exact_attention(q, k, v, **options, backend=backend)


def plain(q, k, v, backend):
    return flashlite_attention(q, k, v, None, backend=backend)


class Weaker(torch.autograd.Function):
    """The identity, whose gradient is off by a tenth: what a wrong kernel might do."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 0.9 * grad


def wrong(attend):
    """A mode whose dQ is off by a tenth."""
    return lambda q, k, v, backend: attend(Weaker.apply(q), k, v, backend)


MODES = {"flashlite": flashlite, "exact": exact}


def train(attend, backend, dtype, device):
    """Losses and final weights of a one-layer model that learns to copy its neighbour."""
    torch.manual_seed(1)
    clips, n = (8, 160) if NATIVE else (2, 40)
    x = torch.randn(clips, n, 64, device=device)
    target = torch.roll(x, 1, dims=1).tanh()
    qkv, out = nn.Linear(64, 192).to(device), nn.Linear(64, 64).to(device)
    place = nn.Parameter(torch.randn(n, 64, device=device))
    optimizer = torch.optim.AdamW([*qkv.parameters(), *out.parameters(), place], lr=1e-2)
    losses = []
    for _ in range(200 if NATIVE else 60):
        q, k, v = qkv(x + place).to(dtype).unflatten(2, (3, HEADS, 32)).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, backend)
        loss = (out(mixed.transpose(1, 2).flatten(2).float()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), torch.cat([qkv.weight.flatten(), out.weight.flatten()]).detach()


def apart(found, expected):
    """Largest difference of the losses over the first one; of the weights over their norm."""
    (losses, weights), (other_losses, other_weights) = found, expected
    worst = (losses - other_losses).abs().max() / other_losses[0]
    return float(worst), float((weights - other_weights).norm() / other_weights.norm())


def as_good_as_plain(attend, backend, mode, dtype, device):
    """Whether training is no further from float64 than 3 times what plain PyTorch in `dtype` is."""
    expected = train(MODES[mode], "reference", torch.float64, device)
    assert expected[0][-1] < 0.7 * expected[0][0], "it learns nothing that could go wrong"
    plainly = apart(train(MODES[mode], "reference", dtype, device), expected)
    found = apart(train(attend, backend, dtype, device), expected)
    return all(error <= 3 * limit for error, limit in zip(found, plainly, strict=True))


@pytest.mark.parametrize("backend, dtype", TRAINED, ids=str)  # Triton: minutes if interpreted
@pytest.mark.parametrize("mode", MODES)
def test_a_small_model_trains_as_with_the_reference(mode, backend, dtype, device):
    """Errors that a single call hides would add up."""
    assert as_good_as_plain(MODES[mode], backend, mode, dtype, device)


@pytest.mark.parametrize("mode", MODES)
def test_the_training_would_notice_a_wrong_kernel(mode, device):
    for impostor in (plain, wrong(MODES[mode])):
        assert not as_good_as_plain(impostor, "reference", mode, torch.float32, device)


@needs_gpu
@pytest.mark.parametrize("statistics", ["instance", "batch"])
@pytest.mark.parametrize(("d", "frame"), [(64, 20), (64, 196), (80, 196)])
def test_exact_mode_has_the_same_bits_on_every_run(d, frame, statistics, device):
    qkv = torch.randn(2, FRAMES * frame, 3, 4, d, device=device, dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind()]
    grad = torch.randn_like(leaves[0])

    def run():
        out = exact(*leaves, "triton", statistics)
        return out, *torch.autograd.grad(out, leaves, grad)

    first = run()
    for _ in range(49):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def with_gradients(attend, tensors, grad, backend):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = attend(*leaves, backend)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def assert_close_as_plain(found, attend, tensors, grad):
    """Output and gradients no further from float64 than 3 times what plain PyTorch is."""
    wide = [x.double() for x in (*tensors, grad)]
    truths = with_gradients(attend, wide[:3], wide[3], "reference")
    plains = with_gradients(attend, tensors, grad, "reference")
    for name, ours, plain, truth in zip(
        ("out", "dq", "dk", "dv"), found, plains, truths, strict=True
    ):
        assert (ours.double() - truth).norm() <= 3 * (plain.double() - truth).norm(), name


@needs_gpu
@pytest.mark.parametrize(("d", "frame"), [(64, 20), (64, 98), (80, 196), (128, 98)])
def test_exact_mode_at_the_shapes_that_matter(d, frame, device):
    qkv = torch.randn(1, FRAMES * frame, 3, 3, d, device=device).bfloat16()
    *tensors, grad = (*qkv.permute(2, 0, 3, 1, 4).unbind(), torch.randn_like(qkv[:, :, 0]))
    grad = grad.transpose(1, 2)
    found = with_gradients(exact, tensors, grad, "triton")
    assert_close_as_plain(found, exact, tensors, grad)


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
def test_more_elements_than_32_bits_count(mode, device):
    clips, n, heads, d = 17_500, 160, 12, 64
    assert clips * n * heads * d > 2**31
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB of free memory on the GPU")
    qkv = torch.randn(clips, n, 3, heads, d, device=device, dtype=torch.bfloat16)
    tensors = qkv.permute(2, 0, 3, 1, 4).unbind()
    grad = torch.randn(clips, n, heads, d, device=device, dtype=torch.bfloat16).transpose(1, 2)
    found = with_gradients(MODES[mode], tensors, grad, "triton")
    last = slice(clips - 1, clips)
    ours = [x[last] for x in found]
    assert_close_as_plain(ours, MODES[mode], [x[last] for x in tensors], grad[last])
