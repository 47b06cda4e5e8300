"""Whether the memory of a training's data stays flat, over as many clips as a long epoch has.

    python -m benchmarks.loader_memory [--clips 50000] [--every 2000] [--workers 2]

Writes shards of small rendered faces into a temporary folder, then reads them as a training does,
epoch after epoch, and looks every so many clips at the resident memory of the process that would
train and of its loader processes. Rows go to benchmarks/results/loader_memory.csv: the larger of
the loaders counts. Linux alone, as it reads /proc.
"""

import argparse
import datetime
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.rows import append, processor
from shards.augment import AugmentConfig
from shards.config import DataConfig
from shards.index import index_name
from shards.ingest.run import ingest
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest, write_manifest
from shards.render import render_dataset
from shards.stream import open_clips

RESULTS = Path(__file__).parent / "results" / "loader_memory.csv"
SIZE, FRAMES, BATCH, COPIES, LINKS = 64, 8, 32, 64, 20_000
FILES = ("VmRSS", "RssAnon")


def make_shards(folder: Path, copies: int) -> Path:
    """36 rendered clips as one shard, 24 of them of split train, and it as so many, each the same
    files under other names."""
    render_dataset(folder / "videos", subjects=6, clips_per_subject=6, size=(SIZE, SIZE), workers=2)
    shards, settings = folder / "shards", IngestSettings(detector="none", size=SIZE)
    annotations = folder / "videos" / "annotations.csv"
    ingest(folder / "videos", shards, settings=settings, annotations=annotations)
    made = Manifest.open(shards)
    (one,) = made.shards
    kinds = (lambda name: name, index_name)
    for i in range(copies):
        for name in kinds:
            # A file takes some ten thousand names, so that now and then it is really copied.
            first = shards / name(one.name if i < LINKS else f"copy-{i - i % LINKS:06d}.tar")
            copy = shards / name(f"copy-{i:06d}.tar")
            if i and i % LINKS == 0:
                shutil.copyfile(shards / name(one.name), copy)
            else:
                copy.hardlink_to(first)
    named = [replace(one, name=f"copy-{i:06d}.tar") for i in range(copies)]
    about = {"labels": made.labels, "clip": made.clip}
    write_manifest(shards, named, **about, created_by=made.created_by)
    return shards


def resident(pid: int) -> dict[str, float]:
    """MB of a process: all of it, and what is its own and no file's."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(found[name].split()[0]) / 1e3 for name in FILES}


def look(clips: int, seconds: float) -> dict[str, object]:
    """A row: this process and the largest of its loaders."""
    loaders = [resident(child.pid) for child in multiprocessing.active_children() if child.pid]
    mine = resident(os.getpid())
    most = {name: max((one[name] for one in loaders), default=0.0) for name in FILES}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": processor(),
        "clips": clips,
        "seconds": f"{seconds:.0f}",
        "loaders": len(loaders),
        "trainer_mb": f"{mine['VmRSS']:.0f}",
        "trainer_own_mb": f"{mine['RssAnon']:.0f}",
        "loader_mb": f"{most['VmRSS']:.0f}",
        "loader_own_mb": f"{most['RssAnon']:.0f}",
    }


def main() -> int:
    """Read, look, append rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--clips", type=int, default=50_000, help="read in all")
    parser.add_argument("--every", type=int, default=2_000, help="clips from look to look")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        data = DataConfig(
            shards=(str(make_shards(Path(scratch), COPIES)),),
            streams=BATCH,
            frames=FRAMES,
            stride=2,
            size=SIZE,
            loader_workers=options.workers,
            augment=AugmentConfig(),
        )
        asked = {"global_batch": BATCH, "micro_batch": BATCH, "rank": 0, "world": 1}
        start = time.perf_counter()
        with open_clips(data, **asked, train=True, ledger=None) as stream:
            for batch in stream:
                del batch  # as a trainer that is done with it
                if stream.served // options.every > len(found):
                    found.append(look(stream.served, time.perf_counter() - start))
                    print({name: found[-1][name] for name in list(found[-1])[2:]}, flush=True)
                if stream.served >= options.clips:
                    break
    append(RESULTS, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
