"""The attention cores: golden tensors of the published code, gradients, statistics, bad calls."""

import math

import pytest
import torch
from torch.nn import functional

import mira
from kernels.flashlite import flashlite_attention
from kernels.marginals import exact_importance, frame_statistics
from mira.blocks import Attention
from mira.cores import CORES, How, attention_share, core, mira_flashlite
from mira.encoder import EncoderConfig
from tests.mira.golden import attention_of, constants, load, names, relative_error


def qkv(batch=2, heads=3, n=20, dim=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, n, dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "qkv"]


def golden_module(name):
    case, tensors = load(name)
    module = Attention(
        case["dim"],
        case["heads"],
        attention=attention_of(case),
        frames=case["frames"],
        statistics=case["stats_mode"],
        eval_statistics="batch",
        constants=mira.MiraConstants(**constants(case)),
    ).double()
    state = {
        "qkv.weight": tensors["qkv_weight"],
        "q_bias": tensors["q_bias"],
        "v_bias": tensors["v_bias"],
        "proj.weight": tensors["proj_weight"],
        "proj.bias": tensors["proj_bias"],
        "c_buf": tensors["ema_before"],
    }
    module.load_state_dict(state)
    return module, tensors


@pytest.mark.parametrize("name", names("attention"))
def test_the_module_reproduces_published_outputs_gradients_and_average(name):
    module, golden = golden_module(name)
    x = golden["x"].clone().requires_grad_()
    out = module(x)
    (out * golden["grad_out"]).sum().backward()
    assert relative_error(out, golden["y_train"]) < 1e-12
    assert relative_error(module.c_buf, golden["ema_after"]) < 1e-12
    for found, key in (
        (x.grad, "grad_x"),
        (module.qkv.weight.grad, "grad_qkv_weight"),
        (module.q_bias.grad, "grad_q_bias"),
        (module.v_bias.grad, "grad_v_bias"),
    ):
        assert relative_error(found, golden[key]) < 1e-10, key
    assert relative_error(module.eval()(golden["x"]), golden["y_eval"]) < 1e-12


@pytest.mark.parametrize("name", [n for n in names("attention") if "ema" not in str(n)])
def test_the_function_reproduces_published_outputs(name):
    case, golden = load(name)
    module, _ = golden_module(name)
    out = mira.attention(
        *module.project(golden["x"]),
        frames=case["frames"],
        mode="flashlite" if case["use_fmp_flashlite"] else "exact",
        statistics=case["stats_mode"],
        constants=mira.MiraConstants(**constants(case)),
    )
    out = module.proj(out.transpose(1, 2).flatten(2))
    assert relative_error(out, golden["y_train"]) < 1e-12


def test_exact_gradients_are_those_of_finite_differences():
    # Where alpha is not clipped the published stopgrad makes the gradient differ from the numeric
    # one on purpose, so the check runs with a constant alpha.
    flat = mira.MiraConstants(alpha_min=0.8, alpha_max=0.8)
    inputs = [t.requires_grad_() for t in qkv(batch=2, heads=2, n=6, dim=3)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: mira.attention(q, k, v, frames=3, constants=flat), inputs
    )


@pytest.mark.parametrize(("mode", "reached"), [("exact", True), ("flashlite", False)])
def test_only_exact_gradients_reach_another_clip_through_batch_statistics(mode, reached):
    q, k, v = (t.requires_grad_() for t in qkv())
    wide = mira.MiraConstants(alpha_min=1e-3, alpha_max=1e3)
    for statistics in ("instance", "batch"):
        out = mira.attention(q, k, v, frames=5, mode=mode, statistics=statistics, constants=wide)
        grad = torch.autograd.grad(out[0].square().sum(), k)[0]
        assert bool(grad[1].any()) == (reached and statistics == "batch")


def test_flashlite_is_plain_attention_with_a_detached_bias():
    q, k, v = (t.requires_grad_() for t in qkv())
    out = mira.attention(q, k, v, frames=5, mode="flashlite")
    how = How(5, "instance", mira.MiraConstants(), 8**-0.5)
    _, importance = mira_flashlite(q, k, v, how)
    assert not importance.requires_grad
    bias = (5 * importance).clamp(0.7, 1.4).log().repeat_interleave(4, 1)
    scores = q @ k.transpose(2, 3) / math.sqrt(8) + bias[:, None, None]
    plain = scores.softmax(-1) @ v
    torch.testing.assert_close(out, plain)
    grads = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (out, plain)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("mode", ["exact", "flashlite"])
