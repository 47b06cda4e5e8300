"""Compiling kernels for GPUs that are not here: real machine code, and what it needs to run.

Owns what a launch looks like to Triton (`launch`), the subprocess in which Triton compiles, because
the interpreter must be off there (`compile_all`), and the reading of the assembler's report.
"""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from kernels.flashlite.layout import heads_last
from kernels.flashlite.sizes import Tiles

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
SPILL_LIMIT = 64
MATRIX_UNITS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
"""The instruction of each generation's matrix units, as PTX spells it."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FUSED = ("q", "k", "v")
HEADS_LAST = ("out", "do", "dq", "dk", "dv", "plain", "re")
SCALARS = ("scale", "scale2", "residual_mix", "taken", "uniform", "kept", "reach")
VECTORS = ("bias", "lse", "delta", "energy", "mass", "log_weight", "norm", "weight", "along")
VECTORS += ("whole_delta", "pull", "d_alpha")


@dataclass(frozen=True)
class Job:
    """One kernel to compile.

    Attributes:
        module, function: where it is.
        signature: parameter → type: "*bf16", "i32", "fp32"; "i32:16" is a multiple of 16, as
            pointers always are. Parameters that are missing are compile-time constants.
        constexprs: their values.
        num_warps, num_stages: as at the launch.
    """

    module: str
    function: str
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Report:
    """What a compiled kernel needs: shared memory in bytes, registers a thread, spilled bytes a
    thread (stores and loads), which of `MATRIX_UNITS` it uses, whether any product rounds float32
    to 19 bits, and whether it loads 16-bit elements one by one."""

    shared: int
    registers: int
    spills: int
    matrix: list[str]
    tf32: bool
    narrow: bool

    def complaints(self, arch: int) -> list[str]:
        """Why this would not run, or not run well, on sm_`arch`."""
        found = []
        if self.shared > SHARED_LIMIT[arch]:
            found.append(f"{self.shared} bytes of shared memory, limit {SHARED_LIMIT[arch]}")
        if self.spills > SPILL_LIMIT:
            found.append(f"{self.spills} bytes of spills, limit {SPILL_LIMIT}")
        return found


def launch(
    module: str,
    function: str,
    tiles: Tiles,
    head_dim: int,
    dtype: str,
    *,
    heads: int = 12,
    tokens: int = 1568,
    **constants: object,
) -> Job:
    """The launch of a kernel on views of a fused projection, as Triton specialises it.

    A number that 16 divides is known as such, one that is 1 becomes a constant. The last block is
    taken to be ragged, which holds the code of whole ones too; `constants` are further compile-time
    arguments, or other values of these.
    """
    from kernels.flashlite.tiles import cut

    d0, d1 = cut(head_dim)
    numbers = integers(head_dim, heads, tokens)
    fixed = {"D": head_dim, "D0": d0, "D1": d1, "ROWS": tiles.rows, "COLUMNS": tiles.columns}
    fixed |= {"RAGGED": True, "UPCAST": False, "ALIGNED": head_dim % 8 == 0}
    fixed |= {name: 1 for name, value in numbers.items() if value == 1} | constants
    names = getattr(importlib.import_module(module), function).arg_names
    types = {name: kind(name, numbers, dtype) for name in names if name not in fixed}
    fixed = {name: value for name, value in fixed.items() if name in names}
    return Job(module, function, types, fixed, tiles.warps, tiles.stages)


def integers(head_dim: int, heads: int, tokens: int) -> dict[str, int]:
    """Every number a launch passes: sizes, and strides of batch, head and token."""
    fused = torch.empty(2, tokens, 3, heads, head_dim, device="meta").permute(2, 0, 3, 1, 4)
    layouts = dict.fromkeys(FUSED, fused[0]) | dict.fromkeys(HEADS_LAST, heads_last(fused[0]))
    strides = {
        f"{name}_{axis}": stride
        for name, x in layouts.items()
        for axis, stride in zip("bhn", x.stride()[:3], strict=True)
    }
    return strides | {"bias_b": tokens, "bias_h": 0, "H": heads, "N": tokens}


def kind(name: str, numbers: dict[str, int], dtype: str) -> str:
    """The type of a kernel's parameter; see `Job`."""
    if name in numbers:
        return "i32:16" if numbers[name] % 16 == 0 else "i32"
    if name in SCALARS:
        return "fp32"
    return "*fp32" if name in VECTORS else f"*{dtype}"


def compile_all(jobs: list[Job], arch: int) -> list[Report]:
    """Reports of `jobs` for sm_`arch`, from one subprocess; RuntimeError says what failed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, __file__, str(arch)],
        input=json.dumps([asdict(job) for job in jobs]),
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"compilation for sm_{arch} failed:\n{done.stderr[-4000:]}")
    return [Report(**report) for report in json.loads(done.stdout.splitlines()[-1])]


def _compile(job: Job, arch: int) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(job.module), job.function)
    types, hints = {}, {}
    for index, name in enumerate(function.arg_names):
        kind, _, multiple = job.signature.get(name, "constexpr").partition(":")
        types[name] = kind
        if multiple == "16" or kind.startswith("*"):
            hints[(index,)] = [["tt.divisibility", 16]]
    kernel = triton.compile(
        ASTSource(function, types, job.constexprs, hints),
        target=GPUTarget("cuda", arch, 32),
        options={
            "num_warps": job.num_warps,
            "num_stages": job.num_stages,
            "enable_fp_fusion": True,
        },
    )
    ptx = kernel.asm["ptx"]
    registers, spills = _assemble(ptx, arch)
    matrix = [instruction for instruction in MATRIX_UNITS.values() if instruction in ptx]
    narrow = bool(re.search(r"ld\.global\S*\.[bu]16", ptx))
    return Report(kernel.metadata.shared, registers, spills, matrix, "tf32" in ptx, narrow)


def _assemble(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and spilled bytes, as the assembler reports them."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target, "ptx names no target"
    done = subprocess.run(
        [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", "-o", os.devnull, "-"],
        input=ptx,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))
    registers = re.search(r"Used (\d+) registers", done.stderr)
    assert registers, done.stderr
    return int(registers[1]), spills


if __name__ == "__main__":
    found = [_compile(Job(**job), int(sys.argv[1])) for job in json.load(sys.stdin)]
    print(json.dumps([asdict(report) for report in found]))
