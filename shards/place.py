"""Where shards lie: in a folder of this machine, or at a URL that fsspec opens.

Owns reading of whole files from there: a `Remote` offers the few members of a Path that the disk
format needs. Whole shards are fetched into a cache (`shards.cache`), never ranges: a stream reads
one to its end anyway. Refuses to know manifests, indexes and samples.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shards.cache import Cache
from shards.patience import WrongBytes, patiently

RETRY_SECONDS = 300.0
"""How long a fault that may pass is met by trying again."""
DISK_PATIENCE = 30.0
"""The same for a file of a mounted folder: network disks have such faults, too."""
STALL, SLOWEST = 60.0, 16_384
"""Seconds without a byte, and bytes a second on average after these, that count as a fault."""

_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs"}
_PACKAGES |= {"gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "hf": "huggingface_hub"}


class UnknownPlace(ValueError):
    """A URL that nothing here opens; the message says what to install."""


@dataclass(frozen=True)
class Remote:
    """A folder or a file at a URL; prints as the URL."""

    url: str
    cache: Cache = field(default_factory=Cache)
    limit: float = RETRY_SECONDS

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Remote:
        return replace(self, url=f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    def read_bytes(self) -> bytes:
        """The whole file. Raises OSError like `patiently`, with its `strerror` for people."""
        return patiently(lambda: self._system().cat_file(self.url), self.url, limit=self.limit)

    def open_cached(self, digest: str, size: int) -> int:
        """A descriptor of the whole file in the cache, fetched if need be; as `Cache.open`, so
        close it once it is read.

        `size` is the file's, 0 where it is not known. Raises OSError like `patiently`.
        """
        return patiently(
            lambda: self.cache.open(digest, size, lambda part: self._fetch(part, size)),
            self.url,
            limit=self.limit,
        )

    def ahead(self) -> Remote:
        """The same place, read with one try and into room that nobody needs now."""
        return replace(self, limit=0.0, cache=replace(self.cache, ahead=True))

    def _fetch(self, into: Path, size: int) -> None:
        self._system().get_file(self.url, os.fspath(into), callback=_watch())
        if size and (came := into.stat().st_size) != size:
            what = "was cut on the way" if came < size else "has grown"
            raise WrongBytes(errno.EIO, f"{what}: {came} of {size} bytes came")

    def _system(self) -> Any:
        """The file system of the URL; fsspec keeps one a process."""
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            return fsspec.filesystem(protocol, **_options(protocol))
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(protocol)
            fix = f"pip install {package}" if package else f"is {protocol}:// right? ({error})"
            raise UnknownPlace(f"{self.url} cannot be opened: {fix}") from None


def _options(protocol: str) -> dict[str, Any]:
    """What a file system is told. Where they are, and with which credentials, they find themselves.

    None cuts a shard into pieces that are fetched together: streams and `shards.ahead` fetch
    several shards at once anyway, and s3fs would hold 500 MB of each in memory.
    """
    package = _PACKAGES.get(protocol)
    if package == "s3fs":
        return {"max_concurrency": 1}
    if package not in ("aiohttp", "gcsfs"):
        return {}
    import aiohttp

    times = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=STALL)
    if package == "aiohttp":
        return {"client_kwargs": {"timeout": times}}
    os.environ.setdefault("DEFAULT_GCSFS_CONCURRENCY", "1")  # read when gcsfs is imported
    log = logging.getLogger("gcsfs")
    if log.level == logging.NOTSET:  # it prints a trace for every error that it raises
        log.setLevel(logging.CRITICAL)
    return {"requests_timeout": times}  # gcsfs by itself waits for ever


def locate(folder: str | Path | Remote, like: Remote | None = None) -> Path | Remote:
    """The folder that a path or a URL names; a URL with the cache and patience of `like`."""
    if isinstance(folder, Remote):
        return folder
    text = str(folder)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    if "://" not in text:
        return Path(folder)
    return replace(like or Remote(text), url=text.rstrip("/"))


def open_whole(place: Path | Remote, digest: str, size: int) -> int:
    """A descriptor of the file with this sha256 and size (0: unknown): of the file itself in a
    mounted folder, else of its copy in the cache, as `Remote.open_cached`."""
    if isinstance(place, Remote):
        return place.open_cached(digest, size)
    flags = os.O_RDONLY | os.O_CLOEXEC
    return patiently(lambda: os.open(place, flags), str(place), limit=DISK_PATIENCE)


def read_whole(place: Path | Remote) -> bytes:
    """A small file, past the cache. Raises OSError like `patiently`."""
    if isinstance(place, Remote):
        return place.read_bytes()
    return patiently(place.read_bytes, str(place), limit=DISK_PATIENCE)


def _watch() -> Any:
    """What ends a download that hardly moves."""
    from fsspec.callbacks import Callback

    class Watch(Callback):
        start = time.monotonic()

        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            spent = time.monotonic() - self.start
            if spent > STALL and self.value < SLOWEST * spent:
                raise TimeoutError(errno.ETIMEDOUT, f"{self.value} bytes in {spent:.0f} s")

    return Watch()
