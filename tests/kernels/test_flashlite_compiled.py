"""FlashLite kernels as real machine code for GPUs that need not be here: memory, spills, wgmma."""

import itertools
from dataclasses import replace

import pytest
import torch

from kernels.flashlite.sizes import AMPERE, FLOAT32, HOPPER, tiles_of
from tests.kernels.compiling import ARCHITECTURES, Job, compile_all, specialised_to_one

pytest.importorskip("triton")
KERNELS = {
    "forward": ("kernels.flashlite.kernel", "forward_kernel"),
    "dq": ("kernels.flashlite.kernel_backward", "dq_kernel"),
    "dkv": ("kernels.flashlite.kernel_backward", "dkv_kernel"),
}
FLOAT_POINTERS = ("bias", "lse", "delta", "energy")
POINTERS = ("q", "k", "v", "out", "grad_out", "dq", "dk", "dv")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def signature(names, constexprs, dtype):
    """Types of what is no constant, as a launch with N = 1568 and H = 12 specialises them."""
    known = dict.fromkeys(POINTERS, f"*{dtype}") | dict.fromkeys(FLOAT_POINTERS, "*fp32")
    known |= {"scale": "fp32", "scale2": "fp32", "H": "i32", "N": "i32:16"}
    return {n: known.get(n, "i32:16") for n in names if n not in constexprs}


def job(kernel, head_dim, dtype, arch, *, bias=True, ragged=True):
    """The launch of a kernel as `kernel.py` makes it on sm_`arch`."""
    import importlib

    from kernels.flashlite.tiles import cut

    module, function = KERNELS[kernel]
    tiles = tiles_of(kernel, head_dim, DTYPES[dtype], arch // 10)
    d0, d1 = cut(head_dim)
    constexprs = {"D": head_dim, "D0": d0, "D1": d1, "ROWS": tiles.rows, "UPCAST": False}
    constexprs |= {"COLUMNS": tiles.columns, "RAGGED": ragged}
    constexprs |= {} if bias else {"bias": None}
    names = getattr(importlib.import_module(module), function).arg_names
    types = signature(names, constexprs, dtype)
    return Job(module, function, types, constexprs, tiles.warps, tiles.stages)


def assert_fit(jobs, arch):
    for (case, _), report in zip(jobs.items(), compile_all(list(jobs.values()), arch), strict=True):
        assert not report.complaints(arch) and not report.tf32, (case, report)
        if "bf16" in case:
            assert report.wgmma == (arch == 90), (case, report)


@pytest.mark.parametrize("arch, dims", [(80, (64, 128)), (90, (64, 80, 128)), (100, (64, 128))])
def test_main_kernels_fit_and_use_the_matrix_units(arch, dims):
    cases = [(kernel, d, "bf16") for kernel, d in itertools.product(KERNELS, dims)]
    assert_fit({case: job(*case, arch) for case in cases}, arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_other_forms_fit_too(arch):
    """Odd head dims, float16, float32, no bias, lengths that divide into blocks; key energy."""
    cases = [(kernel, d, "bf16") for kernel, d in itertools.product(KERNELS, (7, 80, 88))]
    cases += [(kernel, 64, dtype) for kernel, dtype in itertools.product(KERNELS, ("fp16", "fp32"))]
    jobs = {case: job(*case, arch) for case in cases} | {
        "no bias": job("forward", 64, "bf16", arch, bias=False),
        "whole blocks": job("dkv", 64, "bf16", arch, ragged=False),
        "key energy": energy_job(),
        "one head and token": specialised_to_one(job("dkv", 64, "bf16", arch)),
    }
    assert_fit(jobs, arch)


def energy_job():
    constexprs = {"D": 64, "D0": 64, "D1": 0, "ROWS": 32, "UPCAST": False}
    names = ("k", "energy", "k_b", "k_h", "k_n", "H", "N")
    return Job(
        "kernels.flashlite.kernel",
        "key_energy_kernel",
        signature(names, constexprs, "bf16"),
        constexprs,
        num_warps=4,
        num_stages=2,
    )


def test_float32_products_are_float32_products():
    """Not TF32, which the interpreter would not show."""
    assert not compile_all([job("forward", 64, "fp32", 90)], 90)[0].tf32


def test_a_spilling_kernel_would_be_noticed():
    """A block twice as wide for its warps does spill, so the report is not always 0."""
    wide = replace(job("forward", 64, "bf16", 90), num_warps=2)
    assert compile_all([wide], 90)[0].complaints(90)


@pytest.mark.parametrize("table", [AMPERE, HOPPER], ids=["ampere", "hopper"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_head_dim_has_tiles(kernel, table):
    limits = [largest for largest, _ in table[kernel]]
    assert limits == sorted(limits) and limits[-1] == 256
    assert tiles_of(kernel, 64, torch.float32, 9) == FLOAT32
