"""FlashLite attention and key energy: numbers against the reference and against golden tensors."""

import itertools
import math
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from kernels import marginals
from kernels.exact import exact_attention
from kernels.flashlite import flashlite_attention, key_energy, op, reference
from tests.kernels.conftest import NATIVE
from tests.kernels.tolerances import GRADIENT, OUTPUT, assert_as_good_as_plain
from tests.mira import golden

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BIASES = {
    "none": lambda b, h, n: None,
    "per_clip": lambda b, h, n: torch.randn(b, n),
    "per_head": lambda b, h, n: torch.randn(b, h, n),
    "strided": lambda b, h, n: torch.randn(n, h, b).permute(2, 1, 0),
}


def fused(b, h, n, d, dtype, device):
    """q, k, v as views of one projection [B, N, 3, H, D]."""
    qkv = torch.randn(b, n, 3, h, d, device=device).to(dtype)
    return [x.requires_grad_() for x in qkv.permute(2, 0, 3, 1, 4).unbind()]


def plain(q, k, v, key_bias, scale):
    """The obvious formula, in the dtype of the inputs throughout."""
    scores = q @ k.transpose(2, 3) * scale
    if key_bias is not None:
        per_head = key_bias if key_bias.ndim == 3 else key_bias[:, None]
        scores = scores + per_head[:, :, None].to(q.dtype)
    return scores.softmax(-1) @ v


def with_gradients(attend, inputs, grad_out):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))]


def check(backend, inputs, key_bias, scale, dtype):
    """Output and gradients of a backend, against float64, as near as plain PyTorch twice over."""

    def attend(*x):
        return flashlite_attention(*x, key_bias, scale=scale, backend=backend)

    # The interpreter cuts bfloat16 off where a GPU rounds, which doubles the error.
    cut = 2 if dtype == torch.bfloat16 and backend == "triton" and not NATIVE else 1
    compare(attend, inputs, key_bias, scale, dtype, cut)


def compare(attend, inputs, key_bias, scale, dtype, cut=1):
    """`check` of a function of q, k and v."""
    wide = [x.detach().double() for x in inputs]
    wide_bias = None if key_bias is None else key_bias.double()
    grad_out = torch.randn_like(inputs[0], memory_format=torch.contiguous_format).detach()
    exact = with_gradients(lambda *x: reference.attention(*x, wide_bias, scale), wide, grad_out)
    rough = with_gradients(lambda *x: plain(*x, key_bias, scale), inputs, grad_out)
    found = with_gradients(attend, inputs, grad_out)
    names = ("output", "dq", "dk", "dv")
    for name, ours, theirs, truth in zip(names, found, rough, exact, strict=True):
        factor = cut * (OUTPUT if name == "output" else GRADIENT)
        assert ours.dtype == dtype
        assert_as_good_as_plain(ours, theirs, truth, factor=factor, name=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", ["none", "per_head"])
@pytest.mark.parametrize("n", [1, 51, 63, 100])
def test_triton_is_as_good_as_plain_at_any_length(n, bias, dtype, device):
    key_bias = BIASES[bias](1, 2, n)
    key_bias = None if key_bias is None else key_bias.to(device)
    check("triton", fused(1, 2, n, 16, dtype, device), key_bias, 0.25, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 7, 24, 64, 80, 88, 112, 128, 136, 256])