def test_alpha_of_one_is_plain_attention(mode):
    q, k, v = qkv()
    flat = mira.MiraConstants(alpha_min=1.0, alpha_max=1.0, floor=0.0)
    out = mira.attention(q, k, v, frames=4, mode=mode, constants=flat)
    torch.testing.assert_close(out, functional.scaled_dot_product_attention(q, k, v))
    torch.testing.assert_close(mira.attention(q, k, v, frames=4, mode="sdpa"), out)


@pytest.mark.parametrize("mode", ["exact", "flashlite", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_stays_close_and_keeps_its_dtype(mode, dtype):
    q, k, v = qkv(n=48, dim=16)
    k = k * torch.linspace(0.5, 1.5, 8, dtype=k.dtype).repeat_interleave(6)[:, None]
    low = [t.to(dtype) for t in (q, k, v)]
    same = [t.double() for t in low]
    truth = mira.attention(*same, frames=8, mode=mode)
    found = mira.attention(*low, frames=8, mode=mode)
    plain = functional.scaled_dot_product_attention(*same)
    lost = (functional.scaled_dot_product_attention(*low).double() - plain).abs().max()
    allowed = 3 * lost + 1e-7
    assert found.dtype == dtype
    assert (found.double() - truth).abs().max() < allowed
    # Plain attention in its place would not do.
    assert mode == "sdpa" or (plain - truth).abs().max() > 3 * allowed


@pytest.mark.parametrize("mode", ["exact", "flashlite"])
def test_a_clip_of_instance_statistics_ignores_its_neighbours(mode):
    q, k, v = qkv(batch=3)
    alone = mira.attention(q[:1], k[:1], v[:1], frames=5, mode=mode)
    torch.testing.assert_close(mira.attention(q, k, v, frames=5, mode=mode)[:1], alone)
    mixed = mira.attention(q, k, v, frames=5, mode=mode, statistics="batch")[:1]
    assert (mixed - alone).abs().max() > 1e-6


@pytest.mark.parametrize("mode", ["exact", "flashlite"])
@pytest.mark.parametrize("frames", [1, 20])
def test_one_frame_and_one_token_a_frame_stay_finite(mode, frames):
    q, k, v = (t.requires_grad_() for t in qkv(dtype=torch.float32))
    out = mira.attention(q, k, v, frames=frames, mode=mode)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    assert all(t.isfinite().all() for t in (out, *grads))


def test_equal_keys_stay_finite_and_uniform():
    q, _, v = qkv(dtype=torch.float32)
    out = mira.attention(q, torch.zeros_like(q), v, frames=4, mode="flashlite")
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(out))


def test_frame_statistics_of_a_known_distribution():
    mass = torch.tensor([[1.0, 1.0, 6.0, 0.0]], dtype=torch.float64)
    confidence, concentration = frame_statistics(mass, 2, floor=1e-6)
    torch.testing.assert_close(confidence, torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    assert concentration[0, 0] == pytest.approx(1 / (math.log(2) + 1e-6))
    assert concentration[0, 1] == pytest.approx(1e6)
    importance = exact_importance(confidence, concentration, mira.MiraConstants())
    assert importance.sum() == pytest.approx(1)
    assert importance[0, 1] == pytest.approx(0.95, abs=1e-6)


def test_attention_share_is_the_column_mass_of_the_map():
    q, k, _ = qkv(n=600)
    whole = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1).mean((1, 2))
    share = attention_share(q, k, 6, 8**-0.5)
    torch.testing.assert_close(share, whole.unflatten(1, (6, 100)).sum(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 3}, "20 tokens do not divide into 3 frames"),
        ({"frames": 0}, "do not divide"),
        ({"mode": "mira_exact"}, "choose one of exact, flashlite, sdpa"),
        ({"statistics": "batch_ema"}, "needs state"),
    ],
)
def test_a_bad_call_says_what_to_change(change, message):
    with pytest.raises(ValueError, match=message):
        mira.attention(*qkv(), **{"frames": 4} | change)


def test_queries_and_keys_of_different_lengths_are_refused():
    q, k, v = qkv()
    with pytest.raises(ValueError, match="share one shape"):
        mira.attention(q[:, :, :4], k, v, frames=4)


