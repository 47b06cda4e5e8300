"""Which stored form of a face clip loads fastest, against decoding the original videos.

    python -m benchmarks.loader [--videos FOLDER] [--rounds 7] [--stored]

For 720p and 360p originals (rendered faces of 8 seconds at 25 frames a second, or your own files as
they are) it measures the CPU time of one training clip, 16 frames with stride 4 and a random
multi-scale crop to 224 px, on one core:

    original     decord on the original file, then the crop, as VideoMAE's loader works
    fast gop N   the face track in H.264, a key frame every N, without CABAC and deblocking
                 (`fast gop 12` is what ingest stores); decoded by `shards`, by decord, or by
                 torchcodec where it is installed (it is no requirement; it also needs FFmpeg's
                 libraries on the system)
    cabac gop N  the same with both
    jpeg Q       the same pictures as one JPEG each, of which only the 16 wanted are decoded
    … decode     the decoder alone, without the crop, its frames in one array: what every decoder
                 hands over
    … frames     of `shards` alone: the same without the array, each frame where the converter left
                 it, as the loader crops them from there: what no loader can beat
    … dense      16 frames in a row instead, with the crop

All take turns in one process, set up as a loader's, and take the same frames. PSNR and bytes are
of the whole stored clip against the cropped pictures before encoding; every H.264 form has the PSNR
of the stored one, by its crf. `--stored` measures the originals and what ingest stores alone. Rows
go to benchmarks/results/loader.csv. (Those of "mp4 gop N" are older: cabac, all with crf 18.)
"""

import argparse
import datetime
import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import decord
import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import append, processor, quantile
from shards.augment import AugmentConfig, cut
from shards.frames import decode, decode_each, draw_indices
from shards.ingest.encode import ClipWriter
from shards.ingest.extract import extract_face
from shards.render import render_dataset
from shards.workers import preparation

RESULTS = Path(__file__).parent / "results" / "loader.csv"
FRAMES, STRIDE, SIZE, CRF = 16, 4, 224, 18
FORMS = {  # name → (frames from key frame to key frame, without CABAC and deblocking)
    "fast gop 12": (12, True),  # the stored one, whose quality the others must have
    "fast gop 1": (1, True),
    "fast gop 4": (4, True),
    "fast gop 250": (250, True),
    "cabac gop 1": (1, False),
    "cabac gop 12": (12, False),
}
QUALITIES = (90, 95)
TASKS = {  # stride, and what is made of the frames
    "": (STRIDE, "crop"),
    " decode": (STRIDE, "array"),
    " frames": (STRIDE, "nothing"),
    " dense": (1, "crop"),
}
ORIGINALS = {"720p": (1280, 720), "360p": (640, 360)}
PLAIN = AugmentConfig()

Choose = Callable[[int], NDArray]
Load = Callable[[Choose], NDArray | Sequence[NDArray]]


@dataclass(frozen=True)
class Contestant:
    """A stored form and its decoder.

    Attributes:
        load: from the choice of frames to them, T times uint8 [h, w, 3].
        bytes: size of the stored clip.
        psnr: of the stored clip in dB; None for the original.
    """

    load: Load
    bytes: int
    psnr: float | None


def mp4(frames: NDArray, fps: float, form: str, crf: float, folder: Path) -> bytes:
    """Frames as ingest stores them, or in another of the forms."""
    path = folder / "clip.mp4"
    rate, (gop, fast) = Fraction(fps).limit_denominator(1001), FORMS[form]
    size = frames.shape[1]
    with ClipWriter(path, rate=rate, size=size, crf=crf, gop=gop, fast=fast) as writer:
        for frame in frames:
            writer.add(frame)
    return path.read_bytes()


