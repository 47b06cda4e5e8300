"""An HTTP server of a folder that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Fault = Callable[["Handler", bytes], None]


class Handler(SimpleHTTPRequestHandler):
    """Serves `server.folder`; a request that has a fault waiting for its file name gets that."""

    server: FlakyServer

    def do_GET(self) -> None:
        fault = self.server.asked_for(self.path.rpartition("/")[2])
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        (fault or whole)(self, path.read_bytes())

    def log_message(self, format: str, *args: object) -> None:
        pass


class FlakyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, handler: type[Handler] = Handler, port: int = 0):
        super().__init__(("127.0.0.1", port), handler)
        self.folder, self.guard = folder, threading.Lock()
        self.asked: Counter[str] = Counter()
        """Requests by file name."""
        self.faults: dict[str, list[Fault]] = {}
        """By file name, one for each of the next requests."""
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def asked_for(self, name: str) -> Fault | None:
        """Counts a request; the fault that waits for it."""
        with self.guard:
            self.asked[name] += 1
            waiting = self.faults.get(name) or []
            return waiting.pop(0) if waiting else None

    def handle_error(self, request, client_address) -> None:
        pass


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FlakyServer]:
    server = FlakyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def whole(handler: Handler, data: bytes) -> None:
    _send(handler, len(data), data)


def cut(handler: Handler, data: bytes) -> None:
    """Promises everything and hangs up in the middle."""
    _send(handler, len(data), data[: len(data) // 2])
    handler.close_connection = True


def short(handler: Handler, data: bytes) -> None:
    """A proxy's half a file, with a length that fits it."""
    _send(handler, len(data) // 2, data[: len(data) // 2])


def wrong(handler: Handler, data: bytes) -> None:
    _send(handler, len(data), bytes(len(data)))


def hangs_up(handler: Handler, data: bytes) -> None:
    handler.close_connection = True
    handler.connection.close()


def slow(handler: Handler, data: bytes) -> None:
    _send(handler, len(data), b"")
    time.sleep(0.3)
    handler.wfile.write(data)


def stalled(handler: Handler, data: bytes) -> None:
    """Nothing comes any more after the first bytes."""
    _send(handler, len(data), data[:100])
    handler.wfile.flush()
    time.sleep(5)


def answers(status: int) -> Fault:
    def fault(handler: Handler, data: bytes) -> None:
        handler.send_error(status)

    return fault


def _send(handler: Handler, length: int, data: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()
    handler.wfile.write(data)
