"""Which backend attends at the shapes of pretraining and fine-tuning, and that it can be named."""

from dataclasses import replace

import pytest
import torch

from kernels.exact import op as exact
from kernels.flashlite import flashlite_attention
from kernels.flashlite import op as flashlite
from kernels.marginals import MiraConstants
from mira.cores import CORES, How
from mira.encoder import Encoder, EncoderConfig
from tests.kernels.conftest import DEVICE, interpreter  # noqa: F401 (an autouse fixture)

DEFAULT = "triton" if DEVICE == "cuda" else "sdpa"
TABLES = {"mira_exact": exact.BACKENDS, "mira_flashlite": flashlite.BACKENDS}


@pytest.fixture
def called(monkeypatch):
    """(attention, backend, shape of q) of every call, in order."""
    calls = []

    def watched(attention, name, backend):
        def run(q, *args, **kwargs):
            calls.append((attention, name, tuple(q.shape)))
            return backend.run(q, *args, **kwargs)

        return replace(backend, run=run)

    for attention, table in TABLES.items():
        for name, backend in list(table.items()):
            monkeypatch.setitem(table, name, watched(attention, name, backend))
    return calls


def encode(attention, backend, *, per_frame, dim, heads):
    """Forward and backward of 8 frames with so many of their 196 tokens visible."""
    torch.manual_seed(0)
    config = EncoderConfig(dim=dim, depth=1, heads=heads, attention=attention, backend=backend)
    encoder = Encoder(config).to(DEVICE)
    places = torch.randperm(196)[:per_frame].sort().values
    visible = (torch.arange(8)[:, None] * 196 + places).flatten()
    clip = torch.randn(1, 3, 16, 224, 224, device=DEVICE)
    out = encoder(clip, None if per_frame == 196 else visible[None].to(DEVICE))
    out.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in encoder.blocks.parameters())
    return out


@pytest.mark.parametrize("attention", TABLES)
@pytest.mark.parametrize("per_frame", [20, 196])
def test_masked_and_whole_clips_both_take_the_fast_path(attention, per_frame, called):
    found = encode(attention, None, per_frame=per_frame, dim=16, heads=2)
    shape = (1, 2, 8 * per_frame, 8)
    assert called == [(attention, DEFAULT, shape)]
    expected = encode(attention, "reference", per_frame=per_frame, dim=16, heads=2)
    assert called[1:] == [(attention, "reference", shape)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", TABLES)
def test_masked_clips_take_the_kernels_where_these_are_named(attention, called):
    found = encode(attention, "triton", per_frame=20, dim=16, heads=1)
    assert called == [(attention, "triton", (1, 1, 160, 16))]
    expected = encode(attention, "reference", per_frame=20, dim=16, heads=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("mira_exact", {"residual_mix": 0.0}),
        ("mira_exact", {"alpha_min": 1.0, "alpha_max": 1.0, "floor": 0.0}),
        ("mira_flashlite", {"alpha_min": 1.0, "alpha_max": 1.0}),
    ],
)
@pytest.mark.parametrize("statistics", ["instance", "batch"])
def test_constants_without_strength_are_plain_attention_of_the_kernels_bit_for_bit(
    name, constants, statistics
):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 40, 16, generator=generator).to(DEVICE)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    how = How(8, statistics, MiraConstants(**constants), 0.3, "triton")
    out, importance = CORES[name].attend(q, k, v, how)
    plain = flashlite_attention(q, k, v, None, scale=0.3, backend="triton")
    assert torch.equal(out, plain)
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, plain)]
    assert all(map(torch.equal, *grads))
    assert importance.sum(1).allclose(torch.ones(len(importance), device=DEVICE))
    moved = CORES[name].attend(q, k, v, replace(how, constants=MiraConstants()))[0]
    assert not torch.equal(moved, plain)
