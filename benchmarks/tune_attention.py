"""Try tile sizes of the Triton kernels on the GPU at hand, one kernel at a time.

    python -m benchmarks.tune_attention CASE [--kernels flashlite.dq exact.mix …] [--limit 560]

Each kernel keeps the tables' tiles but for the one that is tried; what is timed is the operation
that it is part of, forward or forward and backward, in turn with the tables' own tiles. Tiles that
give other results are named and left out. It prints every candidate as it comes, and the best of
each kernel; writing them into the tables, and measuring, is left to the reader.
"""

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.attention_check import (
    Attend,
    Case,
    contestants,
    errors,
    first_line,
    inputs,
    parse,
    require_device,
    result,
)
from benchmarks.attention_timing import call, issuing, seconds
from benchmarks.rows import quantile

KERNELS = {
    "flashlite": ("forward", "dq", "dkv"),
    "exact": ("mass", "mix", "values", "dq", "dk"),
}
BACKWARD = ("dq", "dk", "dkv")
OPERATIONS = {"flashlite": "ours flashlite, kernel alone", "exact": "ours exact"}
CANDIDATES = [
    (rows, columns, warps, stages)
    for rows, columns, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3))
    if rows * columns <= 128 * 128 and rows * columns >= 64 * 64
]
Sizes = tuple[int, int, int, int]
TURNS = 10
SAME = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # another order of sums


@contextmanager
def tiles(operation: str, kernel: str, sizes: Sizes) -> Iterator[None]:
    """Let one kernel use other tiles; both packages look theirs up through `tiles_of`."""
    module: Any = importlib.import_module(f"kernels.{operation}.kernel")
    original = module.tiles_of

    def chosen(name: str, *rest: Any) -> Any:
        found = original(name, *rest)
        return type(found)(*sizes) if name == kernel else found

    module.tiles_of = chosen
    try:
        yield
    finally:
        module.tiles_of = original


def ratio(
    attend: Attend, tensors: list[torch.Tensor], operation: str, kernel: str, sizes: Sizes
) -> float | None:
    """Time with other tiles over time with the tables', medians of turns; None if it cannot run."""
    direction = "forward+backward" if kernel in BACKWARD else "forward"
    run, device = call(attend, tensors, direction), tensors[0].device.type
    truth = result(attend, tensors)  # compiles the tables' own; an error here ends the tuning
    lead = 2 * issuing(run, device)
    taken: tuple[list[float], list[float]] = ([], [])
    try:
        with tiles(operation, kernel, sizes):
            lost = errors(result(attend, tensors), truth)
        for _ in range(TURNS):
            with tiles(operation, kernel, sizes):
                taken[0].append(seconds(run, device, "wall", 1, lead))
            taken[1].append(seconds(run, device, "wall", 1, lead))
    except Exception as error:  # tiles too large for the GPU: each compiler has its own error
        print(f"  {sizes}: {first_line(error)}", flush=True)
        require_device(f"{kernel} {sizes}")
        return None
    found = quantile(taken[0], 0.5) / quantile(taken[1], 0.5)
    wrong = [each for each in lost if not each <= SAME[tensors[0].dtype]]  # NaN is wrong, too
    told = f"results {wrong[0]:.1e} apart" if wrong else f"{found:.3f}"
    print(f"  {sizes}: {told}", flush=True)
    return None if wrong else found


def tune(case: Case, names: list[str], device: str, limit: float) -> bool:
    """Try all candidates for the named kernels; whether there was time for all."""
    tensors = inputs(case, device)
    entrants = contestants(case, tensors)
    start = time.monotonic()
    for name in names:
        operation, _, kernel = name.partition(".")
        attend = entrants[OPERATIONS[operation]].attend
        found: dict[Sizes, float] = {}
        for sizes in CANDIDATES:
            if time.monotonic() - start > limit:
                print(f"time is up in {name}")
                break
            taken = ratio(attend, tensors, operation, kernel, sizes)
            if taken is not None:
                found[sizes] = taken
        for sizes in sorted(found, key=found.__getitem__)[:4]:
            print(f"{case} {name} {sizes}: {found[sizes]:.3f} × the tables'", flush=True)
    return time.monotonic() - start <= limit


def main() -> int:
    """Tune; exit 2 if time was up."""
    everything = [f"{operation}.{kernel}" for operation in KERNELS for kernel in KERNELS[operation]]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("case", metavar="CASE", type=parse)
    parser.add_argument("--kernels", nargs="+", choices=everything, default=everything)
    parser.add_argument("--limit", type=float, default=560.0, help="seconds")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device to tune for")
    return 0 if tune(options.case, options.kernels, "cuda", options.limit) else 2


if __name__ == "__main__":
    sys.exit(main())
