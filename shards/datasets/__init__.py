"""Public face-video data sets: one small adapter a file, from their own layout to canonical items.

`TABLE` names them all. An adapter is loaded when it is asked for by name, and exports `DATASET`
(see `contract.Dataset`). Another data set is one more file and its line here. Opens no video, and
holds no annotation: users bring what they were given.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.datasets.contract import Dataset

TABLE = {
    "dfew": "dfew",
    "ferv39k": "ferv39k",
    "mafw": "mafw",
    "casme2": "casme2",
    "casme3": "casme3",
    "samm": "samm",
    "smic": "smic",
    "mmew": "mmew",
    "voxceleb2": "voxceleb2",
    "crema-d": "crema_d",
    "ravdess": "ravdess",
    "table": "table",
    "folder": "folder",
}
"""Name → module of this package."""


def dataset(name: str) -> Dataset:
    """The adapter of that name; InputError names the ones there are."""
    from shards.ingest.inputs import InputError

    if name not in TABLE:
        near = difflib.get_close_matches(name.lower(), TABLE, 1, 0.6)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no data set {name!r}{meant} (there are {', '.join(TABLE)})")
    return import_module(f"{__name__}.{TABLE[name]}").DATASET
