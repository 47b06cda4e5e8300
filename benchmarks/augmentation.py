"""What augmentation costs the loader, and the device that takes it over.

    python -m benchmarks.augmentation [--rounds 15] [--clips 24]

CPU milliseconds of a fine-tuning clip (16 frames, 224 px, the augmentation of `vit_b`) through the
whole loader on one core, from rendered faces as ingest stores them: with what follows crop and flip
and without, in turns on the same clips. Where there is a CUDA device: its milliseconds for a batch
of 32 such clips, from pinned memory on. Rows go to benchmarks/results/augmentation.csv.
"""

import argparse
import datetime
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import torch

from benchmarks.rows import append, processor, quantile
from finetune.recipes import vit_b
from shards.batch import ClipBatch
from shards.config import DataConfig
from shards.draws_device import augmented
from shards.ingest.run import ingest
from shards.plan.measure import measure
from shards.reader import Collection
from shards.render import render_dataset
from shards.stream import open_collection

RESULTS = Path(__file__).parent / "results" / "augmentation.csv"
BATCH = 32


def make_shards(folder: Path) -> Path:
    """Twelve rendered clips of 4 seconds."""
    videos = folder / "videos"
    render_dataset(videos, subjects=4, clips_per_subject=3, size=(640, 360), seconds=4, workers=1)
    ingest(videos, folder / "shards", jobs=1)
    return folder / "shards"


def loader(
    data: DataConfig, collection: Collection, rounds: int, clips: int
) -> dict[str, list[float]]:
    """Milliseconds of a clip, of every round, by who augments."""
    taken: dict[str, list[float]] = {"cpu": [], "device": []}
    for turn in range(rounds):
        for where, found in taken.items():
            asked = replace(data, augment_on=where, seed=turn)
            speed = measure(asked, seconds=600, most=clips, collection=collection)
            found.append(1e3 * speed.core_seconds / speed.clips)
    return taken


def device(data: DataConfig, rounds: int) -> list[float]:
    """Milliseconds that a CUDA device and its host need for a batch, from the copy on."""
    shape = (BATCH, 3, data.frames, data.size, data.size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    taken = []
    for turn in range(rounds + 3):  # the first ones load kernels
        seeds = torch.arange(BATCH) + BATCH * turn
        clips = ClipBatch(pixels, torch.zeros(BATCH), torch.ones(BATCH), seeds, [""] * BATCH)
        clips = clips.pin_memory()
        torch.cuda.synchronize()
        start = time.perf_counter()
        augmented(clips.to("cuda"), data.augment)
        torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return taken[3:]


def row(machine: str, what: str, taken: list[float], ratios: list[float]) -> dict[str, object]:
    """A result row; `ratios` are of each round to the loader that does everything."""
    quantiles = {f"p{p}_ms": f"{quantile(taken, p / 100):.2f}" for p in (20, 50, 80)}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "torch": torch.__version__,
        "what": what,
        **quantiles,
        "ratio_p50": f"{quantile(ratios, 0.5):.3f}" if ratios else "",
    }


def main() -> int:
    """Measure, print and append rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clips", type=int, default=24, help="of a round, 4 of them to warm up")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as scratch:
        data = replace(vit_b().data, shards=(str(make_shards(Path(scratch))),), split=None)
        taken = loader(data, open_collection(data), options.rounds, options.clips)
    ratios = [b / a for a, b in zip(taken["cpu"], taken["device"], strict=True)]
    found = [
        row(processor(), "a clip, loader does all", taken["cpu"], [1.0]),
        row(processor(), "a clip, loader crops and flips", taken["device"], ratios),
    ]
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found.append(row(name, f"{BATCH} clips, device", device(data, options.rounds), []))
    else:
        print("no CUDA device here: what it takes is not measured", file=sys.stderr)
    append(options.out, found)
    for line in found:
        print(f"{line['what']:32} {line['p50_ms']:>8} ms  {line['ratio_p50']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
