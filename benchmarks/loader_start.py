"""How long a training waits for its first batch, by the number of shards.

    python -m benchmarks.loader_start [--shards 64 10000 100000] [--workers 2]

For each number a folder of so many shards (one of 36 rendered clips, under as many names): the time
to open it, which checks that every file is there and of its size, and from then the time to the
first batch, for the first and for a second start of the loader processes. Rows go to
benchmarks/results/loader_start.csv.
"""

import argparse
import datetime
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.loader_memory import BATCH, FRAMES, SIZE, make_shards, resident
from benchmarks.rows import append, processor
from shards.config import DataConfig
from shards.stream import open_clips

RESULTS = Path(__file__).parent / "results" / "loader_start.csv"


def measure(shards: int, workers: int) -> dict[str, object]:
    """A row."""
    asked = {"global_batch": BATCH, "micro_batch": BATCH, "rank": 0, "world": 1, "ledger": None}
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(make_shards(Path(scratch), shards))
        data = DataConfig(
            (folder,), streams=BATCH, frames=FRAMES, stride=2, size=SIZE, loader_workers=workers
        )
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
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": processor(),
        "shards": shards,
        "loaders": workers,
        "open_seconds": f"{opened:.2f}",
        "first_batch_seconds": f"{firsts[0]:.2f}",
        "second_start_seconds": f"{firsts[1]:.2f}",
        "held_mb": f"{held:.0f}",
    }


def main() -> int:
    """Measure, append rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[64, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    options = parser.parse_args()
    for shards in options.shards:
        row = measure(shards, options.workers)
        print(row, flush=True)
        append(RESULTS, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
