"""What ingest stored beside a clip (`--derived`): read by whoever asks, ignored by everyone else.

Owns how the members of one sample are found in its tar. What they hold: `shards.ingest.derived`.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

from shards.index import IndexRow

Arrays = dict[str, np.ndarray]


def read_derived(tar: str | Path, row: IndexRow) -> dict[str, Arrays]:
    """{"flow": {"flow": …, "frames": …}, …} of one sample; empty where nothing was stored.

    Reads that sample's members alone. Raises ValueError where the row is not of this tar.
    """
    found: dict[str, Arrays] = {}
    with Path(tar).open("rb") as file:
        file.seek(row.offset - tarfile.BLOCKSIZE)  # its member's header: names here are short
        try:
            with tarfile.open(fileobj=file, mode="r:") as members:
                for member in members:
                    key, _, kind = member.name.partition(".")
                    if key != row.key:
                        break
                    if kind.endswith(".npz"):
                        data = members.extractfile(member)
                        assert data
                        with np.load(io.BytesIO(data.read()), allow_pickle=False) as arrays:
                            found[kind.removesuffix(".npz")] = dict(arrays)
                    elif kind == "json":
                        return found
        except tarfile.TarError as error:
            raise ValueError(f"{tar} holds no {row.key} at {row.offset} ({error})") from None
    raise ValueError(f"{tar} holds no {row.key} at {row.offset}; its index is of another file")