def as_good(
    frames: NDArray, fps: float, form: str, wanted: float, folder: Path
) -> tuple[bytes, float]:
    """The file of this form whose PSNR is next to the wanted one, and its PSNR, by trying crf."""
    crf, best = float(CRF), (b"", 0.0)
    for _ in range(5):
        data = mp4(frames, fps, form, crf, folder)
        quality = psnr(decode(data, np.arange), frames)
        if not best[0] or abs(quality - wanted) < abs(best[1] - wanted):
            best = data, quality
        if abs(quality - wanted) < 0.02:
            break
        crf += (quality - wanted) / 0.5  # a step of crf is worth about half a dB
    return best


def by_decord(video: bytes | Path, choose: Choose) -> NDArray:
    """The wanted frames by decord on one thread, of a clip or of an original file."""
    source = str(video) if isinstance(video, Path) else io.BytesIO(video)
    reader = decord.VideoReader(source, num_threads=1)
    return reader.get_batch(choose(len(reader)).tolist()).asnumpy()


def by_torchcodec(video: bytes, choose: Choose) -> NDArray:
    """The wanted frames by torchcodec on one thread. Our files have a constant rate, so that it
    need not scan them first."""
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    reader = VideoDecoder(
        video, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate"
    )
    wanted = choose(reader.metadata.num_frames)
    return reader.get_frames_at(indices=wanted.tolist()).data.numpy()


@functools.cache
def decoders() -> dict[str, Callable[[bytes, Choose], NDArray | Sequence[NDArray]]]:
    """By name; torchcodec only where it can be loaded."""
    found: dict[str, Callable[[bytes, Choose], NDArray | Sequence[NDArray]]] = {
        "shards": decode_each,
        "decord": by_decord,
    }
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without torchcodec: {str(error).splitlines()[0]}", file=sys.stderr)
        return found
    return found | {"torchcodec": by_torchcodec}


def by_jpeg(pictures: list[NDArray], choose: Choose) -> NDArray:
    """The wanted frames of a clip stored picture by picture."""
    chosen = [cv2.imdecode(pictures[i], cv2.IMREAD_COLOR) for i in choose(len(pictures)).tolist()]
    return np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) for picture in chosen])


def psnr(stored: NDArray, truth: NDArray) -> float:
    """Peak signal to noise of 8-bit pictures, dB."""
    return float(10 * np.log10(255**2 / np.mean((stored.astype(np.float32) - truth) ** 2)))


def contestants(
    original: Path, folder: Path, forms: Sequence[str], qualities: Sequence[int]
) -> dict[str, Contestant]:
    """Everything that can load this video."""
    clip = extract_face(original)
    truth, every = clip.frames, np.arange
    found = {
        "original": Contestant(
            lambda choose: by_decord(original, choose), original.stat().st_size, None
        )
    }
    stored = psnr(decode(mp4(truth, clip.fps, "fast gop 12", CRF, folder), every), truth)
    for form in forms:
        data, quality = as_good(truth, clip.fps, form, stored, folder)
        pixels = decode(data, every)
        for name, load in decoders().items():
            assert np.array_equal(load(data, every), pixels), f"{name} finds other pixels"
            found[f"{form} {name}"] = Contestant(
                lambda choose, data=data, load=load: load(data, choose), len(data), quality
            )
    for level in qualities:
        flags = (cv2.IMWRITE_JPEG_QUALITY, level)
        pictures = [
            cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), flags)[1]
            for frame in truth
        ]
        quality = psnr(by_jpeg(pictures, every), truth)
        found[f"jpeg {level} opencv"] = Contestant(
            lambda choose, pictures=pictures: by_jpeg(pictures, choose),
            sum(len(picture) for picture in pictures),
            quality,
        )
    return found


def once(load: Load, seed: int, *, stride: int, into: str) -> float:
    """CPU seconds of one clip; the same seed takes the same frames and crop of every contestant."""
    rng = np.random.default_rng(seed)
    start = time.process_time()
    clip = load(lambda found: draw_indices(found, frames=FRAMES, stride=stride, rng=rng))
    if into == "array" and not isinstance(clip, np.ndarray):
        clip = np.stack(clip)
    if into == "crop":
        clip = cut(clip, PLAIN, size=SIZE, rng=rng)
        assert clip.shape == (FRAMES, SIZE, SIZE, 3)
    return time.process_time() - start


