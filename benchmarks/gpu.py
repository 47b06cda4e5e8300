"""All that a lent GPU machine should do in one command: kernel tests, then the attention benchmark.

    python -m benchmarks.gpu FOLDER [CASE …] [--no-tests] [--limit 580]

Needs torch and triton; without pytest the benchmark's own checks are all there is. Rows go to
FOLDER/attention.csv: append them to benchmarks/results/attention.csv and run
benchmarks.plot_attention. When the limit in seconds is near, the cases not begun are named: give
them to a second call, with --no-tests.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def module(name: str, *arguments: str, seconds: float) -> int:
    """Run a module; its exit status, 124 if it was stopped after so many seconds."""
    command = [sys.executable, "-m", name, *arguments]
    print("+", *command, flush=True)
    try:
        return subprocess.run(command, timeout=max(seconds, 1)).returncode
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s", flush=True)
        return 124


def main() -> int:
    """Run everything; 0 only if all of it did well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="of benchmarks.attention")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--limit", type=float, default=580.0, help="seconds for all of it")
    options = parser.parse_args()
    start = time.monotonic()

    def left() -> float:
        return options.limit - (time.monotonic() - start)

    options.folder.mkdir(parents=True, exist_ok=True)
    found = []
    if not options.no_tests and installed("pytest"):
        tests = ("-q", "--continue-on-collection-errors", "-p", "no:cacheprovider", "tests/kernels")
        found.append(module("pytest", *tests, seconds=left() * 0.6))
    rows = options.folder / "attention.csv"
    begin = str(max(left() - 60, 1))  # a case takes up to a minute, compilation included
    arguments = (*options.cases, "--device", "cuda", "--out", str(rows), "--limit", begin)
    found.append(module("benchmarks.attention", *arguments, seconds=left() - 10))
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
