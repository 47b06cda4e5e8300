"""Choosing how an operation is computed: by name, or by device.

Owns the rule that nothing is chosen in silence: a backend that was named runs or raises, and one
that was chosen, Triton on CUDA and SDPA elsewhere, is logged once. It knows no operation; each has
its own table of backends, whose names are those of `BackendName`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

logger = logging.getLogger(__name__)
BackendName = Literal["triton", "sdpa", "flash_attn", "reference"]
_logged: set[tuple[str, str, str]] = set()


@dataclass(frozen=True)
class Backend:
    """One way to compute an operation.

    Attributes:
        run: the computation; every backend of an operation takes the same arguments.
        unavailable: the queries → why it cannot take them here and what to do, or None if it can.
    """

    run: Callable[..., Any]
    unavailable: Callable[[Tensor], str | None]


def pick(operation: str, table: Mapping[str, Backend], name: str | None, q: Tensor) -> Backend:
    """The backend called `name`; without a name Triton on CUDA and SDPA elsewhere, logged once.

    The first call outside `torch.compile` logs it; a compiled one cannot.

    Args:
        operation: for messages.
        q: queries [B, H, N, D]; their device, dtype and head dim decide what can run.

    Raises:
        ValueError: a name that does not exist.
        RuntimeError: the named or chosen backend cannot run; says why.
    """
    chosen = name or ("triton" if q.is_cuda else "sdpa")
    if chosen not in table:
        raise ValueError(f"{operation} has no backend {chosen!r}; choose one of {', '.join(table)}")
    reason = table[chosen].unavailable(q)
    if reason is not None:
        raise RuntimeError(f"{operation} cannot use backend {chosen!r}: {reason}")
    if name is None and not torch.compiler.is_compiling():
        _log_once(operation, chosen, q.device.type)
    return table[chosen]


def anywhere(q: Tensor) -> str | None:
    """For a backend that takes everything."""
    return None


def _log_once(operation: str, chosen: str, device: str) -> None:
    entry = (operation, chosen, device)
    if entry not in _logged:
        _logged.add(entry)
        logger.info("%s uses backend %r on %s; name another with backend=…", *entry)
