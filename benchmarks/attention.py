"""Time and memory of our attention against PyTorch's, the published forms and FlexAttention.

    python -m benchmarks.attention [CASE …] [--device cpu|cuda] [--turns 9] [--limit SECONDS]

A case is heads x dim, tokens, batch and precision: 12x64-n1568-b2-fp32. The contestants take turns
in one process, so that whatever else the machine does meets all; ratios are to PyTorch's attention
without bias (`sdpa`) in the same run. q, k and v are strided views of one fused projection.

Each contestant is first held against a float64 reference, forward and gradients, on the first and
last clip: it may lose twice (gradients: three times) what plain PyTorch in the same precision
loses. One that loses more is not timed. Rows go to benchmarks/results/attention.csv.

Peak memory is what a call allocates on top of its inputs: on CUDA from the allocator's statistics,
on the CPU from the profiler's record of every allocation. Runs where only torch and triton exist.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.attention_check import (
    CASES,
    OUT_OF_MEMORY,
    Attend,
    Case,
    Contestant,
    contestants,
    inputs,
    parse,
    wrong,
)
from benchmarks.rows import CLOCKS, append, processor, quantile

RESULTS = Path(__file__).parent / "results" / "attention.csv"
BASE = "sdpa"
DIRECTIONS = ("forward", "forward+backward")
SHORTEST = 2e-3  # seconds a turn should last on a GPU; shorter calls are repeated


def call(attend: Attend, tensors: list[Tensor], direction: str) -> Callable[[], object]:
    """One call of a contestant: without autograd, or with the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    if direction == "forward":
        return torch.no_grad()(lambda: attend(q, k, v))
    return lambda: torch.autograd.grad(attend(q, k, v), (q, k, v), tensors[3])


def seconds(run: Callable[[], object], device: str, clock: str, repeats: int) -> float:
    """Mean seconds of `repeats` calls; on CUDA between two events."""
    if device == "cpu":
        start = CLOCKS[clock]()
        for _ in range(repeats):
            run()
        return (CLOCKS[clock]() - start) / repeats
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Most bytes that a call holds at once on top of its inputs."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as record:
        run()
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def ready(
    case: Case, entrants: dict[str, Contestant], tensors: list[Tensor], clock: str
) -> tuple[dict[tuple[str, str], Callable[[], object]], dict[tuple[str, str], int]]:
    """Warmed-up calls by contestant and direction, and how often a turn repeats each."""
    device, calls, repeats = tensors[0].device.type, {}, {}
    for name, contestant in entrants.items():
        for direction in DIRECTIONS:
            run = call(contestant.attend, tensors, direction)
            try:
                run()
            except torch.OutOfMemoryError:
                print(f"{case} {name}, {direction}: not timed, out of memory", flush=True)
                torch.cuda.empty_cache()
                continue
            short = seconds(run, device, clock, 1)
            calls[name, direction] = run
            repeats[name, direction] = (
                1 if device == "cpu" else max(1, min(20, round(SHORTEST / short)))
            )
    return calls, repeats


def rows(
    case: Case, entrants: dict[str, Contestant], tensors: list[Tensor], turns: int, clock: str
) -> list[dict[str, object]]:
    """The result rows of a case, for contestants that passed their check."""
    device = tensors[0].device.type
    calls, repeats = ready(case, entrants, tensors, clock)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for turn in range(turns):
        order = list(calls)
        for key in order if turn % 2 else order[::-1]:
            taken[key].append(1e3 * seconds(calls[key], device, clock, repeats[key]))
    peaks = {key: peak_bytes(run, device) for key, run in calls.items()}
    found = []
    for (name, direction), own in taken.items():
        base = taken[BASE, direction]
        by_turn = [a / b for a, b in zip(own, base, strict=True)]
        found.append(
            machine(device, clock)
            | {
                "case": str(case),
                "frames": case.frames,
                "contestant": name,
                "direction": direction,
                "turns": turns,
                "p20_ms": f"{quantile(own, 0.2):.4f}",
                "p50_ms": f"{quantile(own, 0.5):.4f}",
                "p80_ms": f"{quantile(own, 0.8):.4f}",
                "ratio_p50": f"{quantile(own, 0.5) / quantile(base, 0.5):.3f}",
                "ratio_turns_p50": f"{quantile(by_turn, 0.5):.3f}",
                "peak_bytes": peaks[name, direction],
                "peak_ratio": f"{peaks[name, direction] / peaks[BASE, direction]:.2f}",
            }
        )
    return found


def machine(device: str, clock: str) -> dict[str, object]:
    """Where and with what a row was measured."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    return {
        "date": datetime.date.today().isoformat(),
        "device": processor() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "clock": clock if device == "cpu" else "events",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton,
    }


def report(found: list[dict[str, object]]) -> None:
    """Print a case's rows as a table."""
    print(f"{found[0]['case']} on {found[0]['device']}: ms, × sdpa, MiB")
    for row in found:
        name = f"{row['contestant']}, {row['direction']}"
        mib = float(str(row["peak_bytes"])) / 2**20
        print(f"  {name:56} {row['p50_ms']:>10} {row['ratio_turns_p50']:>7} {mib:>9.1f}")
    sys.stdout.flush()


def compete(case: Case, options: argparse.Namespace) -> int:
    """Check, time and write one case; how many contestants were refused as wrong."""
    torch.compiler.reset()  # else FlexAttention stops being compiled after a few shapes
    tensors = inputs(case, options.device)
    entrants = {
        name: entrant
        for name, entrant in contestants(case, tensors).items()
        if not options.only or name in (BASE, *options.only)
    }
    refused = wrong(case, entrants, tensors)
    for name, problem in refused.items():
        print(f"{case} {name}: not timed, {problem}", flush=True)
    passed = {name: entrant for name, entrant in entrants.items() if name not in refused}
    if BASE in passed:
        found = rows(case, passed, tensors, options.turns, options.clock)
        append(options.out, found)
        report(found)
    return sum(problem != OUT_OF_MEMORY for problem in refused.values())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    found.add_argument("cases", nargs="*", metavar="CASE", help="12x64-n1568-b2-fp32; else all")
    found.add_argument("--device", choices=list(CASES), help="cuda where there is one")
    found.add_argument(
        "--only", nargs="+", metavar="NAME", help="contestants beside sdpa; else all"
    )
    found.add_argument("--turns", type=int, help="9 on the CPU, 30 on CUDA")
    found.add_argument("--threads", type=int, default=torch.get_num_threads())
    found.add_argument("--clock", choices=list(CLOCKS), default="wall", help="on the CPU")
    found.add_argument("--limit", type=float, help="seconds after which no case is begun")
    found.add_argument("--out", type=Path, default=RESULTS, help="CSV file to append to")
    return found


def main() -> int:
    """Run the cases; exit 1 if a contestant was refused, 2 if cases are left over."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser().error("there is no CUDA device here")
    options.turns = options.turns or (9 if options.device == "cpu" else 30)
    try:
        cases = [parse(name) for name in options.cases] or CASES[options.device]
    except ValueError as error:
        parser().error(str(error))
    start, refused = time.monotonic(), 0
    for index, case in enumerate(cases):
        if options.limit and time.monotonic() - start > options.limit:
            print("time is up; not begun:", *cases[index:])
            return 2
        refused += compete(case, options)
    return 1 if refused else 0


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise
    sys.exit(main())
