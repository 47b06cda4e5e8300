"""FlashLite as a PyTorch operator: registration, compilation, checkpointing, autocast, refusals."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kernels.exact import exact_attention
from kernels.flashlite import flashlite_attention, key_energy, op, reference
from kernels.marginals import MiraConstants
from tests.kernels.conftest import NATIVE


def heads(n=33, d=16, dtype=torch.float32, device="cpu"):
    qkv = torch.randn(1, n, 3, 2, d, device=device).to(dtype)
    return [x.requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind()]


@pytest.mark.parametrize("bias", ["none", "per_clip", "per_head"])
def test_registration_of_every_operator(bias, device):
    q, k, v = heads(device=device)
    key_bias = {
        "none": None,
        "per_clip": torch.randn(1, 33, device=device),
        "per_head": torch.randn(1, 2, 33, device=device),
    }[bias]
    torch.library.opcheck(op.flashlite_forward, (q, k, v, key_bias, 0.3))
    out, lse = op.flashlite_forward(q, k, v, key_bias, 0.3)
    assert out.requires_grad and not lse.requires_grad
    constants = [x.detach() for x in (torch.randn_like(out), q, k, v)]
    torch.library.opcheck(
        op.flashlite_backward, (*constants, key_bias, out.detach(), lse.detach(), 0.3)
    )


def test_registration_of_key_energy(device):
    torch.library.opcheck(op.key_energy_op, (heads(device=device)[1].detach(),))


def flashlite_loss(q, k, v, backend):
    """A loss whose bias depends on the keys, as in a model."""
    key_bias = key_energy(k, backend=backend).log()
    return flashlite_attention(q, k, v, key_bias, backend=backend).square().sum()


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("backend", ["triton", "sdpa", None])
def test_compiles_into_one_graph(backend, compiler, device):
    torch.compiler.reset()
    inputs = heads(device=device)
    compiled = torch.compile(flashlite_loss, fullgraph=True, backend=compiler)
    expected, found = flashlite_loss(*inputs, backend), compiled(*inputs, backend)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss, inputs) for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_compiles_with_shapes_that_change(device):
    torch.compiler.reset()
    compiled = torch.compile(flashlite_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (20, 33, 41):
        inputs = heads(n, device=device)
        torch.testing.assert_close(compiled(*inputs, "triton"), flashlite_loss(*inputs, "triton"))


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant, backend, device):
    inputs = [x.detach().requires_grad_() for x in heads(device=device)]
    plain = flashlite_loss(*inputs, backend)
    expected = torch.autograd.grad(plain, inputs)
    saved = checkpoint(flashlite_loss, *inputs, backend, use_reentrant=reentrant)
    saved.backward()
    assert torch.equal(saved, plain)
    assert all(torch.equal(x.grad, dx) for x, dx in zip(inputs, expected, strict=True))


@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
def test_bias_gets_no_gradient(backend, device):
    q, k, v = heads(device=device)
    key_bias = torch.zeros(1, 33, device=device, requires_grad=True)
    flashlite_attention(q, k, v, key_bias, backend=backend).sum().backward()
    assert key_bias.grad is None


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_autocast_casts_as_it_does_for_sdpa(backend, device):
    q, k, v = heads(device=device)
    with torch.autocast(device, torch.bfloat16):
        out = flashlite_attention(q, k, v.to(torch.float16), None, backend=backend)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(
        out.float(), reference.attention(q, k, v, None, 0.25), atol=0.03, rtol=0.03
    )


@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
@pytest.mark.parametrize("exact", [False, True], ids=["flashlite", "exact"])
def test_autocast_casts_the_inputs_and_nothing_else(exact, backend, device):
    """The reference's float32 products were rounded to bfloat16."""
    tensors, bias = heads(device=device), torch.randn(1, 33, device=device)
    options = {"frames": 3, "constants": MiraConstants(), "statistics": "instance"}

    def attend(q, k, v):
        if exact:
            return exact_attention(q, k, v, **options, backend=backend)
        return flashlite_attention(q, k, v, bias, backend=backend)

    with torch.autocast(device, torch.bfloat16):
        found = attend(*tensors)
    assert torch.equal(found, attend(*(x.bfloat16() for x in tensors)))


def test_gradients_of_some_inputs_and_none(device):
    q, k, v = (x.detach() for x in heads(device=device))
    v.requires_grad_()
    flashlite_attention(q, k, v, None, backend="triton").sum().backward()
    assert v.grad is not None and q.grad is None
    with torch.inference_mode():
        assert not flashlite_attention(q, k, v, None, backend="triton").requires_grad


