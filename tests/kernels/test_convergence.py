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


def flashlite(q, k, v, backend):
    return flashlite_attention(q, k, v, key_energy(k, backend=backend).log(), backend=backend)


def exact(q, k, v, backend, statistics="instance"):
    options = {"frames": FRAMES, "constants": MiraConstants(), "statistics": statistics}
    return exact_attention(q, k, v, **options, backend=backend)


MODES = {"flashlite": flashlite, "exact": exact}


def train(attend, backend, dtype, device):
    """Losses of a one-layer model that learns to copy its neighbour."""
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
    return torch.tensor(losses)


@pytest.mark.parametrize("backend, dtype", TRAINED, ids=str)  # Triton: minutes if interpreted
@pytest.mark.parametrize("mode", MODES)
def test_a_small_model_trains_as_with_the_reference(mode, backend, dtype, device):
    """Errors that a single call hides would add up."""
    found, expected = (train(MODES[mode], b, dtype, device) for b in (backend, "reference"))
    assert expected[-1] < 0.7 * expected[0], "it learns nothing that could go wrong"
    assert ((found - expected).abs() < 0.05 * expected[0]).all()


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


@needs_gpu
@pytest.mark.parametrize(("d", "frame"), [(64, 20), (64, 98), (80, 196), (128, 98)])
def test_exact_mode_at_the_shapes_that_matter(d, frame, device):
    qkv = torch.randn(1, FRAMES * frame, 3, 3, d, device=device).bfloat16()
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
    truth = exact(q.double(), k.double(), v.double(), "reference")
    plain = (exact(q, k, v, "reference").double() - truth).norm()
    assert (exact(q, k, v, "triton").double() - truth).norm() < 3 * plain
