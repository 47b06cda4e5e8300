"""FlashLite kernels as real machine code for GPUs that need not be here."""

import itertools
from dataclasses import replace

import pytest
import torch

from kernels.flashlite.sizes import AMPERE, FLOAT32, HOPPER, Tiles, tiles_of
from tests.kernels.compiling import ARCHITECTURES, DTYPES, MATRIX_UNITS, compile_all, launch

pytest.importorskip("triton")
KERNELS = {
    "forward": ("kernels.flashlite.kernel", "forward_kernel"),
    "dq": ("kernels.flashlite.kernel_backward", "dq_kernel"),
    "dkv": ("kernels.flashlite.kernel_backward", "dkv_kernel"),
    "energy": ("kernels.flashlite.kernel", "key_energy_kernel"),
}


def job(kernel, head_dim, dtype, arch, **options):
    """The launch of a kernel as `kernel.py` makes it on sm_`arch`."""
    if kernel == "energy":
        tiles = Tiles(32, 0, 4, 2)
    else:
        tiles = tiles_of(kernel, head_dim, DTYPES[dtype], arch // 10)
    return launch(*KERNELS[kernel], tiles, head_dim, dtype, **options)


def assert_fit(jobs, arch):
    for (case, _), report in zip(jobs.items(), compile_all(list(jobs.values()), arch), strict=True):
        assert not report.complaints(arch) and not report.tf32, (case, report)
        if "energy" not in case:
            used = MATRIX_UNITS[arch] in report.matrix
            assert used == ("fp32" not in case), (case, report)


@pytest.mark.parametrize(
    "arch, dims", [(80, (64, 88, 128)), (90, (64, 80, 88, 128)), (100, (64, 128))]
)
def test_main_kernels_fit_and_use_the_matrix_units(arch, dims):
    cases = [(kernel, d, "bf16") for kernel, d in itertools.product(KERNELS, dims)]
    assert_fit({case: job(*case, arch) for case in cases}, arch)


def test_the_other_dtypes_fit():
    """And float32 products are no TF32, which the interpreter would not show."""
    cases = [("dkv", 64, "fp16"), ("forward", 64, "fp32")]
    assert_fit({case: job(*case, 90) for case in cases}, 90)


def test_heads_that_8_elements_divide_are_loaded_in_whole_vectors():
    """Of 88, their distance, Triton knows nothing by itself."""
    told, not_told = (job("forward", 88, "bf16", 80, ALIGNED=told) for told in (True, False))
    assert [report.narrow for report in compile_all([told, not_told], 80)] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_other_forms_fit_too(arch):
    """Odd head dims, float16, float32, no bias, lengths that divide into blocks, sizes of 1."""
    cases = [(kernel, d, "bf16") for kernel, d in itertools.product(KERNELS, (7, 16, 80, 88))]
    cases += [(kernel, 64, dtype) for kernel, dtype in itertools.product(KERNELS, ("fp16", "fp32"))]
    jobs = {case: job(*case, arch) for case in cases} | {
        "no bias": job("forward", 64, "bf16", arch, bias=None),
        "whole blocks": job("dkv", 64, "bf16", arch, RAGGED=False),
        "one head and token": job("dkv", 1, "bf16", arch, heads=1, tokens=1),
    }
    assert_fit(jobs, arch)


def test_a_spilling_kernel_would_be_noticed():
    """A block twice as wide for its warps does spill, so the report is not always 0."""
    wide = replace(job("forward", 64, "bf16", 90), num_warps=2)
    assert compile_all([wide], 90)[0].complaints(90)


@pytest.mark.parametrize("table", [AMPERE, HOPPER], ids=["ampere", "hopper"])
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel != "energy"])
def test_every_head_dim_has_tiles(kernel, table):
    limits = [largest for largest, _ in table[kernel]]
    assert limits == sorted(limits) and limits[-1] == 256
    assert tiles_of(kernel, 64, torch.float32, 9) == FLOAT32
