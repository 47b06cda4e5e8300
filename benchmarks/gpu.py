"""All that a machine with a GPU should do in one command: kernel tests, then benchmark cases.

    python -m benchmarks.gpu FOLDER [CASE …] [--no-tests] [--limit 580]

A case is one of benchmarks.attention or of benchmarks.mfu; without any, all of attention, those of
fine-tuning and of pretraining a ViT-B first. Every test file and every case has a process of its
own: one that fails, hangs or breaks the device costs no other its result. Cases not begun in time
are named: give them to a second call, with --no-tests.

Needs torch, triton and a C compiler. Without pytest the benchmark's own checks are all there is;
pytest is pure Python, so a folder made by `pip install --target FOLDER pytest`, on PYTHONPATH, will
do. In FOLDER lie test_*.log, and attention.csv and mfu.csv: append their rows to those of
benchmarks/results and run benchmarks.plot_attention.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from benchmarks import attention_check, mfu

ROOT = Path(__file__).resolve().parents[1]
SHARE = 0.6  # of the time, at most, for tests
LEAST = 60.0  # seconds: no case is begun with less, most take half of it
NO_PYTEST = (
    "kernel tests are skipped: pytest is not installed; pip install --target FOLDER pytest, and "
    "call this again with PYTHONPATH=FOLDER"
)
FIRST = ("12x64-n1568-b32-bf16", "12x64-n160-b64-bf16")


def tests(folder: Path, seconds: float) -> bool:
    """Run the files of kernel tests beside each other; whether all passed in so many seconds.

    Without pytest it says so, and that is no failure.
    """
    if importlib.util.find_spec("pytest") is None:
        print(NO_PYTEST, flush=True)
        return True
    end, running = time.monotonic() + seconds, {}
    for file in sorted((ROOT / "tests/kernels").glob("test_*.py")):
        # Verbose, so that the log of a file that was stopped names the test it was at.
        command = [sys.executable, "-m", "pytest", "-v", "-m", "not slow", str(file)]
        with (folder / f"{file.stem}.log").open("w") as log:
            running[file.stem] = begun([*command, "-p", "no:cacheprovider"], log)
    try:
        for name, process in running.items():
            ended(process, end - time.monotonic())
            lines = (folder / f"{name}.log").read_text().splitlines() or ["nothing was written"]
            print(f"{name}, exit status {process.returncode}: {lines[-1]}", flush=True)
    finally:  # after Ctrl-C, which processes with a session of their own do not hear
        for process in running.values():
            ended(process, 0)
    return not any(process.returncode for process in running.values())


def begun(command: list[str], log: IO[str] | None = None) -> subprocess.Popen:
    """A process with a session of its own, so that `ended` reaches all that it starts."""
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)


def ended(process: subprocess.Popen, seconds: float) -> bool:
    """Whether it ends in so many seconds; what it started, compilers, ends with it."""
    try:
        process.wait(max(seconds, 0.1))
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing is left of it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measured(case: str, folder: Path, seconds: float) -> bool:
    """Run a case; whether it did well in so many seconds."""
    name = "mfu" if case in mfu.CASES else "attention"
    command = [sys.executable, "-m", f"benchmarks.{name}", case, "--device", "cuda"]
    command += ["--out", str((folder / f"{name}.csv").resolve())]
    process = begun(command)
    if not ended(process, seconds):
        print(f"{case}: stopped after {seconds:.0f} s", flush=True)
    elif process.returncode:
        print(f"{case}: exit status {process.returncode}", flush=True)
    return process.returncode == 0


def known(case: str) -> str:
    """A case's name, checked before anything runs."""
    try:
        return case if case in mfu.CASES else str(attention_check.parse(case))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, or one of {', '.join(mfu.CASES)}") from None


def has_compiler() -> bool:
    """Whether there is a C compiler where Triton looks for one."""
    return any(map(shutil.which, [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]))


def main() -> int:
    """Run everything; 0 only if all of it did well, 2 if cases are left over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", nargs="*", metavar="CASE", type=known)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--limit", type=float, default=580.0, help="seconds for all of it")
    options = parser.parse_args()
    if not has_compiler():
        parser.error("Triton needs a C compiler: install gcc or clang, or name one by CC=/its/path")
    end, well = time.monotonic() + options.limit, True
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.no_tests:
        well = tests(options.folder, options.limit * SHARE)
    everything = map(str, attention_check.CASES["cuda"])
    cases = options.cases or sorted(everything, key=lambda case: case not in FIRST)
    for index, case in enumerate(cases):
        left = end - time.monotonic()
        if left < LEAST:
            print("time is up; not begun:", *cases[index:])
            return 2
        well = measured(case, options.folder, left - 5) and well
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
