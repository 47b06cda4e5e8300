"""Faults that pass: which ones they are, and trying again until they do.

Owns the waits between tries and the line between "try again" and "this will never work". Refuses to
know what is fetched and where it goes. Errors leave as an OSError whose `strerror` says what is
wrong, whichever library they came from.
"""

from __future__ import annotations

import errno
import itertools
import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds; a wait is twice the one before it, and between half and all of that by chance."""
DOUBTFUL_TIMES = 3
"""So often is tried what seldom passes: other bytes than the promised ones, which may be a fault of
the way, and credentials that are not found, which many processes at once may ask for in vain."""

_PASSING = {408, 425, 429}  # of the 4xx: time-out, too early, too many requests
_NEVER = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Faults of this machine or its settings."""
_STORES = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "adlfs", "azure", "fsspec")
_OF_THE_WAY = {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseParserError"}
"""Bases of botocore's errors that tell of the network; its others tell of settings."""

log = logging.getLogger("shards")
log.setLevel(logging.WARNING)  # of its own: Ray sets the root's to ERROR where workers run


class WrongBytes(OSError):
    """What came is not what was promised: too short, or of another hash."""


class Away(OSError):
    """What may pass did not in the time that was given: another day it may be there."""


def patiently(
    fetch: Callable[[], Result],
    what: str,
    *,
    limit: float,
    sleep: Callable[[float], object] | None = None,
) -> Result:
    """`fetch()`, tried again while its errors may pass and `limit` seconds from the first one are
    not over.

    Raises FileNotFoundError or PermissionError at once where the answer is final, Away where the
    time is over, OSError where wrong bytes came each time; an error of this machine and a bug pass
    unchanged.
    """
    start, doubtful = None, 0
    for attempt in itertools.count(1):
        try:
            return fetch()
        except Exception as error:
            if not _may_pass(error):
                if (final := _final(error, what)) is error:
                    raise
                raise final from error
            doubtful += _doubtful(error)
            start = start or time.monotonic()
            spent = time.monotonic() - start
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)
            if doubtful == DOUBTFUL_TIMES or spent + wait > limit:
                tries = f"given up after {attempt} tries in {spent:.0f} s: {_told(error)}"
                kind = OSError if isinstance(error, WrongBytes) else Away
                raise kind(errno.EIO, tries, what) from error
            log.warning("%s: %s; trying again in %.1f s", what, _told(error), wait)
            (sleep or time.sleep)(wait)
    raise AssertionError("the loop above ends by itself")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, TimeoutError):  # S3 answers 400 to a request that came too slowly
        return True
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING
    if isinstance(error, _NEVER) or getattr(error, "errno", None) in _OURS:
        return False
    return isinstance(error, OSError | EOFError) or type(error).__module__.startswith(_STORES)


def _doubtful(error: Exception) -> bool:
    kind = type(error)
    if kind.__module__.startswith(("botocore", "aiobotocore")) and _status(error) is None:
        return _OF_THE_WAY.isdisjoint(base.__name__ for base in kind.__mro__)
    return isinstance(error, WrongBytes)


def _final(error: Exception, what: str) -> Exception:
    """The error to raise for an answer that will not change."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        said = "is not there (404)" if "://" in what else "is not there"
        return FileNotFoundError(errno.ENOENT, said, what)
    if status in (401, 403) or (isinstance(error, PermissionError) and "://" in what):
        said = f"{status or 403} {_words(error)}".strip()
        said = f"access was denied ({said}): check the address and the credentials"
        return PermissionError(errno.EACCES, said, what)
    if status is not None:
        return OSError(errno.EIO, _told(error), what)
    return error


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, as far as its library tells."""
    for holder in (error, error.__cause__):  # s3fs makes an OSError of what botocore raised
        answer = getattr(holder, "response", None)
        if isinstance(answer, dict):
            return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "code", "status_code"):  # aiohttp, gcsfs, Azure
        value = getattr(error, name, None)
        if isinstance(value, int) and 300 <= value < 600:
            return value
    # gcsfs tells this status, and no other, in words alone.
    return 403 if type(error) is OSError and str(error).startswith("Forbidden: ") else None


def _told(error: Exception) -> str:
    """One line for people."""
    status, words = _status(error), _words(error)
    return f"the server answered {status} {words}" if status else words or type(error).__name__


def _words(error: Exception) -> str:
    text = " ".join(str(getattr(error, "message", "") or error).split())
    return re.sub(r"^\[Errno -?\d+\] ", "", text)[:200]
