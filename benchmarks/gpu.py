"""All that a machine with a GPU should do in one command: kernel tests, then benchmark cases.

    python -m benchmarks.gpu FOLDER [CASE …] [--no-tests] [--limit 580]

A case is one of benchmarks.attention or of benchmarks.mfu; without any, all of attention. Every
test file and every case has a process of its own: one that fails, hangs or breaks the device costs
no other its result. Cases not begun in time are named: give them to a second call, with --no-tests.

Needs torch and triton. Without pytest the benchmark's own checks are all there is; pytest is pure
Python, so a folder made by `pip install --target FOLDER pytest`, on PYTHONPATH, will do. In FOLDER
lie test_*.log, and attention.csv and mfu.csv: append their rows to those of benchmarks/results and
run benchmarks.plot_attention.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import attention_check, mfu

ROOT = Path(__file__).resolve().parents[1]
SHARE = 0.6  # of the time, at most, for tests
LEAST = 60.0  # seconds: no case is begun with less, most take half of it


def tests(folder: Path, seconds: float) -> bool:
    """Run the files of kernel tests beside each other; whether all passed in so many seconds."""
    end, running = time.monotonic() + seconds, {}
    for file in sorted((ROOT / "tests/kernels").glob("test_*.py")):
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", str(file)]
        with (folder / f"{file.stem}.log").open("w") as log:
            running[file.stem] = subprocess.Popen(
                [*command, "-p", "no:cacheprovider"], stdout=log, stderr=log, cwd=ROOT
            )
    for name, process in running.items():
        try:
            process.wait(max(end - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines = (folder / f"{name}.log").read_text().splitlines() or ["nothing was written"]
        print(f"{name}, exit status {process.returncode}: {lines[-1]}", flush=True)
    return not any(process.returncode for process in running.values())


def measured(case: str, folder: Path, seconds: float) -> bool:
    """Run a case; whether it did well in so many seconds."""
    name = "mfu" if case in mfu.CASES else "attention"
    command = [sys.executable, "-m", f"benchmarks.{name}", case, "--device", "cuda"]
    command += ["--out", str((folder / f"{name}.csv").resolve())]
    try:
        done = subprocess.run(command, timeout=seconds, cwd=ROOT)
    except subprocess.TimeoutExpired:
        print(f"{case}: stopped after {seconds:.0f} s", flush=True)
        return False
    if done.returncode:
        print(f"{case}: exit status {done.returncode}", flush=True)
    return done.returncode == 0


def known(case: str) -> str:
    """A case's name, checked before anything runs."""
    try:
        return case if case in mfu.CASES else str(attention_check.parse(case))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, or one of {', '.join(mfu.CASES)}") from None


def main() -> int:
    """Run everything; 0 only if all of it did well, 2 if cases are left over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", metavar="CASE", type=known)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--limit", type=float, default=580.0, help="seconds for all of it")
    options = parser.parse_args()
    end, well = time.monotonic() + options.limit, True
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.no_tests and importlib.util.find_spec("pytest"):
        well = tests(options.folder, options.limit * SHARE)
    cases = options.cases or [str(case) for case in attention_check.CASES["cuda"]]
    for index, case in enumerate(cases):
        left = end - time.monotonic()
        if left < LEAST:
            print("time is up; not begun:", *cases[index:])
            return 2
        well = measured(case, options.folder, left - 5) and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
