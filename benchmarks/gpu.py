"""All that a machine with a GPU should do in one command: kernel tests, then benchmark cases.

    python -m benchmarks.gpu FOLDER [CASE …] [--no-tests] [--limit 540]

A case is one of benchmarks.attention or of benchmarks.mfu; without any, all of both, first those of
fine-tuning and of pretraining a ViT-B. Every part of the tests and every case has a process of its
own: one that fails, hangs or breaks the device costs no other its result. Cases not begun in time
are named: give them to a second call, with --no-tests.

Needs torch, triton and a C compiler. Without pytest the benchmark's own checks are all there is;
pytest is pure Python, so a folder made by `pip install --target FOLDER pytest`, on PYTHONPATH, will
do. In FOLDER lie tests.log, attention.csv and mfu.csv: append their rows to those of
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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from benchmarks import attention_check, mfu

ROOT = Path(__file__).resolve().parents[1]
SHARE = 0.6  # of the time, at most, for tests
LEAST = 60.0  # seconds: no case is begun with less, or with less than the longest so far took
MOST = 240.0  # seconds a case gets: one that hangs leaves some to the others
SLACK = 15.0  # seconds a case has to write what it has once it is told that time is up
PARTS = {"test_exact": 6, "test_flashlite": 6}  # most of their time is Triton's, compiling
OWN = ("ours flashlite", "ours flashlite, kernel alone", "ours exact")
NO_PYTEST = (
    "kernel tests are skipped: pytest is not installed; pip install --target FOLDER pytest, and "
    "call this again with PYTHONPATH=FOLDER"
)
FIRST = (
    "12x64-n1568-b32-bf16",
    "12x64-n160-b64-bf16",
    "encode-b",
    "encode-b-flashlite",
    "encode-b-exact",
    "encode-b-compiled",
    "pretrain-b",
    "pretrain-b-flashlite",
    "pretrain-b-exact",
    "pretrain-b-compiled",
)


def tests(folder: Path, seconds: float) -> bool:
    """Run the kernel tests, in many processes at once; whether all passed in so many seconds.

    Without pytest it says so, and that is no failure.
    """
    if importlib.util.find_spec("pytest") is None:
        print(NO_PYTEST, flush=True)
        return True
    end, running = time.monotonic() + seconds, {}
    with tempfile.TemporaryDirectory() as scratch, (folder / "tests.log").open("w") as all_logs:
        for file, part in parts():
            # Verbose, so that the log of one that was stopped names the test it was at.
            command = [sys.executable, "-m", "pytest", "-v", "-m", "not slow", str(file)]
            name = f"{file.stem} {part}"
            with Path(scratch, name.replace("/", "-")).open("w") as log:
                command += ["-p", "no:cacheprovider"]
                running[name] = begun(command, log, MIRA_TESTS_PART=part), log.name
        try:
            for name, (process, log) in running.items():
                ended(process, end - time.monotonic())
                written = Path(log).read_text()
                all_logs.write(f"===== {name}\n{written}")
                last = (written.splitlines() or ["nothing was written"])[-1]
                print(f"{name}, exit status {process.returncode}: {last}", flush=True)
        finally:  # after Ctrl-C, which processes of a group of their own do not hear
            for process, _ in running.values():
                ended(process, 0)
    return not any(process.returncode for process, _ in running.values())


def parts() -> Iterator[tuple[Path, str]]:
    """Every file of kernel tests, with "I/N" for each of the N parts that it is run in."""
    for file in sorted((ROOT / "tests/kernels").glob("test_*.py")):
        count = PARTS.get(file.stem, 1)
        yield from ((file, f"{i}/{count}") for i in range(count))


def begun(command: list[str], log: IO[str] | None = None, **more: str) -> subprocess.Popen:
    """A process with a group of its own, so that `ended` reaches all that it starts; but of this
    session, which is what a machine that clears up behind a command ends."""
    environment = os.environ | more
    return subprocess.Popen(
        command, stdout=log, stderr=log, cwd=ROOT, env=environment, process_group=0
    )


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
    """Run a case; whether it did well in so many seconds.

    One of attention that ends without its rows is run once more without what it is compared with,
    if there is time.
    """
    end = time.monotonic() + seconds
    name = "mfu" if mfu.is_case(case) else "attention"
    command = [sys.executable, "-m", f"benchmarks.{name}", case, "--device", "cuda"]
    command += ["--out", str((folder / f"{name}.csv").resolve())]
    if name == "attention":
        command += ["--limit", str(seconds - SLACK)]
    code = run(case, command, seconds)
    if name == "attention" and code not in (0, 1) and (left := end - time.monotonic()) > LEAST:
        again = [*command[:-1], str(left - SLACK), "--only", *OWN]
        run(f"{case}, ours alone", again, left)
    return code == 0


def run(what: str, command: list[str], seconds: float) -> int:
    """The exit status of a command, told where it is none of success."""
    process = begun(command)
    if not ended(process, seconds):
        print(f"{what}: stopped after {seconds:.0f} s", flush=True)
    elif process.returncode:
        print(f"{what}: exit status {process.returncode}", flush=True)
    return process.returncode


def known(case: str) -> str:
    """A case's name, checked before anything runs."""
    try:
        return case if mfu.is_case(case) else str(attention_check.parse(case))
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
    parser.add_argument("--limit", type=float, default=540.0, help="seconds for all of it")
    options = parser.parse_args()
    if not has_compiler():
        parser.error("Triton needs a C compiler: install gcc or clang, or name one by CC=/its/path")
    end, well = time.monotonic() + options.limit, True
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.no_tests:
        well = tests(options.folder, options.limit * SHARE)
    cases, longest = options.cases or everything(), LEAST
    for index, case in enumerate(cases):
        start = time.monotonic()
        if end - start < longest:
            print("time is up; not begun:", *cases[index:])
            return 2
        well = measured(case, options.folder, min(MOST, end - start - 5)) and well
        longest = max(longest, time.monotonic() - start)
    return 0 if well else 1


def everything() -> list[str]:
    """All cases, the most wanted first."""
    others = [*map(str, attention_check.CASES["cuda"]), *mfu.DEFAULT]
    return [*FIRST, *(case for case in others if case not in FIRST)]


if __name__ == "__main__":
    sys.exit(main())