def measure(
    videos: list[Path], rounds: int, folder: Path, *, stored: bool
) -> tuple[dict[str, list[float]], dict[str, list[Contestant]]]:
    """CPU seconds of every contestant at every task, over all videos; or of the originals and the
    stored form."""
    forms, qualities = (list(FORMS)[:1], ()) if stored else (list(FORMS), QUALITIES)
    seconds: dict[str, list[float]] = {}
    kept: dict[str, list[Contestant]] = {}
    for video in videos:
        for name, contestant in contestants(video, folder, forms, qualities).items():
            kept.setdefault(name, []).append(contestant)
    for turn in range(rounds + 1):
        for name, group in kept.items():
            for which, contestant in enumerate(group):
                # None is always the one that finds the caches as another contestant left them.
                for task in tuple(TASKS)[turn % len(TASKS) :] + tuple(TASKS)[: turn % len(TASKS)]:
                    stride, into = TASKS[task]
                    if into == "nothing" and not name.endswith("shards"):
                        continue
                    seed = 1000 * turn + which
                    taken = once(contestant.load, seed, stride=stride, into=into)
                    if turn:  # the first one warms up
                        seconds.setdefault(name + task, []).append(taken)
    return seconds, kept


def rows(
    source: str, seconds: dict[str, list[float]], kept: dict[str, list[Contestant]]
) -> list[dict[str, object]]:
    """Result rows; `speedup` is clips a second over those of the originals."""
    baseline = quantile(seconds["original"], 0.5)
    found = []
    for name, taken in seconds.items():
        group = kept[functools.reduce(str.removesuffix, TASKS, name)]
        qualities = [c.psnr for c in group if c.psnr is not None]
        middle = quantile(taken, 0.5)
        found.append(
            {
                "date": datetime.date.today().isoformat(),
                "cpu": processor(),
                "source": source,
                "stored": name,
                "p20_ms": f"{1e3 * quantile(taken, 0.2):.2f}",
                "p50_ms": f"{1e3 * middle:.2f}",
                "p80_ms": f"{1e3 * quantile(taken, 0.8):.2f}",
                "clips_per_second": f"{1 / middle:.1f}",
                "speedup": f"{baseline / middle:.2f}",
                "kilobytes": f"{np.mean([c.bytes for c in group]) / 1e3:.0f}",
                "psnr_db": f"{np.mean(qualities):.1f}" if qualities else "",
            }
        )
    return found


def originals(given: str | None, folder: Path) -> dict[str, list[Path]]:
    """Source name → its videos."""
    if given is not None:
        return {Path(given).name: sorted(p for p in Path(given).iterdir() if p.is_file())}
    for name, size in ORIGINALS.items():
        render_dataset(
            folder / name, subjects=3, clips_per_subject=1, size=size, seconds=8, workers=1
        )
    return {name: sorted((folder / name).rglob("*.mp4")) for name in ORIGINALS}


def main() -> int:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", help="folder of original videos; default: rendered ones")
    parser.add_argument("--rounds", type=int, default=7, help="times each clip is loaded")
    parser.add_argument("--stored", action="store_true", help="no other form than ingest's")
    options = parser.parse_args()
    preparation()(0)
    decord.logging.set_level(decord.logging.QUIET)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for source, videos in originals(options.videos, work).items():
            measured = rows(source, *measure(videos, options.rounds, work, stored=options.stored))
            append(RESULTS, measured)
            for row in measured:
                print(
                    f"{source:6} {row['stored']:30} {row['p50_ms']:>8} ms  "
                    f"{row['speedup']:>6} x  {row['kilobytes']:>6} kB  {row['psnr_db']} dB"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
