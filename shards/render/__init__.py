"""Rendered faces: parametric people with known labels, drawn by numpy and OpenCV alone.

Owns everything from an identity seed to labelled mp4 files. Knows nothing of shards, of detectors
or of models: its output goes through the same ingest as any recorded video. Names resolve on first
use, so importing the package does not load OpenCV.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.render.clip import ClipSpec, render_clip
    from shards.render.dataset import RenderSummary, render_dataset
    from shards.render.expression import LABELS, Expression
    from shards.render.face import Face
    from shards.render.plan import RenderError
    from shards.render.scene import Scene

__all__ = [
    "LABELS",
    "ClipSpec",
    "Expression",
    "Face",
    "RenderError",
    "RenderSummary",
    "Scene",
    "render_clip",
    "render_dataset",
]

_HOMES = {
    "LABELS": "expression",
    "ClipSpec": "clip",
    "Expression": "expression",
    "Face": "face",
    "RenderError": "plan",
    "RenderSummary": "dataset",
    "Scene": "scene",
    "render_clip": "clip",
    "render_dataset": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
