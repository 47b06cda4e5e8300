"""Foreign videos in, clips of faces out: read → find the face → cut → write shards.

Names resolve on first use: importing the package loads neither a decoder nor OpenCV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.ingest.extract import FaceClip, extract_face
    from shards.ingest.run import IngestError, Summary, ingest
    from shards.ingest.settings import IngestSettings, Rejected

__all__ = [
    "FaceClip",
    "IngestError",
    "IngestSettings",
    "Rejected",
    "Summary",
    "extract_face",
    "ingest",
]

_HOMES = {
    "FaceClip": "extract",
    "IngestError": "run",
    "IngestSettings": "settings",
    "Rejected": "settings",
    "Summary": "run",
    "extract_face": "extract",
    "ingest": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
