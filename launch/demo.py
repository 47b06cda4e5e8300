"""The whole road in one command: videos → shards → pretraining → fine-tuning → registry → answer.

`make demo` runs this. Every step is a command that also works by hand; this script only starts them
in order, shows their progress, and keeps all that they make in one folder. Each run gets a folder
of its own in it (`run-01`, `run-02`, …), so it can be run again; videos and shards are kept.
"""

import csv
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path[:] = [str(_HERE.parent), *(p for p in sys.path if p and Path(p).resolve() != _HERE)]

from rich.markup import escape
from rich.table import Table

from launch.config import parse_one
from launch.demo_console import CONSOLE, ROOT, StepFailed, direct, step
from launch.demo_ray import local_head
from launch.signals import termination_raises
from shards.wording import count

WORKERS = 2
MODEL = "face-expression-demo"
SHARDS = ("python", "-m", "shards")
# Many people, short clips: what is learnt must hold for persons that were not trained on.
RENDERED = ("--subjects", "90", "--size", "256x256", "--seconds", "0.8", "--fps", "10")
# Small tight crops: decoding then costs little, and the demo's 64 pixels show the face alone.
CROPPED = ("--size", "64", "--margin", "0", "--min-frames", "8")

HELD_OUT = ("test=0.2", "val=0.15")  # where the annotations name no split


@dataclass(frozen=True)
class DemoConfig:
    """What the demo works on."""

    out: str = "runs/demo"
    """Folder that receives everything."""
    videos: str | None = None
    """Your own folder of videos; without it, labelled faces are rendered."""
    annotations: str | None = None
    """CSV with `path` and `label` columns for your videos: fine-tunes on them too."""
    recipe: str = "demo"
    """Recipe of both trainings: `demo` (minutes) or `debug` (seconds)."""


def main() -> int:
    """Run the road; 0 when a registered model has answered."""
    config = parse_one(DemoConfig, prog="launch/demo.py", description=str(__doc__))
    started = time.monotonic()
    out = Path(config.out).resolve()
    if config.videos and not Path(config.videos).is_dir():
        CONSOLE.print(f"[red]error:[/] no folder {config.videos}: name a folder of videos")
        return 2
    if config.annotations and not (config.videos and Path(config.annotations).is_file()):
        CONSOLE.print(f"[red]error:[/] {config.annotations}: name a CSV file, and VIDEOS with it")
        return 2
    try:
        with termination_raises():  # else the Ray head would outlive this process
            rows = road(config, out)
    except (StepFailed, RuntimeError, OSError) as failure:
        CONSOLE.print(f"[red]stopped:[/] {escape(str(failure))}")
        return 1
    except KeyboardInterrupt:
        CONSOLE.print(f"[red]interrupted[/]; what is finished stays in {out}")
        return 130
    closing(rows, out, time.monotonic() - started)
    return 0


def road(config: DemoConfig, out: Path) -> list[tuple[str, str, str]]:
    """All steps in order; returns the rows of the closing table: what, result, where."""
    out.mkdir(parents=True, exist_ok=True)
    run = next(p for i in range(1, 10_000) if not (p := out / f"run-{i:02d}").exists())
    (run / "logs").mkdir(parents=True)
    videos, annotations = source_videos(config, out)
    shards = out / ("shards" if config.videos is None else f"shards-{Path(config.videos).name}")
    ingest(videos, annotations, shards, reuse=config.videos is None)
    rows = [video_row(videos, shards), shard_row(shards)]
    tracking = ["--tracking.uri", f"sqlite:///{out / 'mlflow.db'}"]
    with local_head(cpus=WORKERS) as head:
        submit = ["ray", "job", "submit", "--address", head, "--working-dir", str(ROOT), "--"]
        every = ["--data.split", "None"] if annotations is None else []
        train(submit, "pretrain", config.recipe, shards, run, [*tracking, *every])
        rows.append(loss_row("pretraining", run / "pretrain"))
        if annotations is None:
            return rows
        encoder = ["--init", str(run / "pretrain/encoder"), "--tracking.register", MODEL]
        train(submit, "finetune", config.recipe, shards, run, [*tracking, *encoder])
        rows.append(loss_row("fine-tuning", run / "finetune"))
        clips = ["--shards", str(shards), "--split", "test", "--cluster.output", str(run / "test")]
        model = ["--model", f"models:/{MODEL}@champion"]
        command = [*submit, "python", "launch/evaluate.py", *model, *clips, *tracking]
        step("evaluate", command, run / "logs/evaluate.log", doing="reading and predicting")
    rows.append(accuracy_row(run / "test", "evaluation on the test split"))
    rows.append(predict(run, videos, shards, tracking))
    return rows


def source_videos(config: DemoConfig, out: Path) -> tuple[Path, Path | None]:
    """The user's own videos, or rendered faces (made once)."""
    if config.videos is not None:
        given = Path(config.annotations).resolve() if config.annotations else None
        return Path(config.videos).resolve(), given
    videos = out / "videos"
    if not (videos / "annotations.csv").exists():
        direct("render faces", [*SHARDS, "render", "--out", str(videos), *RENDERED])
    return videos, videos / "annotations.csv"