@pytest.mark.parametrize(
    "bad",
    [
        {"uniform_mix": 1.5},
        {"residual_mix": -0.1},
        {"floor": 1.0},
        {"alpha_min": 0.0},
        {"alpha_min": 2.0},
        {"power": -1.0},
        {"temperature": math.nan},
    ],
)
def test_constants_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=f"MiraConstants.*{next(iter(bad))}"):
        mira.MiraConstants(**bad)


def test_constants_are_frozen():
    with pytest.raises(AttributeError):
        mira.MiraConstants().power = 2.0


def test_an_unknown_core_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'flash' does not exist; choose one of sdpa, mira_exact"):
        core("flash")
    assert {name for name, row in CORES.items() if not row.framewise} == {"sdpa"}


@pytest.mark.parametrize("name", ["mira_exact", "mira_flashlite"])
def test_a_named_backend_computes_the_same_and_one_that_cannot_run_says_why(name):
    torch.manual_seed(0)
    x = torch.randn(2, 20, 24, dtype=torch.float64)

    def built(backend):
        torch.manual_seed(1)
        return Attention(24, 3, attention=name, frames=4, backend=backend).double()

    torch.testing.assert_close(built("reference")(x), built("sdpa")(x))
    torch.testing.assert_close(built(None)(x), built("sdpa")(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="cannot use backend 'flash_attn'"):
        built("flash_attn")(x)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("mira_exact", {"residual_mix": 0.0}),
        ("mira_flashlite", {"alpha_min": 1.0, "alpha_max": 1.0}),
    ],
)
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_constants_without_strength_are_plain_attention_bit_for_bit(name, constants, backend):
    q, k, v = qkv(n=40, dtype=torch.float32)
    how = How(8, "batch", mira.MiraConstants(**constants), 0.3, backend)
    out, importance = CORES[name].attend(q, k, v, how)
    assert torch.equal(out, flashlite_attention(q, k, v, None, scale=0.3, backend=backend))
    assert importance.sum(1).allclose(torch.ones(1))


def test_the_backend_says_nothing_about_what_a_network_is():
    config = EncoderConfig(backend="sdpa", checkpoint_blocks=True)
    assert config.identity() == EncoderConfig().identity()
    assert config.identity() != EncoderConfig(dim=384, heads=6).identity()
    with pytest.raises(ValueError, match="backend='cuda' does not exist; choose one of triton"):
        EncoderConfig(backend="cuda")


@pytest.mark.parametrize("name", ["mira_exact", "mira_flashlite"])
def test_compiled_moving_average_gives_the_same_gradients_and_buffer(name):
    """A compiler that made the average anew in the backward would use the buffer after it moved."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 20, 24), torch.randn(2, 20, 24)
    constants = mira.MiraConstants(alpha_min=0.01, alpha_max=100.0)
    found = []
    for compiled in (False, True):
        torch.manual_seed(1)
        module = Attention(
            24, 3, attention=name, frames=4, statistics="batch_ema", constants=constants
        )
        module.c_buf.copy_(torch.tensor([[0.7, 0.1, 0.1, 0.1]]))
        run = torch.compile(module, fullgraph=True) if compiled else module
        (run(x) * grad).sum().backward()
        found.append([module.qkv.weight.grad, module.c_buf.clone()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["exact", "flashlite"])
def test_it_compiles_with_shapes_that_change(mode):
    run = torch.compile(
        lambda q, k, v: mira.attention(q, k, v, frames=4, mode=mode),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for n in (20, 24):
        q, k, v = qkv(n=n, dtype=torch.float32)
        torch.testing.assert_close(run(q, k, v), mira.attention(q, k, v, frames=4, mode=mode))


def test_a_batch_that_is_not_finite_leaves_the_moving_average_alone():
    module = Attention(24, 3, attention="mira_exact", frames=4, statistics="batch_ema")
    module(torch.randn(2, 20, 24))
    before = module.c_buf.clone()
    module(torch.full((2, 20, 24), float("nan")))
    assert torch.equal(module.c_buf, before)
    module(torch.randn(2, 20, 24))
    assert module.c_buf.isfinite().all() and not torch.equal(module.c_buf, before)


@pytest.mark.parametrize("mode", ["exact", "flashlite"])
def test_forward_mode_is_refused_rather_than_taken_for_zero(mode):
    q, k, v = qkv()
    with pytest.raises(NotImplementedError, match="use reverse mode"):
        torch.func.jvp(lambda x: mira.attention(x, k, v, frames=4, mode=mode), (q,), (q,))