def test_triton_is_as_good_as_plain_at_any_head_dim(d, dtype, device):
    check("triton", fused(2, 1, 45, d, dtype, device), torch.randn(2, 45).to(device), 0.3, dtype)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("backend", op.BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_backend_is_as_good_as_plain(dtype, backend, bias, device):
    reason = op.BACKENDS[backend].unavailable(torch.empty(1, 1, 1, 20, dtype=dtype, device=device))
    if reason:
        pytest.skip(reason)
    key_bias = BIASES[bias](2, 3, 51)
    key_bias = None if key_bias is None else key_bias.to(device)
    check(backend, fused(2, 3, 51, 20, dtype, device), key_bias, 20**-0.5, dtype)


LAYOUTS = {
    "contiguous": lambda x: x,
    "last axis strided": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "tokens backwards in a larger tensor": lambda x: functional.pad(x, (3, 2, 5, 1))[
        ..., 5:-1, 3:-2
    ],
    "one head for all": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_triton_reads_any_layout(layout, device):
    inputs = [LAYOUTS[layout](torch.randn(1, 2, 40, 24, device=device)) for _ in "qkv"]
    check("triton", inputs, torch.randn(40, 1, device=device).T, 0.2, torch.float32)


def test_kernels_are_told_that_heads_are_aligned_only_where_they_are():
    from kernels.flashlite.sizes import INTERPRETED
    from kernels.flashlite.tiles import options

    aligned = fused(1, 3, 9, 88, torch.float32, "cpu")[0]
    odd = torch.empty(1, 3, 9, 89)[..., :88]
    assert options(INTERPRETED, aligned, aligned)["ALIGNED"]
    assert not options(INTERPRETED, aligned, odd)["ALIGNED"]


def test_gradient_without_memory_of_its_own_is_read_right(device):
    """`out.sum()` hands the backward one number, expanded to every stride 0."""
    q, k, v = fused(1, 2, 40, 16, torch.float32, device)
    out = flashlite_attention(q, k, v, None, backend="triton")
    expected = reference.attention(q, k, v, None, 0.25)
    found, truth = (torch.autograd.grad(o.sum(), (q, k, v)) for o in (out, expected))
    torch.testing.assert_close(found, truth)


def far_apart(folder, device):
    """q, k, v whose clips lie 2^30 elements apart, in a file that is nearly all hole.

    An offset of 32 bits would turn negative for the third clip and read zeros.
    """
    begin, step = 2**31, 2**30
    size = begin + 2 * step + 5 * 3 * 16
    if device == "cpu":
        memory = torch.from_file(str(folder / "hole"), True, size, dtype=torch.float16)
    else:
        memory = torch.zeros(size, dtype=torch.float16, device=device)
    rows = memory.as_strided((3, 5, 3, 1, 16), (step, 48, 16, 16, 1), begin)
    rows.copy_(torch.randn(rows.shape))
    return [x.transpose(1, 2) for x in rows.unbind(2)]


def test_triton_counts_offsets_in_64_bits(tmp_path, device):
    inputs = far_apart(tmp_path, device)
    check("triton", inputs, torch.randn(3, 5, device=device), 0.3, torch.float16)
    torch.testing.assert_close(
        key_energy(inputs[1], backend="triton"), reference.key_energy(inputs[1])
    )
    options = {"frames": 1, "constants": marginals.MiraConstants(), "statistics": "instance"}
    leaves, near = ([x.requires_grad_() for x in xs] for xs in (
        [x.detach() for x in inputs], [x.detach().clone() for x in inputs]
    ))  # fmt: skip
    found, expected = (exact_attention(*x, **options, backend="triton") for x in (leaves, near))
    assert torch.equal(found, expected)
    pairs = zip(
        torch.autograd.grad(found.sum(), leaves),
        torch.autograd.grad(expected.sum(), near),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("scale", [0.0, -0.7, 2.0])
def test_triton_takes_any_scale(scale, device):
    inputs = fused(1, 2, 70, 16, torch.float32, device)
    check("triton", inputs, torch.randn(1, 70, device=device), scale, torch.float32)


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
@pytest.mark.parametrize("shift", [500.0, -500.0])
def test_a_constant_over_keys_changes_nothing(shift, backend, device):
    """The maximum is of scaled and biased scores, else 2^(score - maximum) over- or underflows.

    What is left is the rounding of the bias itself, at the size of the shift.
    """
    inputs = fused(1, 2, 70, 16, torch.float32, device)
    key_bias, grad_out = torch.randn(1, 70, device=device), torch.randn_like(inputs[0])
    found, expected = (
        with_gradients(
            lambda *x, b=b: flashlite_attention(*x, b, backend=backend), inputs, grad_out
        )
        for b in (key_bias + shift, key_bias)
    )
    tolerance = 4 * torch.finfo(torch.float32).eps * abs(shift)
    for ours, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_minus_infinity_takes_keys_out(backend, device):
    """Whole blocks of them too, first and last: their maximum is -inf until a real key comes."""
    q, k, v = (x.detach() for x in fused(1, 2, 100, 16, torch.float32, device))
    key_bias = torch.zeros(1, 100, device=device)
    key_bias[:, :40] = key_bias[:, 70:] = -math.inf
    kept = slice(40, 70)

    def masked(q, k, v):
        return flashlite_attention(q, k, v, key_bias, scale=0.3, backend=backend)

    def without(q, k, v):
        return reference.attention(q, k[:, :, kept], v[:, :, kept], None, 0.3)

    grad_out = torch.randn_like(q)
    pairs = zip(*(with_gradients(f, (q, k, v), grad_out) for f in (masked, without)), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("backend", ["triton", "sdpa"])
def test_no_strength_is_plain_attention_bit_for_bit(backend, device):
    q, k, v = fused(1, 2, 77, 24, torch.float16, device)
    found = flashlite_attention(q, k, v, None, backend=backend)
    expected = functional.scaled_dot_product_attention(q, k, v)
    if backend == "triton":
        expected = flashlite_attention(q, k, v, torch.zeros(1, 77, device=device), backend="triton")
    assert torch.equal(found, expected)


def test_log_sum_exp_is_natural_and_has_the_bias_in_it(device):
    from kernels.flashlite import kernel

    q, k, v = (x.detach() for x in fused(1, 2, 51, 16, torch.float32, device))
    key_bias = torch.randn(1, 2, 51, device=device)
    _, lse = kernel.forward(q, k, v, key_bias, 0.3)
    scores = 0.3 * q.double() @ k.double().mT + key_bias[:, :, None].double()
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, d", [(1, 5), (50, 64), (33, 80)])
def test_key_energy_kernel(n, d, dtype, device):
    k = fused(2, 3, n, d, dtype, device)[1]
    found = key_energy(k, backend="triton")
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, reference.key_energy(k))


@pytest.mark.parametrize("name", golden.names("attention_flashlite"))
def test_published_outputs_and_gradients_in_float64(name):
    case, tensors = golden.load(name)
    constants = marginals.MiraConstants(**golden.constants(case))
    x = tensors["x"].clone().requires_grad_()
    bias = torch.cat([tensors["q_bias"], torch.zeros_like(tensors["q_bias"]), tensors["v_bias"]])
    qkv = functional.linear(x, tensors["qkv_weight"], bias)
    q, k, v = qkv.unflatten(2, (3, case["heads"], -1)).permute(2, 0, 3, 1, 4)
    confidence, concentration = marginals.frame_statistics(
        key_energy(k, backend="sdpa"), case["frames"], floor=1e-12
    )
    if case["stats_mode"] == "batch_ema":
        confidence, concentration = tensors["ema_after"], concentration.mean(0, keepdim=True)
    else:
        confidence, concentration = marginals.POOLS[case["stats_mode"]](confidence, concentration)
    importance = marginals.flashlite_importance(confidence, concentration, constants)
    alpha = marginals.flashlite_alpha(importance, constants).expand(case["batch"], -1)
    key_bias = alpha.log().repeat_interleave(case["tokens_per_frame"], 1)
    out = flashlite_attention(q, k, v, key_bias, backend="sdpa")
    y = functional.linear(
        out.transpose(1, 2).flatten(2), tensors["proj_weight"], tensors["proj_bias"]
    )
    assert golden.relative_error(y, tensors["y_train"]) < 1e-12
    (grad_x,) = torch.autograd.grad(y, x, tensors["grad_out"])
    assert golden.relative_error(grad_x, tensors["grad_x"]) < 1e-12


def pretended_flash_attn(q, k, v, softmax_scale):
    """flash-attn's interface, [B, N, H, D], by its definition."""
    assert q.shape[3] % 8 == 0 or q.shape[3] == v.shape[3]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_channels_carry_the_bias_through_flash_attn(dtype, bias, monkeypatch, device):
    module = types.SimpleNamespace(flash_attn_func=pretended_flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    inputs = fused(2, 3, 30, 20, dtype, device)
    key_bias = BIASES[bias](2, 3, 30)
    key_bias = None if key_bias is None else key_bias.to(device)
    run = op.BACKENDS["flash_attn"].run
    compare(lambda *x: run(*x, key_bias, 0.3), inputs, key_bias, 0.3, dtype)


def test_the_second_channel_keeps_what_the_first_rounds_off(monkeypatch, device):
    module = types.SimpleNamespace(flash_attn_func=pretended_flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    inputs = [x.detach() for x in fused(1, 2, 30, 20, torch.bfloat16, device)]
    bias = 5 * torch.randn(1, 30, device=device)
    truth = reference.attention(*(x.double() for x in inputs), bias.double(), 0.5)
    lost = [
        float((op.BACKENDS["flash_attn"].run(*inputs, b, 0.5).double() - truth).norm())
        for b in (bias, bias.bfloat16().float())  # the latter has nothing left for a second one
    ]
    assert lost[0] < lost[1] / 2


@pytest.mark.parametrize("scale", [0.5, -0.5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_flash_attn_takes_keys_out_too(dtype, scale, monkeypatch, device):
    """-inf less itself is NaN, in the second channel."""
    module = types.SimpleNamespace(flash_attn_func=pretended_flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    inputs = fused(1, 2, 30, 20, dtype, device)
    key_bias = torch.randn(1, 30, device=device)
    key_bias[:, 7:20] = -math.inf
    run = op.BACKENDS["flash_attn"].run
    compare(lambda *x: run(*x, key_bias, scale), inputs, key_bias, scale, dtype)


def test_flash_attn_cannot_divide_a_bias_by_a_scale_of_0(monkeypatch, device):
    module = types.SimpleNamespace(flash_attn_func=pretended_flash_attn)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    q, k, v = fused(1, 2, 30, 20, torch.float16, device)
    run = op.BACKENDS["flash_attn"].run
    assert run(q, k, v, None, 0.0).isfinite().all()
    with pytest.raises(ValueError, match="scale must not be 0 .* choose backend='triton' or"):
        run(q, k, v, torch.randn(1, 30, device=device), 0.0)


def largest_allocation(run):
    """Bytes of the largest piece of memory that a call takes on the CPU, inside operators too."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as record:
        run()
    events = record.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.fixture
def one_thread():
    """PyTorch's attention takes a block of scores a thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sdpa_holds_no_map_of_n_by_n(dtype, layout, biased):
    """A last axis that is not contiguous sent PyTorch to a form that holds it."""
    h, n = 2, 700
    inputs = [LAYOUTS[layout](torch.randn(1, h, n, 8).to(dtype)) for _ in "qkv"]
    key_bias, grad_out = torch.randn(1, n) if biased else None, torch.randn(1, h, n, 8)
    taken = {
        backend: largest_allocation(
            lambda backend=backend: with_gradients(
                lambda *x: flashlite_attention(*x, key_bias, backend=backend), inputs, grad_out
            )
        )
        for backend in ("sdpa", "reference")
    }
    one_map = h * n * n * dtype.itemsize
    assert taken["sdpa"] < one_map / 2 and taken["reference"] >= one_map


def test_head_dims_that_no_fused_kernel_of_cuda_takes_are_padded(monkeypatch, device):
    with FakeTensorMode():  # on CUDA by name alone
        padded = [op._fusable(torch.empty(1, 2, 9, d, device="cuda")).shape[3] for d in (20, 24)]
    assert padded == [24, 24]
    monkeypatch.setattr(op, "_fusable", lambda x: functional.pad(x, (0, -x.shape[3] % 8)))
    key_bias = torch.randn(1, 30, device=device)
    check("sdpa", fused(1, 2, 30, 20, torch.float32, device), key_bias, 0.3, torch.float32)


needs_gpu = pytest.mark.skipif(not NATIVE, reason="needs a CUDA GPU: speed and races do not show")


@needs_gpu
@pytest.mark.parametrize("d, n", list(itertools.product((64, 80, 128), (160, 1568))))
def test_same_bits_on_every_run(d, n, device):
    inputs = fused(2, 4, n, d, torch.bfloat16, device)
    key_bias, grad_out = torch.randn(2, n, device=device), torch.randn_like(inputs[0])
    runs = [
        with_gradients(
            lambda *x: flashlite_attention(*x, key_bias, backend="triton"), inputs, grad_out
        )
        for _ in range(50)
    ]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@needs_gpu
@pytest.mark.parametrize("d, n", list(itertools.product((64, 80, 88, 128), (784, 1568))))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_triton_at_the_shapes_that_matter(dtype, d, n, device):
    check("triton", fused(1, 3, n, d, dtype, device), torch.randn(1, n).to(device), d**-0.5, dtype)