@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 5, 16), (2, 3, 0, 16)], ids=["no clips", "no tokens"])
def test_empty_inputs_give_empty_outputs(shape, biased, backend, device):
    q = torch.randn(shape, device=device, requires_grad=True)
    bias = torch.zeros(shape[0], shape[2], device=device) if biased else None
    out = flashlite_attention(q, q, q, bias, backend=backend)
    out.sum().backward()
    assert out.shape == q.grad.shape == shape
    assert key_energy(q, backend=backend).shape == (shape[0], shape[2])


@pytest.mark.parametrize("backend", ["triton", "sdpa", "reference"])
def test_exact_takes_no_clips_but_no_clip_without_tokens(backend, device):
    options = {"frames": 5, "constants": MiraConstants(), "statistics": "instance"}
    q = torch.randn(0, 2, 5, 16, device=device, requires_grad=True)
    out = exact_attention(q, q, q, **options, backend=backend)
    out.sum().backward()
    assert out.shape == q.grad.shape == q.shape
    none = torch.randn(2, 3, 0, 16, device=device)
    with pytest.raises(ValueError, match="0 tokens do not divide into 5 frames"):
        exact_attention(none, none, none, **options, backend=backend)


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_twice_differentiating_is_refused(backend, device):
    q, k, v = heads(device=device)
    out = flashlite_attention(q, k, v, torch.zeros(1, 33, device=device), backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula|derivative for .* not implemented"):
        grad.sum().backward()


def test_output_lies_so_that_merging_heads_is_free(device):
    q, k, v = heads(device=device)
    out = flashlite_attention(q, k, v, None, backend="triton")
    assert out.transpose(1, 2).is_contiguous()


Q = torch.zeros(1, 2, 8, 16)
BIAS = torch.zeros(1, 8)
REFUSED = {
    "dropout": (dict(dropout_p=0.1), "dropout_p must be 0, not 0.1"),
    "three axes": (dict(q=Q[0]), r"q must be \[B, H, N, D\]"),
    "integers": (dict(q=Q.int()), "floating point"),
    "no head dim": (dict(q=Q[..., :0]), r"q must have a head dim D of at least 1.*\(1, 2, 8, 0\)"),
    "longer keys": (dict(k=torch.zeros(1, 2, 9, 16)), r"k must have q's shape.*\(1, 2, 9, 16\)"),
    "other dtype": (dict(v=Q.double()), "v must have q's shape, dtype"),
    "other device": (dict(v=Q.to("meta")), "on meta"),
    "scale": (dict(scale=float("nan")), "scale must be finite, not nan"),
    "bias of queries": (dict(key_bias=torch.zeros(1, 1, 8, 8)), r"\[B, N\] = \(1, 8\)"),
    "bias for one": (dict(key_bias=torch.zeros(8)), "key_bias must be"),
    "bias in half": (dict(key_bias=BIAS.half()), "torch.float32, on cpu, not .* torch.float16"),
    "backend": (dict(backend="cudnn"), "no backend 'cudnn'; choose one of triton, sdpa"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_name(case):
    changed, message = REFUSED[case]
    arguments = {"q": Q, "k": Q, "v": Q, "key_bias": BIAS} | changed
    with pytest.raises(ValueError, match=message):
        flashlite_attention(**arguments)


def test_energy_of_what_is_no_key_is_refused():
    with pytest.raises(ValueError, match=r"k must be \[B, H, N, D\]"):
        key_energy(Q[0])


UNAVAILABLE = {
    "float64": ("triton", torch.zeros(1, 1, 4, 8, dtype=torch.float64), "not torch.float64"),
    "wide heads": ("triton", torch.zeros(1, 1, 4, 264), "head dim 264 is above 256"),
    "flash_attn": ("flash_attn", Q, ""),
}


@pytest.mark.parametrize("case", UNAVAILABLE)
def test_a_backend_that_cannot_run_says_why(case, device):
    backend, q, message = UNAVAILABLE[case]
    q = q.to(device)
    with pytest.raises(RuntimeError, match=f"cannot use backend '{backend}'.*{message}"):
        flashlite_attention(q, q, q, None, backend=backend)


@pytest.mark.skipif(NATIVE, reason="the kernels do run on CUDA")
def test_without_gpu_or_interpreter_triton_says_what_to_do(monkeypatch):
    from kernels.flashlite import kernel

    monkeypatch.setattr(kernel, "interpreted", False)
    with pytest.raises(RuntimeError, match="tensors are on cpu; move them to CUDA.*'sdpa'"):
        flashlite_attention(Q, Q, Q, None, backend="triton")


def test_without_triton_both_modes_say_what_to_install(monkeypatch):
    monkeypatch.setattr(op, "HAS_TRITON", False)
    options = {"frames": 2, "constants": MiraConstants(), "statistics": "instance"}
    with pytest.raises(RuntimeError, match="pip install triton"):
        flashlite_attention(Q, Q, Q, None, backend="triton")
    with pytest.raises(RuntimeError, match="pip install triton"):
        exact_attention(Q, Q, Q, **options, backend="triton")
