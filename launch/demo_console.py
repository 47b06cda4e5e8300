"""A step of the demo as a person sees it: a command, a bar with time left, a log when it fails.

Owns child processes and what is shown of them. It knows no step in particular.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
CONSOLE = Console()


class StepFailed(Exception):
    """A step ended with an error; its message was shown."""


def direct(title: str, command: list[str]) -> None:
    """A step that shows its own progress."""
    CONSOLE.print(f"[bold]{title}[/] [dim]{escape(shlex.join(command))}[/]")
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, env=environment())
    if done.returncode:
        raise StepFailed(f"{title} ended with {done.returncode}")


def step(title: str, command: list[str], log: Path, *, doing: str = "starting workers") -> None:
    """A step whose output goes to a log; its `step a/b` lines drive a bar."""
    CONSOLE.print(f"[bold]{title}[/] [dim]{escape(shlex.join(short(command)))}[/]")
    with log.open("w") as file, child(command) as process, bar() as progress:
        task = progress.add_task(doing, total=None)
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            follow(line, progress, task)
        code = process.wait()
        if code == 0:
            finish(progress, task)
    if code:
        CONSOLE.print(escape("\n".join(told(log)[-12:])))
        raise StepFailed(f"{title} ended with {code}; the whole log: {log}")


def told(log: Path) -> list[str]:
    """The lines of a log that the command itself wrote, without those of Ray's job submission."""
    ray = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+\s|^Running entrypoint")
    return [line for line in log.read_text().splitlines() if line.strip() and not ray.match(line)]


def follow(line: str, progress: Progress, task) -> None:
    """Move the bar by a line such as `step 40/200 · loss 0.9132 · …`."""
    at = line.find("step ")
    words = line[at:].split(" · ")
    count = words[0].removeprefix("step ").split("/")
    if at < 0 or len(count) != 2 or not all(c.strip().isdigit() for c in count):
        return
    shown = " · ".join(w.strip() for w in words[1:] if w.startswith(("loss", "clips")) or "/s" in w)
    done, total = (int(c) for c in count)
    progress.update(task, completed=done, total=total, description=escape(shown))


def finish(progress: Progress, task) -> None:
    """Fill the bar of a step that told no count."""
    if progress.tasks[task].total is None:
        progress.update(task, total=1, completed=1, description="done")


def bar() -> Progress:
    """Bar, share, text, time spent and left."""
    return Progress(
        BarColumn(30),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=CONSOLE,
    )


@contextmanager
def child(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A child process that never outlives this one."""
    program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    process = subprocess.Popen(
        program,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()


def environment() -> dict[str, str]:
    """This process's, with the interpreter's folder first: Ray looks `python` up on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}


def short(command: list[str]) -> list[str]:
    """The command as a person in this folder would type it."""
    return ["." if word == str(ROOT) else word for word in command]
