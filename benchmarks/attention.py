"""Time and memory of our attention against PyTorch's, the published forms and FlexAttention.

    python -m benchmarks.attention [CASE …] [--device cpu|cuda] [--turns 9] [--limit SECONDS]

A case is heads x dim, tokens, batch and precision: 12x64-n1568-b2-fp32. The contestants take turns
in one process, so that whatever else the machine does meets all; ratios are to PyTorch's attention
without bias (`sdpa`) in the same run. q, k and v are strided views of one fused projection.

Each contestant is first held against a float64 reference, forward and gradients, on the first and
last clip: it may lose twice (gradients: three times) what plain PyTorch in the same precision
loses. One that loses more is not timed. Rows go to benchmarks/results/attention.csv.

How time and memory are taken: `attention_timing.py`. `host_ms` is how long issuing one call keeps
the processor, which a small shape on a GPU may wait for; `kernel` is what PyTorch chooses for plain
attention. Runs where only torch and triton exist.
"""

import argparse
import datetime
import importlib.metadata
import math
import os
import platform
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from benchmarks.attention_check import (
    CASES,
    OUT_OF_MEMORY,
    Case,
    Contestant,
    DeviceLost,
    contestants,
    first_line,
    inputs,
    is_out_of_memory,
    parse,
    require_device,
    wrong,
)
from benchmarks.attention_timing import Timed, call, issuing, peak_bytes, seconds
from benchmarks.rows import CLOCKS, append, processor, quantile

RESULTS = Path(__file__).parent / "results" / "attention.csv"
BASE = "sdpa"
DIRECTIONS = ("forward", "forward+backward")
SHORTEST = 2e-3  # seconds a turn should last on a GPU; shorter calls are repeated
FEWEST = 3  # turns of a case that is cut short


def ready(
    case: Case, entrants: dict[str, Contestant], tensors: list[Tensor], clock: str
) -> dict[tuple[str, str], Timed]:
    """Warmed-up contestants by name and direction; one that cannot run is named and left out."""
    device, found = tensors[0].device.type, {}
    for name, contestant in entrants.items():
        for direction in DIRECTIONS:
            run = call(contestant.attend, tensors, direction)
            try:
                run()
                host = min(issuing(run, device) for _ in range(2))
                short = seconds(run, device, clock, 1, 2 * host)
            except Exception as error:
                problem = OUT_OF_MEMORY if is_out_of_memory(error) else first_line(error)
                print(f"{case} {name}, {direction}: not timed, {problem}", flush=True)
                require_device(f"{case} {name}, {direction}")
                continue
            repeats = 1 if device == "cpu" else max(1, min(20, round(SHORTEST / short)))
            found[name, direction] = Timed(run, host, repeats, [])
    return found


def rows(
    case: Case,
    entrants: dict[str, Contestant],
    tensors: list[Tensor],
    turns: int,
    clock: str,
    end: float = math.inf,
) -> list[dict[str, object]]:
    """The result rows of a case, for contestants that passed their check.

    Args:
        turns: how many each has; fewer, at least FEWEST, once the monotonic clock has reached
            `end`.
    """
    device = tensors[0].device.type
    timed = ready(case, entrants, tensors, clock)
    for turn in range(turns):
        if turn >= FEWEST and time.monotonic() > end:
            break
        order = list(timed.values())
        for each in order if turn % 2 else order[::-1]:
            each.turn(device, clock)
    taken = {key: each.taken for key, each in timed.items()}
    peaks = {key: peak_bytes(each.run, device) for key, each in timed.items()}
    found = []
    for (name, direction), own in taken.items():
        base = taken.get((BASE, direction), [math.nan] * len(own))
        peak, plain = peaks[name, direction], peaks.get((BASE, direction), math.nan)
        by_turn = [a / b for a, b in zip(own, base, strict=True)]
        found.append(
            machine(device, clock)
            | {
                "case": str(case),
                "frames": case.frames,
                "contestant": name,
                "direction": direction,
                "turns": len(own),
                "p20_ms": f"{quantile(own, 0.2):.4f}",
                "p50_ms": f"{quantile(own, 0.5):.4f}",
                "p80_ms": f"{quantile(own, 0.8):.4f}",
                "ratio_p50": f"{quantile(own, 0.5) / quantile(base, 0.5):.3f}",
                "ratio_turns_p50": f"{quantile(by_turn, 0.5):.3f}",
                "host_ms": f"{1e3 * timed[name, direction].host:.4f}",
                "kernel": chosen_kernel(tensors),
                "peak_bytes": peak,
                "peak_ratio": f"{peak / plain:.2f}",
            }
        )
    return found


def chosen_kernel(tensors: list[Tensor]) -> str:
    """What PyTorch's plain attention runs on these tensors."""
    choice = torch._fused_sdp_choice(*(x.detach().requires_grad_() for x in tensors[:3]))
    return SDPBackend(choice).name.lower()


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


def compete(case: Case, options: argparse.Namespace, end: float) -> int:
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
    if passed:
        found = rows(case, passed, tensors, options.turns, options.clock, end)
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
    found.add_argument(
        "--limit", type=float, default=math.inf, help="seconds; then turns are cut short"
    )
    found.add_argument("--out", type=Path, default=RESULTS, help="CSV file to append to")
    return found


def main() -> int:
    """Run the cases; exit 1 if a contestant was refused, 2 if cases are left over, 3 if a
    contestant broke the device."""
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
    end, refused = time.monotonic() + options.limit, 0
    for index, case in enumerate(cases):
        if time.monotonic() > end:
            print("time is up; not begun:", *cases[index:])
            return 2
        try:
            refused += compete(case, options, end)
        except DeviceLost as error:
            print(error)
            return 3
    return 1 if refused else 0


if __name__ == "__main__":
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise
    sys.exit(main())
