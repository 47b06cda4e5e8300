"""Exact MiRA attention on every backend: numbers, gradients, statistics, memory, bad calls."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.exact import chunked, exact_attention, exact_attention_with_importance
from kernels.exact.op import BACKENDS
from kernels.exact.weights import frame_weights
from kernels.flashlite import flashlite_attention
from kernels.marginals import MiraConstants
from tests.kernels.conftest import NATIVE
from tests.kernels.tolerances import GRADIENT, assert_as_good_as_plain
from tests.mira.golden import constants as golden_constants
from tests.mira.golden import load, names, relative_error

PUBLISHED = MiraConstants()
FREE = MiraConstants(alpha_min=1e-3, alpha_max=1e3, floor=0.1, residual_mix=0.7)  # no α is clipped
ALL = ("instance", "batch", "batch_ema")
SMALL = [  # B, H, F, P, D
    pytest.param((2, 3, 4, 6, 8), id="small"),
    pytest.param((1, 2, 1, 51, 16), id="one frame"),
    pytest.param((2, 1, 20, 1, 88), id="one token a frame"),
    pytest.param((1, 1, 1, 1, 16), id="one token"),
    pytest.param((2, 2, 8, 20, 80), id="masked pretraining"),
]
AWKWARD = [
    pytest.param((1, 1, 1, 1, 16), id="N1 D16"),
    pytest.param((1, 1, 1, 51, 80), id="N51 D80 one frame"),
    pytest.param((2, 1, 7, 9, 128), id="N63 D128 frames across blocks"),
    pytest.param((1, 1, 5, 20, 64), id="N100 D64"),
    pytest.param((1, 1, 16, 6, 88), id="N96 D88 16 frames"),
    pytest.param((1, 2, 8, 8, 33), id="N64 D33"),
    pytest.param((1, 1, 33, 1, 32), id="N33 D32 one token a frame"),
    pytest.param((1, 1, 2, 17, 136), id="N34 D136"),
    pytest.param((2, 3, 5, 9, 24), id="N45 D24 two clips of three heads"),
]


def average(confidence: Tensor) -> Tensor:
    """One step of a moving average that starts uniform."""
    return torch.full_like(confidence, 1 / confidence.shape[1]).lerp(confidence, 0.1)


def source(statistics: str):
    return average if statistics == "batch_ema" else statistics


def inputs(shape, dtype=torch.float64, device="cpu"):
    """q, k, v as views of one projection, and an upstream gradient."""
    b, h, f, p, d = shape
    qkv = torch.randn(b, f * p, 3, h, d, device=device, dtype=torch.float64).to(dtype)
    grad = torch.randn(b, f * p, h, d, device=device, dtype=torch.float64).to(dtype)
    return [x.transpose(1, 2) for x in (*qkv.unbind(2), grad)]


def everything(tensors, shape, *, dtype=None, **options):
    """out, π, dq, dk, dv."""
    q, k, v, grad = (x if dtype is None else x.to(dtype) for x in tensors)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out, importance = exact_attention_with_importance(*leaves, frames=shape[2], **options)
    assert not importance.requires_grad
    return out, importance, *torch.autograd.grad(out, leaves, grad)


@pytest.fixture(params=["map kept", "map made anew"])
def map_kept_or_not(request, monkeypatch):
    """Both ways of the path `sdpa`, whatever the shape."""
    kept = request.param == "map kept"
    monkeypatch.setattr(chunked, "KEPT", 1000 if kept else 0)
    assert chunked.new_memo(torch.empty(1, 2, 5, 3)).ndim == (4 if kept else 1)


@pytest.mark.usefixtures("map_kept_or_not")
@pytest.mark.parametrize("statistics", ALL)
@pytest.mark.parametrize("shape", SMALL)
def test_sdpa_gives_the_reference_and_its_gradients(shape, statistics, monkeypatch):
    n = shape[2] * shape[3]
    monkeypatch.setattr(chunked, "TILE", n * (n // 3 + 1))  # several blocks of queries and heads
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    tensors = inputs(shape)
    for constants in (PUBLISHED, FREE):
        options = {"statistics": source(statistics), "constants": constants}
        found = everything(tensors, shape, backend="sdpa", **options)
        expected = everything(tensors, shape, backend="reference", **options)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def projected(golden, case):
    """What the published module projects its input to, by autograd to the golden leaves."""
    leaves = {key: golden[key].clone().requires_grad_() for key in ("x", "qkv_weight")}
    leaves |= {key: golden[key].clone().requires_grad_() for key in ("q_bias", "v_bias")}
    bias = torch.cat([leaves["q_bias"], torch.zeros_like(leaves["q_bias"]), leaves["v_bias"]])
    qkv = torch.nn.functional.linear(leaves["x"], leaves["qkv_weight"], bias)
    qkv = qkv.unflatten(2, (3, case["heads"], -1)).unbind(2)
    return leaves, [x.transpose(1, 2) for x in qkv]


@pytest.mark.usefixtures("map_kept_or_not")
@pytest.mark.parametrize("name", names("attention_exact"))
def test_sdpa_reproduces_the_published_code(name):
    case, golden = load(name)
    leaves, qkv = projected(golden, case)
    buffer = golden["ema_before"].double()

    def moving(confidence):
        return buffer.lerp_(confidence, 0.1)

    statistics = moving if case["stats_mode"] == "batch_ema" else case["stats_mode"]
    out = exact_attention(
        *qkv,
        frames=case["frames"],
        constants=MiraConstants(**golden_constants(case)),
        statistics=statistics,
        backend="sdpa",
    )
    out = torch.nn.functional.linear(
        out.transpose(1, 2).flatten(2), golden["proj_weight"], golden["proj_bias"]
    )
    (out * golden["grad_out"]).sum().backward()
    assert relative_error(out, golden["y_train"]) < 1e-12
    if callable(statistics):
        assert relative_error(buffer, golden["ema_after"]) < 1e-12
    for key, leaf in leaves.items():
        assert relative_error(leaf.grad, golden[f"grad_{key}"]) < 1e-10, key


def rounded(tensors, shape, dtype, **options):
    """Plain PyTorch in `dtype`: the worst of three runs that differ in the order of sums alone.

    The statistics stretch a difference between frames to the whole range before they use it, so a
    single run can be right by luck.
    """
    exact = everything(tensors, shape, backend="reference", dtype=torch.float64, **options)
    runs = [everything(tensors, shape, backend="reference", **options)]
    for axis in (1, 2):  # heads, then tokens: frames then come in the opposite order
        turned = everything([x.flip(axis) for x in tensors], shape, backend="reference", **options)
        importance = turned[1].flip(1) if axis == 2 else turned[1]
        runs.append((turned[0].flip(axis), importance, *(x.flip(axis) for x in turned[2:])))
    worst = [
        max(candidates, key=lambda x, truth=truth: float((x - truth).detach().norm()))
        for truth, *candidates in zip(exact, *runs, strict=True)
    ]
    return exact, worst


def check_low_precision(shape, dtype, statistics, constants, backend, device):
    tensors = inputs(shape, dtype, device)
    options = {"statistics": source(statistics), "constants": constants}
    exact, plain = rounded(tensors, shape, dtype, **options)
    found = everything(tensors, shape, backend=backend, **options)
    # The interpreter cuts bfloat16 off where a GPU rounds, which doubles the error.
    cut = 2 if dtype == torch.bfloat16 and backend == "triton" and not NATIVE else 1
    assert found[0].dtype == found[2].dtype == dtype
    for name, ours, theirs, truth in zip(
        ("out", "importance", "dq", "dk", "dv"), found, plain, exact, strict=True
    ):
        factor = GRADIENT if name.startswith("d") else 2.0
        assert_as_good_as_plain(ours, theirs, truth, factor=cut * factor, name=name)


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_is_as_good_as_plain_pytorch(backend, dtype, device):
    shape = (2, 2, 4, 12, 32)
    reason = BACKENDS[backend].unavailable(torch.empty(1, 1, 1, 32, dtype=dtype, device=device))
    if reason:
        pytest.skip(reason)
    check_low_precision(shape, dtype, "instance", PUBLISHED, backend, device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", AWKWARD)
def test_triton_is_as_good_as_plain_pytorch(shape, dtype, device):
    statistics = "instance" if shape[0] == 1 else "batch"
    check_low_precision(shape, dtype, statistics, PUBLISHED, "triton", device)


@pytest.mark.parametrize("statistics", ALL)
def test_triton_gradients_go_through_all_statistics(statistics, device):
    check_low_precision((2, 1, 3, 12, 16), torch.float32, statistics, FREE, "triton", device)


def test_triton_reads_tensors_whose_last_axis_is_strided(device):
    shape = (1, 2, 4, 9, 24)
    tensors = inputs(shape, torch.float32, device)
    turned = [x.mT.contiguous().mT for x in tensors]
    assert all(x.stride(-1) != 1 for x in turned)
    options = {"statistics": "instance", "constants": PUBLISHED, "backend": "triton"}
    found, expected = (everything(x, shape, **options) for x in (turned, tensors))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.usefixtures("map_kept_or_not")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("statistics", ALL)
def test_sdpa_in_low_precision_is_as_good_as_plain_pytorch(dtype, statistics):
    check_low_precision((2, 2, 4, 12, 32), dtype, statistics, PUBLISHED, "sdpa", "cpu")


BOUNDS = {
    "floor=0": {"floor": 0.0},
    "residual_mix=1": {"residual_mix": 1.0},
    "uniform_mix=0": {"uniform_mix": 0.0},
    "uniform_mix=1": {"uniform_mix": 1.0},
    "alpha fixed": {"alpha_min": 1.2, "alpha_max": 1.2},
    "no power": {"power": 0.0},
    "confidence only": {"concentration_weight": 0.0},
}


@pytest.mark.usefixtures("map_kept_or_not")
@pytest.mark.parametrize("bound", BOUNDS)
def test_constants_at_their_bounds(bound):
    shape = (2, 2, 4, 6, 16)
    options = {"statistics": "instance", "constants": MiraConstants(**BOUNDS[bound])}
    tensors = inputs(shape)
    found = everything(tensors, shape, backend="sdpa", **options)
    expected = everything(tensors, shape, backend="reference", **options)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bound", ["floor=0", "residual_mix=1", "alpha fixed"])
def test_constants_at_their_bounds_in_triton(bound, device):
    constants = MiraConstants(**BOUNDS[bound])
    check_low_precision((1, 2, 4, 9, 16), torch.float32, "instance", constants, "triton", device)


@pytest.mark.parametrize("backend", ["sdpa", "reference", "triton"])
@pytest.mark.parametrize(
    "changed",
    [{"residual_mix": 0.0}, {"floor": 0.0, "alpha_min": 1.3, "alpha_max": 1.3}],
    ids=["nothing mixed in", "one weight for all"],
)
def test_constants_without_effect_give_plain_attention_bit_for_bit(changed, backend, device):
    shape = (1, 2, 3, 7, 16)
    q, k, v, grad = inputs(shape, torch.float32, device)
    constants = MiraConstants(**changed)
    calls = []

    def moving(confidence):
        calls.append(confidence)
        return confidence

    found = everything(
        (q, k, v, grad), shape, constants=constants, statistics=moving, backend=backend
    )
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    plain = flashlite_attention(*leaves, None, backend=backend)
    for ours, theirs in zip(
        (found[0], *found[2:]), (plain, *torch.autograd.grad(plain, leaves, grad)), strict=True
    ):
        assert torch.equal(ours, theirs)
    out = exact_attention(q, k, v, frames=3, constants=constants, statistics=moving,
                          backend=backend)  # fmt: skip
    assert torch.equal(out, plain)
    assert len(calls) == 2, "the moving average moves all the same"
    torch.testing.assert_close(found[1].sum(1), torch.ones(1, device=device))


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
@pytest.mark.parametrize("size", [30.0, 1e3], ids=["scores of hundreds", "one-hot attention"])
def test_extreme_scores_stay_finite_and_right(size, backend, device):
    """Column masses underflow to 0 where every query looks at the same few keys."""
    shape = (1, 2, 5, 9, 16)
    q, k, v, grad = inputs(shape, torch.float32, device)
    q = q * size
    options = {"statistics": "instance", "constants": PUBLISHED}
    found = everything((q, k, v, grad), shape, backend=backend, **options)
    exact = everything((q, k, v, grad), shape, backend="reference", dtype=torch.float64, **options)
    assert all(x.isfinite().all() for x in found)
    assert relative_error(found[0].double(), exact[0]) < 1e-3


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_all_queries_at_one_key_stay_finite(backend, device):
    shape = (1, 1, 4, 8, 16)
    q, k, v, grad = inputs(shape, torch.float32, device)
    q, k = torch.ones_like(q), torch.zeros_like(k)
    k[:, :, 3] = 100.0
    options = {"statistics": "instance", "constants": FREE}
    for x in everything((q, k, v, grad), shape, backend=backend, **options):
        assert x.isfinite().all()


def test_large_half_precision_inputs_do_not_overflow():
    shape = (1, 2, 4, 8, 16)
    tensors = [x * 200 for x in inputs(shape, torch.float16)]  # q·k beyond float16's 65504
    for backend in ("sdpa", "triton") if not torch.cuda.is_available() else ("sdpa",):
        options = {"statistics": "instance", "constants": PUBLISHED, "backend": backend}
        assert everything(tensors, shape, **options)[0].isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operator returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


PASSES = ("column_mass", "mix", "values_backward", "scores_backward")


def watched(run, largest):
    """A pass with the dispatch mode on inside: an operator hides what it does from one outside."""

    def inside(*args, **kwargs):
        with largest:
            return run(*args, **kwargs)

    return inside


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_no_map_of_n_by_n_exists_forward_or_backward(threads, monkeypatch):
    b, h, f, p, d = shape = (2, 4, 8, 160, 8)
    n, largest, saved = f * p, LargestTensor(), []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for name in PASSES:
        monkeypatch.setattr(chunked, name, watched(getattr(chunked, name), largest))
    q, k, v, grad = inputs(shape, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    options = {"frames": f, "constants": PUBLISHED, "statistics": "instance"}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = exact_attention(*leaves, **options, backend="sdpa")
    forward = largest.elements
    out.backward(grad)
    assert b * h * n * d < forward <= largest.elements <= chunked.TILES < b * h * n * n
    assert sum(x.numel() for x in saved) < 5 * b * h * n * d, "four tensors and some vectors"


@pytest.mark.parametrize("threads", [1, 2, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_map_is_kept_only_where_it_is_no_larger_than_what_it_is_made_of(
    dtype, threads, monkeypatch
):
    """N = 4 D keeps one map of as many bytes as q, k, v and out; one token more keeps none.

    It was N = 4 D in 16 bits too, where the map takes twice those bytes: there it is 2 D.
    """
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    b, h, d = 2, 4, 8
    longest = 2 * d if dtype == torch.bfloat16 else 4 * d
    for n, maps in ((longest, 1), (longest + 1, 0)):
        largest, saved = LargestTensor(), []
        with monkeypatch.context() as patched:
            for name in PASSES:
                patched.setattr(chunked, name, watched(getattr(chunked, name), largest))
            q, k, v, grad = inputs((b, h, 1, n, d), dtype)
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            options = {"frames": 1, "constants": PUBLISHED, "statistics": "instance"}
            with torch.autograd.graph.saved_tensors_hooks(
                lambda x, saved=saved: saved.append(x) or x, lambda x: x
            ):
                out = exact_attention(*leaves, **options, backend="sdpa")
            out.backward(grad)
        kept = [x.nbytes for x in saved if x.shape == (b, h, n, n)]
        assert len(kept) == maps and sum(kept) <= 4 * q.numel() * dtype.itemsize
        assert largest.elements <= (b * h * n * n if maps else b * h * n * n // 2)
        assert sum(x.numel() for x in saved) < (5 + 4 * maps) * b * h * n * d


def test_no_map_is_kept_on_cuda():
    with FakeTensorMode():  # on CUDA by name alone
        memos = [chunked.new_memo(torch.empty(1, 2, 5, 3, device=d)) for d in ("cpu", "cuda")]
    assert [tuple(memo.shape) for memo in memos] == [(1, 2, 5, 5), (0,)]


def test_the_memory_test_would_notice_a_map(monkeypatch):
    largest = LargestTensor()
    monkeypatch.setattr(chunked, "mix", watched(lambda *_, **__: torch.ones(8, 50, 50), largest))
    with pytest.raises(Exception):  # noqa: B017 (whatever the operator says to a wrong result)
        q, k, v, _ = inputs((2, 4, 5, 10, 8), torch.float32)
        exact_attention(q, k, v, frames=5, constants=PUBLISHED, statistics="instance")
    assert largest.elements == 8 * 50 * 50


@pytest.mark.parametrize("threads", [1, 2, 16, 128])
@pytest.mark.parametrize(("pairs", "n"), [(1, 2), (3, 7), (24, 160), (24, 1568), (2, 70_000)])
@pytest.mark.parametrize(("count", "by_heads"), [(1, False), (3, False), (0, True), (2, True)])
def test_tiles_cover_the_map_within_their_limit(count, by_heads, pairs, n, threads, monkeypatch):
    """Each pair once, all tiles together below the limit, and never the whole map at once."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    seen, largest = torch.zeros(pairs, n, dtype=torch.int), 0
    if by_heads and n > 1024:
        return  # a head's whole map: for short sequences alone
    like = torch.empty(pairs, n, 1)
    for heads, rows, *tiles in chunked._tiles(like, count=count, by_heads=by_heads):
        seen[heads, rows] += 1
        shape = (*seen[heads, rows].shape, n)
        assert len(tiles) == count and all(x.shape == shape for x in tiles)
        assert not by_heads or shape[1] == n
        largest = max(largest, *(x.numel() for x in tiles), 0)
    assert (seen == 1).all()
    assert count * largest <= chunked.TILES
    assert by_heads or 2 * largest <= pairs * n * n


