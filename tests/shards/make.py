"""Tiny shard folders for tests, written without ingest."""

import functools
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from shards.index import index_shard
from shards.manifest import Manifest, write_manifest
from shards.schema import FaceTrack, Record

LABELS = ("calm", "glad")


@functools.cache
def video(brightness: int = 60, *, frames: int = 20, size: int = 64) -> bytes:
    """An mp4 as ingest writes them: red rises by 8 a frame, a white square marks the top left."""
    pictures = np.full((frames, size, size, 3), brightness, dtype=np.uint8)
    pictures[..., 0] = (np.arange(frames) * 8)[:, None, None]
    pictures[:, : size // 4, : size // 4] = 255
    return encode(pictures)


def encode(pictures: np.ndarray, *, b_frames: int = 0, kind: str = "mp4") -> bytes:
    """uint8 [T, h, w, 3] → mp4, or "h264" for the bare stream."""
    buffer = io.BytesIO()
    options = {"crf": "10", "g": "8", "bf": str(b_frames)}
    with av.open(buffer, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def record(key: str, **facts) -> Record:
    """A sound record of `video()`."""
    track = FaceTrack(detector="none", found=1.0, box=(0, 0, 64, 64))
    known = {"path": f"{key}.mp4", "fps": 25, "num_frames": 20, "track": track}
    return Record(clip_id=key, **known | facts)


def write_tar(path: Path, samples: Sequence[tuple[Record, bytes]]) -> None:
    """A WebDataset shard."""
    with tarfile.open(path, "w") as tar:
        for facts, mp4 in samples:
            text = json.dumps(facts.to_json()).encode()
            for kind, data in (("mp4", mp4), ("json", text)):
                member = tarfile.TarInfo(f"{facts.clip_id}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def write_folder(
    folder: Path,
    counts: Sequence[int],
    *,
    labels: Sequence[str] = LABELS,
    test_every: int = 0,
    replaced: dict[str, bytes] | None = None,
    name: str = "",
) -> Manifest:
    """Shards with `counts` samples; keys are NAMEs<shard>_<sample>.

    Every `test_every`-th sample is of the split "test", the others of "train". `replaced` gives the
    bytes of some keys' videos.
    """
    shards, seen = [], 0
    for i, count in enumerate(counts):
        shards.append([])
        for j in range(count):
            key, seen = f"{name}s{i}_{j}", seen + 1
            split = "test" if test_every and seen % test_every == 0 else "train"
            label = labels[seen % len(labels)] if labels else None
            facts = record(key, label=label, split=split)
            mp4 = (replaced or {}).get(key) or video(40 + seen % 3 * 40)
            shards[-1].append((facts, mp4))
    return write_samples(folder, shards, labels=labels)


def write_samples(
    folder: Path,
    shards: Sequence[Sequence[tuple[Record, bytes]]],
    *,
    labels: Sequence[str] = LABELS,
) -> Manifest:
    """Shards of these records and videos."""
    folder.mkdir(parents=True)
    entries = []
    for i, samples in enumerate(shards):
        path = folder / f"shard-{i:06d}.tar"
        write_tar(path, samples)
        entries.append(index_shard(path))
    return write_manifest(
        folder, entries, labels=labels, clip={"size": 64}, created_by={"test": "1"}
    )
