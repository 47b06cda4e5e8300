"""How far spotted apices lie from annotated ones.

    python -m benchmarks.spotting SHARDS

Spots the apex in every clip of a shard folder whose onset, apex and offset a person or the renderer
marked, and compares with always naming the middle frame. A row goes to
benchmarks/results/spotting.csv. The shards of `benchmarks.recognition` are
runs/recognition-small/faint/shards.
"""

import argparse
import datetime
import time
from pathlib import Path

import numpy as np

from benchmarks.rows import append, processor
from shards.frames import decode
from shards.manifest import Manifest
from shards.marks import marked
from shards.spotting import spot

RESULTS = Path(__file__).parent / "results" / "spotting.csv"


def measure(shards: Path) -> dict[str, object]:
    """Mean distance in frames and share of clips within two, spotted and of the middle frame.

    Raises ValueError where no clip has marks.
    """
    manifest, spotted, middle, lengths, took = Manifest.open(shards), [], [], [], 0.0
    for number, shard in enumerate(manifest.shards):
        with (shards / shard.name).open("rb") as tar:
            for row in manifest.index(number):
                if not marked(row.record) or not row.record.action_units:
                    continue  # a face without an expression has no apex to find
                tar.seek(row.offset)
                frames = decode(tar.read(row.size), np.arange)
                began = time.thread_time()
                _, apex = spot(frames)
                took += time.thread_time() - began
                spotted.append(abs(apex - row.record.apex))
                middle.append(abs(len(frames) // 2 - row.record.apex))
                lengths.append(len(frames))
    if not spotted:
        raise ValueError(f"{shards}: no clip has onset, apex, offset and action units")
    return {
        "date": datetime.date.today().isoformat(),
        "device": processor(),
        "clips": len(spotted),
        "frames": f"{np.mean(lengths):.1f}",
        "frames_off": f"{np.mean(spotted):.2f}",
        "within_2": f"{np.mean(np.array(spotted) <= 2):.3f}",
        "middle_off": f"{np.mean(middle):.2f}",
        "middle_within_2": f"{np.mean(np.array(middle) <= 2):.3f}",
        "cpu_ms_a_clip": f"{1000 * took / len(spotted):.1f}",
    }


def main() -> None:
    """Measure, print, append the row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shards", type=Path)
    found = measure(parser.parse_args().shards)
    print(found)
    append(RESULTS, [found])


if __name__ == "__main__":
    main()
