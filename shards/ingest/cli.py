"""`python -m shards ingest`: arguments, a progress bar, a short summary, the exit status.

Exit status: 0 shards were written; 1 too much was rejected, or nothing was usable; 2 the request or
the place cannot be worked with. Owns no work of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from shards.ingest.inputs import Collected, InputError, Refused
from shards.ingest.progress import progress
from shards.ingest.publish import unfinished
from shards.ingest.redo import Redone, redo, settings_of
from shards.ingest.run import IngestError, Summary, ingest
from shards.ingest.settings import IngestSettings
from shards.wording import commonest, count

SETTINGS = {f.name: f for f in dataclasses.fields(IngestSettings)}
HELP = {
    "size": "pixels a side of the stored square picture",
    "detector": "haar (comes with OpenCV), yunet, or none for data that is already cropped",
    "detector_model": "model file of yunet, from OpenCV's model zoo",
    "detector_sha256": "of that file, if it is not a public one",
    "crop": "what decides the crop: track (the face's whole way) or onset (the onset frame)",
    "derived": "stored beside clips with annotated onset and apex: flow, strain, keyframes",
    "cuts": "split: a clip ends where a new shot begins; keep: it goes on",
    "margin": "added around the face on each side, as a share of its width",
    "min_face": "smallest face, in pixels of the source",
    "min_found": "smallest share of looked-at frames with the face found",
    "min_frames": "shortest clip, in frames",
    "clip_seconds": "videos without annotations are cut into clips of this length",
    "max_seconds": "longest annotated clip (these stay whole)",
    "max_side": "larger pictures are scaled down to this side while decoding",
    "timeout": "seconds a video may take",
    "memory_limit_gib": "memory a video may take",
    "crf": "quality of the stored clips, lower is better and larger",
    "gop": "frames between key frames of the stored clips",
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m shards ingest",
        description="Videos of faces to shards: find the face, crop, encode, pack.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("videos", type=Path, nargs="?", help="folder of videos (or one video)")
    p.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    p.add_argument(
        "--annotations", type=Path, help="CSV or Parquet with a column path and any of label, …"
    )
    _add_dataset(p)
    p.add_argument(
        "--holdout", nargs="+", default=[], metavar="NAME=SHARE", help="test=0.2 val=0.1"
    )
    p.add_argument(
        "--jobs",
        type=_positive,
        help="videos (with --ray, groups of 4) at once; else one a processor",
    )
    p.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="work on a Ray cluster: this one, that of RAY_ADDRESS, or the one on this machine",
    )
    p.add_argument("--shard-samples", type=_positive, default=512, help="clips a shard, at most")
    p.add_argument(
        "--shard-bytes", type=_positive, default=256 << 20, help="bytes a shard, at most"
    )
    p.add_argument("--max-rejected-share", type=_share, default=0.5, help="fail above this share")
    p.add_argument("--overwrite", action="store_true", help="replace shards that are already there")
    p.add_argument(
        "--restart",
        action="store_true",
        help="start over, where the shards of a stopped run would be gone on with",
    )
    p.add_argument(
        "--redo",
        nargs="+",
        metavar="LEDGER",
        help="write the shards of --out anew in which ledgers of a training (ledger.jsonl) name "
        "unreadable samples, with the settings they have; all else stays as it is",
    )
    for name, field in SETTINGS.items():
        kind, nargs = (str, "+") if field.default == () else (type(field.default), None)
        about = f"{HELP[name]} (default: {field.default or 'none'})"
        flag = f"--{name.replace('_', '-')}"
        p.add_argument(flag, type=kind, nargs=nargs, default=argparse.SUPPRESS, help=about)
    return p


def _add_dataset(p: argparse.ArgumentParser) -> None:
    """Public data sets in their own layout, instead of `videos`."""
    g = p.add_argument_group("data sets (see python -m shards datasets)")
    g.add_argument("--dataset", metavar="NAME", help="data set, read in its own layout")
    g.add_argument("--root", type=Path, help="its folder")
    g.add_argument("--fold", "--set", type=_positive, help="official fold that gives the split")
    g.add_argument("--variant", metavar="NAME", help="which form of its frames is read")
    g.add_argument("--fps", type=float, help="rate of pictures whose data set gives none")
    g.add_argument("--context", type=int, default=0, help="frames kept around a micro-expression")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share between 0 and 1")
    return share


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    try:
        videos, collected, suited = _collected(args)
        given = {name: getattr(args, name) for name in SETTINGS if name in args}
        with _stoppable(), progress() as update:
            asked = {
                "annotations": None if collected else args.annotations,
                "collected": collected,
                "holdout": _holdout(args.holdout),
                "jobs": args.jobs,
                "restart": args.restart,
                "ray": args.ray,
                "progress": update,
            }
            if args.redo:
                report = _redone(_redo_with(videos, args, given, asked))
            else:
                report = _report(_ingest_with(videos, args, suited | given, asked))
    except IngestError as error:
        return _fail(error, 1)
    except OSError as error:
        status = _fail(error, 2)
        print(f"ingest: {unfinished(args.out)}", file=sys.stderr)
        return status
    except ValueError as error:
        return _fail(error, 2)
    except KeyboardInterrupt:
        return _fail(f"stopped; {unfinished(args.out)}", 130)
    print(report)
    return 0


def _ingest_with(
    videos: Path, args: argparse.Namespace, settings: dict[str, Any], asked: dict[str, Any]
) -> Summary:
    """A folder of shards from all videos."""
    return ingest(
        videos,
        args.out,
        settings=IngestSettings(**settings),
        shard_samples=args.shard_samples,
        shard_bytes=args.shard_bytes,
        max_rejected_share=args.max_rejected_share,
        overwrite=args.overwrite,
        **asked,
    )


def _redo_with(
    videos: Path, args: argparse.Namespace, given: dict[str, Any], asked: dict[str, Any]
) -> Redone:
    """The shards of a finished folder that ledgers name."""
    if args.overwrite:
        raise InputError(
            "--redo keeps the folder but for what it writes anew; leave out --overwrite"
        )
    return redo(videos, args.out, args.redo, settings=settings_of(args.out, given), **asked)


def _collected(args: argparse.Namespace) -> tuple[Path, Collected | None, dict[str, Any]]:
    """The folder, what a data set's adapter found in it, and the settings that suit it."""
    asked = {
        f"--{n}": getattr(args, n) or None for n in ("root", "fold", "variant", "fps", "context")
    }
    if args.dataset is None:
        if args.videos is None:
            raise InputError("name a folder of videos, or --dataset NAME --root DIR")
        for flag in (name for name, value in asked.items() if value is not None):
            raise InputError(f"{flag} goes with --dataset (see python -m shards datasets)")
        return args.videos, None, {}
    if args.root is None or args.videos is not None:
        raise InputError(f"--dataset {args.dataset} needs --root DIR, and no folder beside it")
    from shards.datasets import dataset
    from shards.datasets.collect import collect
    from shards.datasets.contract import Options

    chosen = dataset(args.dataset)
    options = Options(
        fold=args.fold,
        variant=args.variant,
        annotations=args.annotations,
        fps=args.fps,
        context=args.context,
    )
    found = collect(chosen, args.root, options)
    return args.root, found, {**chosen.settings, **found.settings}


