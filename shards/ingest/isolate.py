"""The caller's side of the disposable processes: a job in, its result or why there is none out.

Owns the form of a job, starting and ending the zygote, and the words for each way a process can
die. Loads no decoder.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from shards.ingest.settings import IngestSettings, Rejected
from shards.ingest.storage import PATIENCE, StorageFault, alone, begins
from shards.patience import patiently

ROOT = Path(__file__).resolve().parents[2]
START = "import sys; sys.path.insert(0, {root!r}); from shards.ingest.zygote import main; main()"
RESULT = "result.json"
FRAMES = "frames.npy"
STDERR = "stderr.txt"
DISK_FULL_EXIT = 28
STORAGE_EXIT, OTHER_EXIT = 74, 73
FAULTS = {STORAGE_EXIT: StorageFault, OTHER_EXIT: OSError}
"""Of what a video lies on, and of what is written to: the latter rejects none."""


def job(
    source: Path,
    out: Path,
    settings: IngestSettings,
    *,
    kind: str,
    root: Path | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A job: `kind` "clips" (mp4 files into `out`) or "frames" (one array into `out`).

    `root` is the folder of the run's videos, of which one is expected to be read if this one cannot
    be (`storage.alone`); None: the one that it lies in.
    `whole` keeps the video in one piece; `marks` are frame numbers of the source by name, to be
    translated into those of the clip, or `moments` the same in seconds; `frames` are the fields of
    a FrameFolder where the source is a folder of pictures.
    """
    named = {"source": source, "out": out, "root": root or source.parent}
    paths = {name: str(path.absolute()) for name, path in named.items()}
    plain = {"whole": True, "marks": {}, "moments": {}, "frames": None}
    return {"kind": kind, **paths, "settings": asdict(settings)} | plain | more


class Sandbox:
    """A zygote, started on first use. One job at a time; for more at once take more of these."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        """`patience`: seconds in which a fault of the storage, or of this machine, may pass."""
        self._patience = patience
        self._closed = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self.peak_bytes = 0
        """Memory of the last job's process."""

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job's result (see `work.perform`), tried again where something failed that is no
        fault of the video and may pass.

        Raises Rejected; OSError if the disk is full, or if the videos' storage, the place of `out`
        or the processes here fail for longer than the patience.
        """
        source = Path(job["source"])
        try:
            again = {"limit": self._patience, "sleep": self._closed.wait}
            return patiently(lambda: self._result(job), str(source), **again)
        except OSError as error:
            if isinstance(error.__cause__, StorageFault) and begins(source):
                raise Rejected(
                    f"a part of it cannot be read ({error.strerror})", "copy it from its source"
                ) from None
            raise

    def _result(self, job: dict[str, Any]) -> dict[str, Any]:
        answer = self._ask(job)
        if answer["code"] == -signal.SIGKILL and not answer["timed_out"]:
            answer = self._ask(job)  # the system lacked memory, which others may have taken
        self.peak_bytes = answer["peak_bytes"]
        if answer["timed_out"]:
            raise Rejected(
                f"took longer than {job['settings']['timeout']:g} s",
                "cut it into shorter videos, or raise --timeout",
            )
        if answer["code"] == DISK_FULL_EXIT:
            said = _last_words(Path(job["out"])) or f"no room at {job['out']}; make room"
            raise OSError(errno.ENOSPC, said)
        if fault := FAULTS.get(answer["code"]):
            raise fault(errno.EIO, _last_words(Path(job["out"])) or "input/output error")
        if answer["code"] != 0:
            raise _died(answer["code"], Path(job["out"]))
        return result_of(job)

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise self._ended(
                "the process that decodes videos ended: it lacked memory or processes (see the "
                "messages above); use fewer --jobs"
            )
        return json.loads(line)

    def _started(self) -> subprocess.Popen[bytes]:
        self._check_open()
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            # One thread in every library: what is spent on a video stays countable and repeatable.
            threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(root=str(ROOT))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | threads,
                start_new_session=True,  # Ctrl-C goes to us alone, and we end it
            )
            assert self._process.stdout
            if not self._process.stdout.readline():
                raise self._ended("the process that decodes videos does not start; see above")
        return self._process

    def _ended(self, why: str) -> OSError:
        """For a process that is gone; another may be started in a while."""
        self._end()
        self._check_open()
        return OSError(errno.EAGAIN, why)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise RuntimeError("this sandbox is closed")

    def close(self) -> None:
        """Ends the zygote and whatever it runs, for good; from any thread."""
        self._closed.set()
        self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        with suppress(ProcessLookupError):  # the session's group: zygote and its child
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def result_of(job: dict[str, Any]) -> dict[str, Any]:
    """What `work.perform` made of a job. Raises Rejected, or StorageFault where neither the video
    nor another one of the run can be read."""
    result = json.loads((Path(job["out"]) / RESULT).read_text())
    if "rejected" not in result:
        return result
    reason, action = result["rejected"]
    source = Path(job["source"])
    if result["unreadable"] and source.is_file() and begins(source):
        raise StorageFault(errno.EIO, f"{reason}, though it begins to be readable")  # it is back
    if result["unreadable"] and not alone(source, Path(job["root"])):
        raise StorageFault(errno.EIO, f"{reason}, nor can anything beside it")
    raise Rejected(reason, action)


def _died(code: int, out: Path) -> Rejected:
    if code < 0:
        name = signal.Signals(-code).name
        hint = {"SIGKILL": " (out of memory?)", "SIGXCPU": " (took too long)"}.get(name, "")
        less = "use fewer --jobs or a lower --memory-limit-gib"
        action = less if name == "SIGKILL" else "convert it to H.264 with ffmpeg"
        return Rejected(f"its process died of {name}{hint}", action)
    said = _last_words(out) or f"exit code {code}"
    return Rejected(f"cannot be processed ({said:.200})", "convert it to H.264 with ffmpeg")


def _last_words(out: Path) -> str | None:
    """The last line that the job's process wrote to its stderr."""
    if not (out / STDERR).exists():
        return None
    lines = (out / STDERR).read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), None)
