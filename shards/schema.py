"""The canonical record: everything known about one clip in a shard, and its strict JSON form.

Owns the field names, their types and meanings, and the version of the disk format. Refuses to know
files, tars and video.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

SCHEMA = "face-shards/2"
"""Version of the disk format. A change that an older reader would misread needs another number."""


T = TypeVar("T")
Reader = Callable[[Any], Any]


class SchemaError(ValueError):
    """A record that is not what this version writes; the message names the field."""


@dataclass(frozen=True, kw_only=True)
class FaceTrack:
    """Where the stored clip was cut from its source, in pixels of the upright source picture."""

    detector: str
    """Name of the detector, "none" where the source was taken as already cropped."""
    found: float
    """Share of the frames, 0..1, in which the detector saw the face (the rest is interpolated)."""
    box: tuple[float, float, float, float]
    """Crop: left, top, width, height."""
    start: float = 0.0
    """Seconds into the source at which the track starts."""
    people: int = 1
    """Faces tracked at the same time; the clip follows the longest, largest one."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One clip. Frame numbers count from 0 in the stored clip; what is unknown is None or empty."""

    clip_id: str
    """Unique in its data set; the sample's key in the shard derives from it."""
    path: str
    """Of the source, relative to the folder that was ingested."""
    fps: float
    """Frames a second of the stored clip."""
    num_frames: int
    """Frames in the stored clip."""
    dataset: str = ""
    version: str = ""
    """Release of the data set."""
    subject_id: str | None = None
    source_id: str | None = None
    """What several clips may share besides the subject: a film, a scene, a recording."""
    onset: int | None = None
    apex: int | None = None
    offset: int | None = None
    apex_source: Literal["annotated", "middle", "spotted"] | None = None
    action_units: tuple[str, ...] = ()
    """As annotated, for example "4", "L10", "R2", "14?"."""
    label: str | None = None
    """Class name; its index is its place in the manifest's labels."""
    objective_class: str | None = None
    votes: dict[str, int] | None = None
    """Annotators a class name."""
    valence: float | None = None
    """From -1, unpleasant, to 1, pleasant."""
    arousal: float | None = None
    """From -1, calm, to 1, excited."""
    split: str | None = None
    licence: str | None = None
    patch_id: str | None = None
    """The correction of a known annotation fault that was applied."""
    track: FaceTrack | None = None
    damaged: str | None = None
    """What of the source was left out because it could not be decoded soundly, in words."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every field present."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`. SchemaError names an unknown, missing or ill-typed field.

        A field that has a default may be missing, so that shards written before it existed
        stay readable.
        """
        try:
            return _build(cls, data)
        except SchemaError as error:
            raise SchemaError(f"record{error}") from None

    def problems(self) -> list[str]:
        """What contradicts itself, in words; ingest refuses a record with problems."""
        found = []
        if self.num_frames < 1:
            found.append(f"num_frames is {self.num_frames}, at least 1 is needed")
        if not self.fps > 0:
            found.append(f"fps is {self.fps}, it must be positive")
        marks = [
            (name, frame)
            for name in ("onset", "apex", "offset")
            if (frame := getattr(self, name)) is not None
        ]
        for name, frame in marks:
            if not 0 <= frame < self.num_frames:
                found.append(f"{name} {frame} lies outside the clip (0..{self.num_frames - 1})")
        for (name, frame), (later, at) in pairwise(marks):
            if frame > at:
                found.append(f"{name} {frame} lies after {later} {at}")
        for name in ("valence", "arousal"):
            if (value := getattr(self, name)) is not None and not -1 <= value <= 1:
                found.append(f"{name} is {value}, it lies between -1 and 1")
        if self.track is not None and not 0 <= self.track.found <= 1:
            found.append(f"track.found is {self.track.found}, it is a share between 0 and 1")
        return found


def _build(cls: Any, data: Any) -> Any:
    """`cls` from a JSON object. A SchemaError starts with the field: ".track.box[2] is …"."""
    if not isinstance(data, Mapping):
        raise SchemaError(f" is {data!r}, expected a JSON object")
    readers, required = _fields_of(cls)
    values = {}
    for name, value in data.items():
        if name not in readers:
            raise SchemaError(f".{name} is no field of {SCHEMA}, which has {', '.join(readers)}")
        values[name] = _at(f".{name}", readers[name], value)
    for name in required:
        if name not in values:
            raise SchemaError(f".{name} is missing")
    return cls(**values)


@functools.cache
def _fields_of(cls: type) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """What reads each field, and the fields that must be present."""
    hints, known = get_type_hints(cls), fields(cls)
    required = [f.name for f in known if f.default is MISSING and f.default_factory is MISSING]
    return {f.name: _reader(hints[f.name]) for f in known}, tuple(required)


def _reader(kind: Any) -> Reader:
    """What turns a JSON value into `kind`. Made once a field: a collection has 10⁸ values."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = _reader(next(arg for arg in args if arg is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is Literal:
        return _checked(args.__contains__, f"one of {args}")
    if origin is tuple:
        return functools.partial(
            _read_tuple, args=args, readers=[_reader(arg) for arg in args if arg is not ...]
        )
    if origin is dict:
        return functools.partial(_read_dict, reader=_reader(args[1]))
    if is_dataclass(kind):
        return functools.partial(_build, kind)
    if kind is float:
        number = _checked(lambda value: type(value) in (int, float), "a number")
        return lambda value: float(number(value))
    return _checked(lambda value: type(value) is kind, kind.__name__)


def _checked(fits: Callable[[Any], bool], expected: str) -> Reader:
    def read(value: Any) -> Any:
        if fits(value):
            return value
        raise SchemaError(f" is {value!r}, expected {expected}")

    return read


def _read_tuple(value: Any, *, args: tuple[Any, ...], readers: list[Reader]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SchemaError(f" is {value!r}, expected a list")
    if args[-1] is Ellipsis:
        readers = readers[:1] * len(value)
    if len(readers) != len(value):
        raise SchemaError(f" holds {len(value)} values, expected {len(readers)}")
    items = enumerate(zip(readers, value, strict=True))
    return tuple(_at(f"[{i}]", reader, item) for i, (reader, item) in items)


def _read_dict(value: Any, *, reader: Reader) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise SchemaError(f" is {value!r}, expected a JSON object")
    return {key: _at(f".{key}", reader, item) for key, item in value.items()}


def _at(where: str, reader: Reader, value: Any) -> Any:
    try:
        return reader(value)
    except SchemaError as error:
        raise SchemaError(f"{where}{error}") from None