def _fail(error: object, status: int) -> int:
    if isinstance(error, OSError) and error.strerror and not error.filename:
        error = error.strerror
    print(f"ingest: {error}", file=sys.stderr)
    return status


def _holdout(pairs: Sequence[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for pair in pairs:
        name, _, share = pair.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise InputError(f"--holdout {pair!r} is not NAME=SHARE, such as test=0.2") from None
        if not name or name == "train" or not 0 < shares[name] < 1:
            raise InputError(
                f"--holdout {pair!r}: a name besides train, and a share between 0 and 1"
            )
    if sum(shares.values()) >= 1:
        raise InputError("--holdout leaves nothing to train on; let the shares sum to less than 1")
    return shares


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, as a job scheduler sends it, cleans up like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _redone(r: Redone) -> str:
    lines = [
        f"{r.out}: {count(r.clips, 'clip')} made anew in {count(r.shards, 'shard')}, of which "
        f"{r.same} {'has' if r.same == 1 else 'have'} the same bytes as when first written"
    ]
    if r.rejected:
        lines.append(f"left out: {len(r.rejected)} (see {r.out / 'rejected.csv'})")
        lines += _commonest(r.rejected)
    return "\n".join([*lines, *(f"note: {note}" for note in r.notes)])


def _commonest(rows: Sequence[Refused]) -> list[str]:
    counts = commonest((row.reason for row in rows), 3)
    return [f"  {n} × {reason}" for reason, n in counts]


def _report(s: Summary) -> str:
    lines = [
        f"{s.out}: {count(s.clips, 'clip')} ({s.seconds:.0f} s, {count(s.frames, 'frame')}) from "
        f"{count(s.videos, 'video')}, {count(s.shards, 'shard')}, {s.bytes / 1e6:.1f} MB"
    ]
    if s.labels:
        lines.append(f"labels: {', '.join(s.labels)}")
    if s.splits:
        lines.append("splits: " + ", ".join(f"{name} {n}" for name, n in s.splits.items()))
    if s.damaged:
        lines.append(f"damaged files: {count(s.damaged, 'clip')} from their sound parts")
    if s.parts_left_out:
        lines.append(f"left out: {count(s.parts_left_out, 'part')} of videos without a face")
    if s.rejected:
        lines.append(f"rejected: {len(s.rejected)} (see {s.out / 'rejected.csv'})")
        lines += _commonest(s.rejected)
    return "\n".join([*lines, *(f"note: {note}" for note in s.notes)])
