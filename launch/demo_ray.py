"""A Ray head of our own on the loopback address: the demo and the tests submit jobs to it.

Owns the life of that one process and its temporary folder. A real cluster's head is started by its
operators; nothing here touches it.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

STORE_BYTES = 200_000_000


@contextmanager
def local_head(*, cpus: int, seconds: float = 120.0) -> Iterator[str]:
    """Start `ray start --head` as a child, yield its job address, and end it.

    Args:
        cpus: how many CPUs the head offers.
        seconds: how long it may take to answer.

    Raises:
        RuntimeError: the head ended or did not answer in time; the message holds its last lines.
    """
    # Ray's sockets live below this folder and must stay shorter than 108 characters.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    with (folder / "head.log").open("w+") as log:
        command, port = _command(cpus, folder)
        address = f"http://127.0.0.1:{port}"
        process = subprocess.Popen(
            command, env=_environment(), stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            _wait(process, address, folder / "head.log", seconds)
            yield address
        finally:
            process.terminate()  # `ray stop` would end every Ray on the machine
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def _command(cpus: int, folder: Path) -> tuple[list[str], int]:
    """The command line, every port free at this moment, and the dashboard's port."""
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "ray-client-server-port",
        "node-manager-port",
        "object-manager-port",
    )
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        "--include-dashboard=true",
        "--disable-usage-stats",
        f"--num-cpus={cpus}",
        "--num-gpus=0",
        f"--object-store-memory={STORE_BYTES}",
        f"--temp-dir={folder}",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    return command, ports["dashboard-port"]


def _free_ports(count: int) -> list[int]:
    """Ports nobody listens on; held together while they are drawn, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _environment() -> dict[str, str]:
    """Jobs look `python` up on the head's PATH; no token file may be left in the home folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled"}


def _wait(process: subprocess.Popen, address: str, log: Path, seconds: float) -> None:
    """Until the job server answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    lines = "\n".join(log.read_text().splitlines()[-12:])
    raise RuntimeError(f"Ray did not start on {address} within {seconds:.0f} s:\n{lines}")