@pytest.mark.parametrize("n", [1, 7, 33, 160, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pytorchs_softmax_may_write_over_what_it_reads(dtype, n, device):
    """PyTorch does not say so, and a tile more would not fit the cache."""
    scores = 30 * torch.randn(3, 11, n, dtype=dtype, device=device)
    expected = scores.softmax(-1)
    assert torch.equal(torch.softmax(scores, -1, out=scores), expected)


def test_a_moving_average_is_copied_before_it_moves_on():
    """The backward of one batch reads it after the next batch has updated it."""
    shape = (2, 2, 4, 6, 8)
    q, k, v, grad = inputs(shape)
    buffer = torch.full((1, 4), 0.25, dtype=torch.float64)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    options = {"frames": 4, "constants": FREE, "backend": "sdpa"}
    out = exact_attention(*leaves, statistics=lambda c: buffer.lerp_(c, 0.1), **options)
    used = buffer.clone()
    buffer.fill_(0.9)
    expected = exact_attention(*leaves, statistics=lambda c: used, **options)
    for ours, theirs in zip(
        torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs)


def test_a_clip_of_instance_statistics_ignores_its_neighbours():
    shape = (3, 2, 4, 6, 8)
    q, k, v, _ = inputs(shape)
    options = {"frames": 4, "constants": PUBLISHED, "backend": "sdpa"}
    alone = exact_attention(q[:1], k[:1], v[:1], statistics="instance", **options)
    torch.testing.assert_close(
        exact_attention(q, k, v, statistics="instance", **options)[:1], alone
    )
    mixed = exact_attention(q, k, v, statistics="batch", **options)[:1]
    assert (mixed - alone).abs().max() > 1e-6


def test_one_token_a_frame_has_no_gradient_through_its_concentration():
    """It did, of 1e-4 in float64 and 1e5 in float32: rounding errors times 1e12."""
    mass = torch.rand(1, 6).requires_grad_()
    constants = MiraConstants(confidence_weight=0.0, alpha_min=1e-3, alpha_max=1e3)
    alpha, _ = frame_weights(mass, None, 6, constants, pooled=False)
    assert not torch.autograd.grad(alpha[0, 0], mass)[0].any()


def test_autocast_casts_what_the_operators_cannot():
    q, k, v, _ = inputs((1, 2, 2, 5, 8), torch.float32)
    options = {"frames": 2, "constants": PUBLISHED, "statistics": "instance", "backend": "sdpa"}
    with torch.autocast("cpu", torch.bfloat16):
        out, importance = exact_attention_with_importance(q, k.bfloat16(), v, **options)
    assert out.dtype == torch.bfloat16
    assert importance.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 3}, "20 tokens do not divide into 3 frames"),
        ({"frames": 0}, "do not divide"),
        ({"statistics": "batch_ema"}, "give the moving average of batch_ema as a function"),
        ({"statistics": lambda c: c[0]}, "must return a tensor \\[1, 4\\], not \\(4,\\)"),
        ({"statistics": lambda c: None}, "must return a tensor .* not NoneType"),
        ({"dropout_p": 0.1}, "dropout_p must be 0"),
        ({"scale": float("nan")}, "scale must be finite"),
        ({"backend": "cudnn"}, "no backend 'cudnn'; choose one of triton, sdpa, flash_attn"),
    ],
)
def test_a_bad_call_says_what_to_change(change, message):
    q, k, v, _ = inputs((1, 2, 4, 5, 8))
    options = {"frames": 4, "constants": PUBLISHED, "statistics": "instance"} | change
    with pytest.raises(ValueError, match=message):
        exact_attention(q, k, v, **options)


@pytest.mark.parametrize(
    "spoil",
    [lambda k: k[:, :, :4], lambda k: k.float(), lambda k: k.to("meta")],
    ids=["shape", "dtype", "device"],
)
def test_keys_that_do_not_fit_are_refused(spoil):
    q, k, v, _ = inputs((1, 2, 4, 5, 8))
    with pytest.raises(ValueError, match="k must have q's shape, dtype and device"):
        exact_attention(q, spoil(k), v, frames=4, constants=PUBLISHED, statistics="instance")


def test_backends_that_cannot_run_say_why(device):
    q, k, v, _ = inputs((1, 2, 4, 5, 8), device=device)
    options = {"frames": 4, "constants": PUBLISHED, "statistics": "instance"}
    with pytest.raises(RuntimeError, match="drops the gradient of its log-sum-exp; choose"):
        exact_attention(q, k, v, backend="flash_attn", **options)
    with pytest.raises(RuntimeError, match="float64; choose backend='sdpa'"):
        exact_attention(q, k, v, backend="triton", **options)
