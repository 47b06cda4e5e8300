"""Exact MiRA as operators that PyTorch's compilers see through, and as machine code for GPUs."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.exact import exact_attention, exact_attention_with_importance, op
from kernels.exact.sizes import AMPERE, BLACKWELL, HOPPER, tiles_of
from kernels.exact.weights import kept
from kernels.flashlite.sizes import Tiles
from kernels.marginals import MiraConstants
from tests.kernels.compiling import ARCHITECTURES, DTYPES, MATRIX_UNITS, compile_all, launch

FREE = MiraConstants(alpha_min=1e-3, alpha_max=1e3)  # no α is clipped


class Layer(nn.Module):
    """Attention with a moving average of its statistics."""

    def __init__(self, statistics: str, backend: str, residual_mix: float):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.register_buffer("average", torch.full((1, 4), 0.25))
        self.statistics, self.backend = statistics, backend
        self.constants = MiraConstants(alpha_min=1e-3, alpha_max=1e3, residual_mix=residual_mix)
        self.replayed: Tensor | None = None

    def moved(self, confidence: Tensor) -> Tensor:
        if self.replayed is not None:
            return self.replayed
        return self.average.lerp_(confidence.to(self.average.dtype), 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).transpose(1, 3).unbind(2)
        out, importance = exact_attention_with_importance(
            q,
            k,
            v,
            frames=4,
            constants=self.constants,
            statistics=self.moved if self.statistics == "batch_ema" else self.statistics,
            backend=self.backend,
        )
        return out.transpose(1, 2).flatten(2), importance


def trained(layer: Layer, call, x: Tensor) -> list[Tensor]:
    out, importance = call(x)
    layer.qkv.zero_grad()
    out.square().sum().backward()
    return [out.detach(), importance, layer.average.clone(), layer.qkv.weight.grad]


def twins(statistics: str, backend: str, device: str, residual_mix: float = 0.5):
    """Two equal layers, and tokens for them; the kernels compute no float64."""
    torch.compiler.reset()  # else torch stops compiling a method after a few forms
    dtype = torch.float32 if backend == "triton" else torch.float64
    layers = [Layer(statistics, backend, residual_mix).to(device, dtype) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    return *layers, torch.randn(2, 2, 24, 8, dtype=dtype, device=device)


def assert_same(found, expected) -> None:
    """Equal to rounding; the statistics stretch differences between frames, and their rounding."""
    loose = {"rtol": 1e-3, "atol": 1e-4} if expected[0].dtype == torch.float32 else {}
    torch.testing.assert_close(found, expected, **loose)


both = pytest.mark.parametrize("backend", ["sdpa", "triton"])


@both
@pytest.mark.parametrize("statistics", ["instance", "batch", "batch_ema"])
def test_it_compiles_into_one_graph(statistics, backend, device):
    eager, other, batches = twins(statistics, backend, device)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for x in batches:
        assert_same(trained(other, compiled, x), trained(eager, eager, x))


@both
def test_without_effect_it_compiles_too(backend, device):
    eager, other, (x, _) = twins("batch_ema", backend, device, residual_mix=0.0)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert_same(trained(other, compiled, x), trained(eager, eager, x))


@both
def test_inductor_does_not_remake_the_average_from_the_moved_buffer(backend, device):
    """It did: what it saw made in the forward it made anew in the backward."""
    eager, other, (x, _) = twins("batch_ema", backend, device)
    compiled = torch.compile(other, fullgraph=True, backend="inductor")
    assert_same(trained(other, compiled, x), trained(eager, eager, x))


@both
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_gives_the_same_gradients(reentrant, backend, device):
    """The recomputed pass is told the average of the first, as `mira.blocks.Attention` tells it."""
    plain, other, (x, _) = twins("batch_ema", backend, device)
    x.requires_grad_()

    def call(x):
        def run(x):
            if other.replayed is None and torch.is_grad_enabled() and used:
                other.replayed = used[0]
            return other(x)

        used: list[Tensor] = []
        result = checkpoint(run, x, use_reentrant=reentrant)
        used.append(other.average.clone())
        other.average.fill_(0.7)  # another batch came between
        return result

    expected, found = trained(plain, plain, x), trained(other, call, x)
    for index in (0, 1, 3):
        assert_same(found[index], expected[index])


def mixed_inputs(backend: str, device: str, dim: int = 16) -> tuple:
    """Arguments of every operator, small enough for the interpreter."""
    dtype = torch.float64 if backend == "sdpa" else torch.float32
    qkv = torch.randn(2, 6, 3, 2, dim, dtype=dtype, device=device).transpose(1, 3).unbind(2)
    plain, memo, mass = op.exact_column_mass(*qkv, 0.25, backend)
    alpha = torch.tensor([[0.8, 1.2, 1.0]], dtype=dtype, device=device).expand(2, 3).contiguous()
    average = torch.tensor([[0.3, 0.3, 0.4]], dtype=dtype, device=device)
    values = op.as_floats(FREE)
    mix = (*qkv, plain, memo, alpha, mass, average, True, values, 0.25, backend)
    return qkv, mix


@pytest.mark.parametrize(("backend", "dim"), [("sdpa", 16), ("sdpa", 1), ("triton", 16)])
def test_the_operators_keep_pytorchs_rules(backend, dim, device):
    """With head dim 16 the path `sdpa` keeps the map on the CPU, with 1 it makes it anew."""
    if backend == "triton":
        pytest.importorskip("triton")
    qkv, mix = mixed_inputs(backend, device, dim)
    kept_map = dim == 16 and device == "cpu"
    assert mix[4].ndim == {"triton": 3, "sdpa": 4 if kept_map else 1}[backend]
    torch.library.opcheck(op.exact_column_mass, (*qkv, 0.25, backend))
    leaves = [x.detach().requires_grad_() for x in qkv]
    torch.library.opcheck(op.exact_mix, (*leaves, *mix[3:]))
    out, reweighted, norm = op.exact_mix(*mix)
    weight = mix[5].repeat_interleave(2, 1)
    common = (0.1, 0.5, 0.25, backend)
    grads = (torch.randn_like(out), *qkv, out, reweighted, mix[4], norm, weight, *common)
    torch.library.opcheck(op.exact_values_backward, grads)
    _, _, along, delta = op.exact_values_backward(*grads)
    scores = (*grads[:4], mix[4], norm, weight, along, delta, weight, *common)
    torch.library.opcheck(op.exact_scores_backward, scores)


def test_the_kept_average_keeps_pytorchs_rules(device):
    torch.library.opcheck(kept, (torch.rand(1, 6, device=device)[:, ::2],))


@both
def test_twice_differentiating_is_refused(backend, device):
    qkv, _ = mixed_inputs(backend, device)
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = exact_attention(*leaves, frames=3, constants=FREE, statistics="instance", backend=backend)
    (grad,) = torch.autograd.grad(out.sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="mira.exact_.*no autograd formula was registered"):
        grad.sum().backward()


KERNELS = {
    "mass": ("kernels.exact.kernel", "mass_kernel"),
    "mix": ("kernels.exact.kernel", "mix_kernel"),
    "terms": ("kernels.exact.kernel_backward", "terms_kernel"),
    "values": ("kernels.exact.kernel_backward", "values_kernel"),
    "dq": ("kernels.exact.kernel_backward", "dq_kernel"),
    "dk": ("kernels.exact.kernel_backward", "dk_kernel"),
}


def job(kernel, head_dim, dtype, arch, **options):
    """The launch of a kernel as `kernel.py` makes it on sm_`arch`."""
    if kernel == "terms":
        tiles = Tiles(32, 0, 4, 1)
    else:
        tiles = tiles_of(kernel, head_dim, DTYPES[dtype], arch // 10)
    return launch(*KERNELS[kernel], tiles, head_dim, dtype, **options)


def assert_fit(cases, arch):
    pytest.importorskip("triton")
    jobs = [job(*case, arch) for case in cases]
    for case, report in zip(cases, compile_all(jobs, arch), strict=True):
        assert not report.complaints(arch) and not report.tf32, (case, report)
        if "terms" not in case:
            used = MATRIX_UNITS[arch] in report.matrix
            assert used == ("fp32" not in case), (case, report)


@pytest.mark.parametrize("arch, dims", [(80, (64, 88, 128)), (90, (64, 80, 88, 128)), (100, (64,))])
def test_main_kernels_fit_and_use_the_matrix_units(arch, dims):
    assert_fit([(kernel, d, "bf16") for kernel, d in itertools.product(KERNELS, dims)], arch)


def test_the_other_dtypes_fit():
    assert_fit([("dk", 64, "fp16"), ("values", 64, "fp32")], 90)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_other_forms_fit_too(arch):
    """Other head dims and dtypes."""
    cases = [(kernel, d, "bf16") for kernel, d in itertools.product(KERNELS, (16, 80, 88, 128))]
    cases += [(kernel, 64, dtype) for kernel, dtype in itertools.product(KERNELS, ("fp16", "fp32"))]
    assert_fit(cases, arch)


@pytest.mark.slow
def test_one_head_and_one_token_compile():
    pytest.importorskip("triton")
    jobs = [job(kernel, 1, "bf16", 90, heads=1, tokens=1) for kernel in KERNELS]
    assert len(compile_all(jobs, 90)) == len(KERNELS)


@pytest.mark.parametrize(
    "table", [AMPERE, HOPPER, BLACKWELL], ids=["ampere", "hopper", "blackwell"]
)
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "terms"])
def test_every_head_dim_has_tiles(kernel, table):
    limits = [largest for largest, _ in table[kernel]]
    assert limits == sorted(limits) and limits[-1] == 256