def ingest(videos: Path, annotations: Path | None, shards: Path, *, reuse: bool) -> None:
    """Videos → shards; with `reuse` not again where they are there and intact."""
    verify = [sys.executable, "-m", "shards", "verify", str(shards)]
    if reuse and subprocess.run(verify, cwd=ROOT, capture_output=True).returncode == 0:
        CONSOLE.print(f"[green]✓[/] ingest: intact shards in {shards} are used again")
        return
    command = [*SHARDS, "ingest", str(videos), "--out", str(shards), *CROPPED, "--overwrite"]
    if annotations is not None:
        command += ["--annotations", str(annotations)]
        command += [] if "split" in columns(annotations) else ["--holdout", *HELD_OUT]
    direct("ingest", command)


def columns(annotations: Path) -> list[str]:
    """Names of a CSV's columns."""
    with annotations.open(newline="", encoding="utf-8-sig") as file:
        return next(csv.reader(file), [])


def train(
    submit: list[str], stage: str, recipe: str, shards: Path, run: Path, extra: list[str]
) -> None:
    """One training as a Ray job of two workers."""
    where = ["--data.shards", str(shards), "--cluster.output", str(run / stage)]
    workers = ["--cluster.workers", str(WORKERS)]
    command = [*submit, "python", f"launch/{stage}.py", recipe, *where, *workers, *extra]
    step(stage, command, run / f"logs/{stage}.log")


def predict(run: Path, videos: Path, shards: Path, tracking: list[str]) -> tuple[str, str, str]:
    """Ask the registered model, in a fresh process, about a video of a held-out person."""
    chosen = unseen(shards)
    video = videos / chosen["path"]
    command = ["python", "launch/predict.py", f"models:/{MODEL}@champion", str(video)]
    command += ["--out", str(run / "prediction"), *tracking]
    step("predict", command, run / "logs/predict.log", doing="a fresh process loads the model")
    answer = json.loads((run / "prediction/predictions.json").read_text())[0]
    text = f"{answer['label']} ({answer['probability']:.0%}), labelled {chosen['label']}"
    return "prediction", text, str(run / "prediction")


def unseen(shards: Path) -> dict[str, Any]:
    """The record of a test clip, of an expression rather than of a neutral face."""
    lines = [line for p in sorted(shards.glob("*.index.jsonl")) for line in p.open()]
    records = [json.loads(line)["record"] for line in lines]
    tested = [record for record in records if record["split"] == "test"]
    return next((record for record in tested if record["label"] != "neutral"), tested[0])


def video_row(videos: Path, shards: Path) -> tuple[str, str, str]:
    """How many videos gave the clips."""
    lines = [line for p in sorted(shards.glob("*.index.jsonl")) for line in p.open()]
    paths = {json.loads(line)["record"]["path"] for line in lines}
    return "videos", f"{len(paths)} with a face", str(videos)


def shard_row(shards: Path) -> tuple[str, str, str]:
    """How many clips were kept and refused."""
    manifest = json.loads((shards / "manifest.json").read_text())
    refused = max(0, len((shards / "rejected.csv").read_text().splitlines()) - 1)
    tars = count(len(manifest["shards"]), "shard")
    clips = f"{manifest['samples']} clips in {tars}, {refused} refused"
    return "shards", clips, str(shards)


def loss_row(title: str, output: Path) -> tuple[str, str, str]:
    """Loss first → last of a training."""
    summary = json.loads((output / "summary.json").read_text())
    text = (
        f"{summary['steps']} steps, loss {summary['loss_first']:.3f} → {summary['loss_last']:.3f}"
    )
    return title, text, str(output)


def accuracy_row(folder: Path, title: str) -> tuple[str, str, str]:
    """Accuracy and mean recall against chance."""
    found = json.loads((folder / "metrics.json").read_text())
    chance = 1 / len(found["labels"])
    text = f"accuracy {found['war']:.0%} of {found['clips']:.0f} clips (chance {chance:.0%})"
    return title, text, str(folder)


def closing(rows: list[tuple[str, str, str]], out: Path, seconds: float) -> None:
    """What was made, where, and what to do next."""
    table = Table(title=f"made in {seconds / 60:.1f} minutes", title_justify="left")
    for column in ("what", "result", "where"):
        table.add_column(column, overflow="fold")
    for what, result, where in rows:
        table.add_row(what, escape(result), escape(where.replace(f"{Path.cwd()}{os.sep}", "")))
    CONSOLE.print(table)
    python = Path(sys.executable).parent
    store = f"sqlite:///{out / 'mlflow.db'}"
    ask = f"""  ask the model     {python}/python launch/predict.py \\
                      models:/{MODEL}@champion VIDEO --tracking.uri {store}
"""
    ask = ask if any(what == "prediction" for what, _, _ in rows) else ""
    CONSOLE.print(
        f"""next
  your own videos   make demo VIDEOS=folder [ANNOTATIONS=file.csv]
  MLflow page       {python}/mlflow ui --backend-store-uri {store}
{ask}  a real cluster    ray job submit --working-dir . -- python launch/pretrain.py vit_b \\
                      --data.shards /shared/shards --cluster.workers 64 \\
                      --cluster.output /shared/runs/vit_b""",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
