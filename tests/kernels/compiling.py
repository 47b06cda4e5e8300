"""Compiling kernels for GPUs that are not here: real machine code, and what it needs to run.

Owns the subprocess in which Triton compiles, because the interpreter must be off there, and the
reading of the assembler's report. `compiled` for one kernel, `compile_all` for many in one go.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 100)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
SPILL_LIMIT = 64


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
    thread (stores and loads), whether it uses Hopper's matrix instruction, and whether any product
    rounds float32 to 19 bits."""

    shared: int
    registers: int
    spills: int
    wgmma: bool
    tf32: bool

    def complaints(self, arch: int) -> list[str]:
        """Why this would not run, or not run well, on sm_`arch`."""
        found = []
        if self.shared > SHARED_LIMIT[arch]:
            found.append(f"{self.shared} bytes of shared memory, limit {SHARED_LIMIT[arch]}")
        if self.spills > SPILL_LIMIT:
            found.append(f"{self.spills} bytes of spills, limit {SPILL_LIMIT}")
        return found


def specialised_to_one(job: Job) -> Job:
    """Triton turns a number that is 1 at the launch into a constant, which must compile as well."""
    ones = {n: 1 for n in ("H", "N", "q_n", "k_n", "v_h", "bias_b") if n in job.signature}
    types = {name: kind for name, kind in job.signature.items() if name not in ones}
    return replace(job, signature=types, constexprs=job.constexprs | ones)


def compiled(
    module: str,
    function: str,
    signature: dict[str, str],
    constexprs: dict[str, object],
    arch: int,
    num_warps: int,
    num_stages: int,
) -> Report:
    """One kernel for sm_`arch`; see `Job`."""
    job = Job(module, function, signature, constexprs, num_warps, num_stages)
    return compile_all([job], arch)[0]


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
    import importlib

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
    wgmma = "wgmma.mma_async" in ptx
    return Report(kernel.metadata.shared, registers, spills, wgmma, "tf32" in ptx)


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
