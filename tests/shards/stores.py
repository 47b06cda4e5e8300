"""Object stores for tests: their protocols' servers, seen through a relay that misbehaves as told.

Reading goes through the relay, as a user's environment variables name it; uploads go past it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

from shards.place import _options
from tests.shards.flaky import FlakyServer, Handler

BUCKET = "faces"


class Relay(Handler):
    """Hands requests on to `server.behind`; a fault that waits for an object's name comes first."""

    server: RelayServer

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).rpartition("/")[2]
        fault = self.server.asked_for(name)
        status, headers, body = self._asked_behind()
        if fault and status < 300:
            fault(self, body)
            return
        self.send_response(status)
        for header, value in headers:
            if header.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def _asked_behind(self) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.server.behind)) as behind:
            behind.request("GET", self.path, headers=dict(self.headers))
            answer = behind.getresponse()
            return answer.status, answer.getheaders(), answer.read()


class RelayServer(FlakyServer):
    def __init__(self, behind: str, port: int = 0):
        super().__init__(Path(), Relay, port=port)
        self.behind = behind


@dataclass
class Store:
    """A store of one kind with one bucket."""

    kind: str  # the protocol of its URLs
    behind: str
    relay: RelayServer = field(init=False)

    def __post_init__(self) -> None:
        self._start(0)

    @property
    def url(self) -> str:
        return f"{self.kind}://{BUCKET}"

    def environment(self, address: str) -> dict[str, str]:
        """What a user sets who finds the store at this address."""
        if self.kind == "gs":
            return {"STORAGE_EMULATOR_HOST": address, "NO_GCE_CHECK": "true"}
        return {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",  # leaves trying again to us
        }

    def fill(self, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes the bucket with copies of folders, past the relay."""
        for name, value in self.environment(f"http://{self.behind}").items():
            monkeypatch.setenv(name, value)
        files = fsspec.filesystem(self.kind, skip_instance_cache=True, **_options(self.kind))
        files.mkdir(BUCKET)
        for name, folder in folders.items():
            for file in folder.iterdir():
                files.pipe_file(f"{BUCKET}/{name}/{file.name}", file.read_bytes())

    def dies(self) -> None:
        """Nobody answers at its address any more."""
        self.relay.shutdown()
        self.relay.server_close()
        self._thread.join()

    def returns(self) -> None:
        asked = self.relay.asked
        self._start(self.relay.server_address[1])
        self.relay.asked = asked

    def _start(self, port: int) -> None:
        self.relay = RelayServer(self.behind, port)
        serve = {"poll_interval": 0.02}
        self._thread = threading.Thread(target=self.relay.serve_forever, kwargs=serve)
        self._thread.start()


@contextlib.contextmanager
def s3() -> Iterator[Store]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = Store("s3", f"{host}:{port}")
    try:
        yield store
    finally:
        store.dies()
        server.stop()


@contextlib.contextmanager
def gs() -> Iterator[Store]:
    from gcp_storage_emulator.server import create_server

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True)
    server.start()
    store = Store("gs", f"127.0.0.1:{port}")
    try:
        yield store
    finally:
        store.dies()
        server.stop()


def checks_credentials(store: Store, *, whether: bool) -> None:
    """Whether moto refuses keys that nobody has created."""
    with contextlib.closing(http.client.HTTPConnection(store.behind)) as behind:
        behind.request("POST", "/moto-api/reset-auth", body="0" if whether else "inf")
        assert behind.getresponse().status == 200


def back_after(store: Store, seconds: float) -> threading.Thread:
    """Brings a dead store back."""

    def wait() -> None:
        time.sleep(seconds)
        store.returns()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
