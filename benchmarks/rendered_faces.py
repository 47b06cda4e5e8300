"""How often a stock face detector finds exactly one face in rendered frames.

    python -m benchmarks.rendered_faces [--people 140] [--frames 7]

OpenCV's default frontal cascade looks at frames of unencoded clips, one person and one of the
labels a clip, full strength. The row is appended to benchmarks/results/rendered_faces.csv.
"""

import argparse
import datetime
import sys
from pathlib import Path

import cv2
import numpy as np

from benchmarks.rows import append
from shards.render import LABELS, ClipSpec, Expression, Face, Scene, render_clip

RESULTS = Path(__file__).parent / "results" / "rendered_faces.csv"
FIRST_SEED = 1000
FPS = 12.5
CASCADE = "haarcascade_frontalface_default.xml"


def clip(seed: int, frames: int) -> np.ndarray:
    """Frames uint8 [T, h, w, 3] of one person."""
    rng = np.random.default_rng(seed)
    label = LABELS[seed % len(LABELS)]
    expression = Expression.sample(label, 1.0, frames=frames, fps=FPS, rng=rng)
    scene = Scene.sample(seed, seed, seconds=frames / FPS)
    return render_clip(ClipSpec(Face.from_seed(seed), scene, expression, frames, fps=FPS))


def one_face(detector: cv2.CascadeClassifier, frame: np.ndarray) -> bool:
    """Whether the detector sees exactly one face."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return len(detector.detectMultiScale(grey, 1.1, 5, minSize=(60, 60))) == 1


def main() -> int:
    """Count, print, append a row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", type=int, default=140)
    parser.add_argument("--frames", type=int, default=7)
    options = parser.parse_args()
    detector = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
    found = [
        one_face(detector, frame)
        for seed in range(FIRST_SEED, FIRST_SEED + options.people)
        for frame in clip(seed, options.frames)
    ]
    share = sum(found) / len(found)
    row = {
        "date": datetime.date.today().isoformat(),
        "opencv": cv2.__version__,
        "cascade": CASCADE,
        "people": options.people,
        "frames": len(found),
        "one_face": f"{share:.4f}",
    }
    append(RESULTS, [row])
    print(f"exactly one face in {share:.1%} of {len(found)} frames of {options.people} people")
    return 0


if __name__ == "__main__":
    sys.exit(main())
