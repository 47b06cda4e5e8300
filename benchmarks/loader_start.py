"""How long a training waits for its first batch, by the number of shards.

    python -m benchmarks.loader_start [--shards 64 10000 100000] [--split all train] [--workers 2]

For each number a folder of so many shards (one of 36 rendered clips, under as many names), in the
order of a pretraining worker: the server of the loader processes is started early, the network
(ViT-B) built, the folder opened, which checks that every file is there and of its size, and from
then the time to the first batch, for the first and for a second start of the loader processes;
without and with a split. Rows go to benchmarks/results/loader_start.csv. In those without
`network_seconds` the server was started only with the loaders; in the first five, without `split`,
one process measured all sizes one after the other.
"""

import argparse
import datetime
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.loader_memory import BATCH, FRAMES, SIZE, make_shards, resident
from benchmarks.rows import append, processor
from pretrain.job import build
from pretrain.recipes import vit_b
from shards.config import DataConfig
from shards.stream import open_clips
from shards.workers import start_early

RESULTS = Path(__file__).parent / "results" / "loader_start.csv"


def measure(folder: Path, split: str | None, workers: int) -> dict[str, object]:
    """What a start takes."""
    asked = {"global_batch": BATCH, "micro_batch": BATCH, "rank": 0, "world": 1, "ledger": None}
    small = {"streams": BATCH, "frames": FRAMES, "stride": 2, "size": SIZE}
    data = DataConfig((str(folder),), split=split, loader_workers=workers, **small)
    start_early(workers)
    start = time.perf_counter()
    network = build(vit_b())
    built = time.perf_counter() - start
    before = resident(os.getpid())["RssAnon"]
    start = time.perf_counter()
    with open_clips(data, **asked, train=True) as stream:
        opened = time.perf_counter() - start
        firsts = []
        for _ in range(2):
            start = time.perf_counter()
            next(iter(stream))
            firsts.append(time.perf_counter() - start)
        held = resident(os.getpid())["RssAnon"] - before
    del network  # a worker has it while its loaders start
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": processor(),
        "shards": len(stream.collection.counts),
        "split": split or "all",
        "loaders": workers,
        "network_seconds": f"{built:.2f}",
        "open_seconds": f"{opened:.2f}",
        "first_batch_seconds": f"{firsts[0]:.2f}",
        "second_start_seconds": f"{firsts[1]:.2f}",
        "held_mb": f"{held:.0f}",
    }


def main() -> int:
    """Measure, append rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[64, 10_000, 100_000])
    parser.add_argument("--split", nargs="+", default=["all", "train"])
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for shards in options.shards:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_shards(Path(scratch), shards)
            for split in options.split:
                # A process of its own: another start would find memory and a forkserver at hand.
                with ProcessPoolExecutor(1, mp_context=spawn) as alone:
                    asked = None if split == "all" else split
                    row = alone.submit(measure, folder, asked, options.workers).result()
                print(row, flush=True)
                append(RESULTS, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
