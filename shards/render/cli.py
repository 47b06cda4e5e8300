"""`python -m shards render`: a labelled folder of rendered face clips."""

import argparse
import sys
import time
from collections.abc import Callable

from shards.render.dataset import RenderSummary, render_dataset
from shards.render.plan import RenderError


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    started = time.monotonic()
    try:
        summary = render_dataset(
            options.out,
            subjects=options.subjects,
            clips_per_subject=options.clips,
            seed=options.seed,
            size=options.size,
            fps=options.fps,
            seconds=options.seconds,
            strengths=options.strengths,
            splits=options.splits,
            workers=options.workers,
            progress=_progress(started),
        )
    except RenderError as error:
        print(f"render: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"render: cannot write {options.out}: {error.strerror or error}", file=sys.stderr)
        print("render: nothing was left there; free space or choose another --out", file=sys.stderr)
        return 1
    _report(summary, time.monotonic() - started)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shards render",
        description="Render labelled clips of parametric faces with the seven basic expressions.",
    )
    parser.add_argument("--out", required=True, help="folder to write; new, empty, or from render")
    parser.add_argument("--subjects", type=int, default=12, help="people (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=7, help="clips each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument("--size", type=_size, default=(320, 240), help="pixels, like 320x240")
    parser.add_argument("--fps", type=float, default=25.0, help="frames a second")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a clip")
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=(1.0,),
        help="1 is full; at 0.3 and below a clip shows a brief micro-expression",
    )
    parser.add_argument(
        "--splits",
        type=_splits,
        default=None,
        help="shares of the people, like train=0.7,val=0.15,test=0.15 (the default)",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a core)")
    return parser


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, got {text!r}")
    return int(width), int(height)


def _splits(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected name=share, got {part!r}") from None
    return shares


def _progress(started: float) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        passed = time.monotonic() - started
        left = passed / done * (total - done)
        end = "\n" if done == total or not sys.stdout.isatty() else "\r"
        print(f"rendered {done}/{total} clips · {left:.0f} s left   ", end=end, flush=True)

    return show


def _report(summary: RenderSummary, seconds: float) -> None:
    labels = ", ".join(f"{name} {count}" for name, count in summary.labels.items())
    splits = ", ".join(f"{name} {count}" for name, count in summary.splits.items())
    print(f"{summary.folder}: {summary.clips} clips, {summary.frames} frames in {seconds:.1f} s")
    print(f"labels: {labels}")
    print(f"splits: {splits}")
