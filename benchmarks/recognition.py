"""Which network recognises expressions from full to barely visible, and what it looks at.

    python -m benchmarks.recognition [--scale small] [--out FOLDER] [--models plain hsta]

Renders people whose clips show four strengths, deals them into five folds by person, trains every
network on each fold for the same number of steps (fold i with seed i, the last step is taken), and
asks it about the people it has not seen. Finished parts are not done again: the same command goes
on after a stop. Rows a network and strength go to benchmarks/results/recognition.csv;
`python -m benchmarks.plot_recognition` draws them. On one GPU a fold: `--scale full`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recognition_models import MODELS, SCALES, Scale, config_of
from benchmarks.rows import append, processor
from finetune.bootstrap import Interval, mean_interval, paired_differences
from finetune.models import build
from finetune.models.configs import privileged
from finetune.probes import temporal
from finetune.probes.temporal import TemporalConfig
from finetune.protocols import ProtocolConfig
from finetune.study import driver
from finetune.study.config import StudyConfig
from finetune.study.pooled import Answer, pool
from launch.cluster import ClusterConfig
from launch.tracking import TrackingConfig
from shards.manifest import Manifest

RESULTS = Path(__file__).parent / "results" / "recognition.csv"
STRENGTHS = ("1", "0.5", "0.3", "0.15")
"""Of the rendered expressions; 0.3 and below are brief, as micro-expressions are."""
CLASSES = ("neutral=", "happiness=positive")
CLASSES += tuple(f"{name}=negative" for name in ("anger", "disgust", "fear", "sadness"))
"""The three classes of the field; faces without an expression are left out."""
FOLDS = 5


@dataclass(frozen=True)
class Told:
    """What a network said of a clip it was not trained on."""

    fold: str
    clip: str
    subject: str
    label: str
    as_is: str
    shuffled: str
    """Of its frames in a random order; "" for a network without frames."""
    strength: str
    uniform: float | None
    inside: float | None
    hit: float | None
    apex: str
    """The tubelet that holds the apex, by its place; "" where none does."""


def main() -> int:
    """Do what is not done yet, append the rows."""
    options = _options()
    scale = SCALES[options.scale]
    out = Path(options.out or f"runs/recognition-{scale.name}").absolute()
    shards, strengths = rendered(scale, out)
    rows = []
    for model in options.models:
        folder = out / model
        config = study_of(model, scale, folder, shards, options)
        results = train(config)
        told = [t for n in range(FOLDS) for t in asked(folder, shards, n, strengths)]
        rows += rows_of(model, scale, told, results, steps=options.steps or scale.steps)
        print(f"{model}: UF1 {float(rows[-len(STRENGTHS) - 1]['uf1']):.3f} over all strengths")
    if options.steps is None:
        append(RESULTS, rows)
    return 0


def rendered(scale: Scale, out: Path) -> tuple[Path, dict[str, str]]:
    """The shards, made if they are not there, and each clip's strength by its key."""
    videos, shards = out / "videos", out / "shards"
    if (videos / "render.json").is_file():
        check_rendered(json.loads((videos / "render.json").read_text()), scale, videos)
    else:
        size = f"{scale.picture}x{scale.picture}"
        made = ["--subjects", str(scale.people), "--clips", str(scale.clips), "--size", size]
        made += ["--seconds", "1", "--fps", str(scale.fps), "--splits", "all=1"]
        _shards("render", "--out", str(videos), *made, "--strengths", *STRENGTHS)
    annotations = videos / "annotations.csv"
    if not (shards / "manifest.json").is_file():
        cut = ["--size", str(scale.size), "--margin", "0", "--min-frames", "8", "--overwrite"]
        _shards(
            "ingest", str(videos), "--out", str(shards), *cut, "--annotations", str(annotations)
        )
    with annotations.open(newline="") as file:
        strength = {row["path"]: row["strength"] for row in csv.DictReader(file)}
    manifest = Manifest.open(shards)
    rows = [row for i in range(len(manifest.shards)) for row in manifest.index(i)]
    return shards, {row.key: strength[row.record.path] for row in rows}


def check_rendered(found: dict[str, Any], scale: Scale, videos: Path) -> None:
    """ValueError where the videos that are there are those of another scale."""
    wanted = {
        "subjects": scale.people,
        "clips_per_subject": scale.clips,
        "size": [scale.picture, scale.picture],
        "fps": scale.fps,
        "strengths": [float(strength) for strength in STRENGTHS],
    }
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"{videos} has {name} {found.get(name)}, scale {scale.name} needs {value}: name "
                "another --out, or remove that folder"
            )


def study_of(
    model: str, scale: Scale, out: Path, shards: Path, options: argparse.Namespace
) -> StudyConfig:
    """Five folds by person, the last step of each."""
    return StudyConfig(
        config_of(model, scale, shards=str(shards), steps=options.steps),
        ProtocolConfig(protocol="kfold", k=FOLDS, rename=CLASSES, validation_share=0.0),
        out=str(out),
        select_last=True,
        vary_seed=True,
        accept_code=options.accept_code,
    )


def train(config: StudyConfig) -> list[dict]:
    """Run what is not finished of a study; what each fold's result says."""
    driver.run(config)
    return [json.loads((f / "result.json").read_text()) for f in _folds(Path(config.out))]


def asked(folder: Path, shards: Path, number: int, strengths: dict[str, str]) -> list[Told]:
    """What the network of a fold says of its test clips."""
    fold = _folds(folder)[number]
    found = fold / "temporal" / "clips.csv"
    if not found.is_file():
        temporal.run(
            TemporalConfig(
                model=str(fold / "run" / "last"),
                shards=(str(shards),),
                splits=str(fold / "split.csv"),
                split="test",
                loader_workers=0,
                seed=number,
                cluster=ClusterConfig(workers=0, output=str(found.parent)),
                tracking=TrackingConfig(experiment="recognition"),
            )
        )
    with found.open(newline="") as file:
        return [_told(row, fold.name, strengths) for row in csv.DictReader(file)]


def rows_of(
    model: str, scale: Scale, told: Sequence[Told], results: Sequence[dict], *, steps: int
) -> list[dict[str, object]]:
    """A row for all strengths, and one for each."""
    config = config_of(model, scale, shards="-")
    network = build(config.encoder, config.outputs(("negative", "positive", "surprise")))
    common = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "torch": torch.__version__,
        "scale": scale.name,
        "model": model,
        "told": " ".join(privileged(config.encoder)),
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflop": f"{network.flops() / 1e9:.4f}",
        "steps": steps,
        "batch": config.run.global_batch,
        "folds": len(results),
        "seconds_a_fold": f"{np.median([fold['seconds'] for fold in results]):.0f}",
        "code": " ".join(sorted({fold["code"][:12] for fold in results})),
    }
    rows = [common | _figures("all", told)]
    for strength in STRENGTHS:
        rows.append(common | _figures(strength, [t for t in told if t.strength == strength]))
    return rows


def _figures(strength: str, told: Sequence[Told]) -> dict[str, object]:
    """UF1, UAR and WAR with intervals over people; where the network looks; what order is worth."""
    labels = sorted({t.label for t in told})
    answers = [Answer(t.fold, t.clip, t.label, t.as_is, t.subject, t.subject) for t in told]
    pooled = pool(answers, labels)
    low, high = pooled["interval"]["uf1"]
    each = [pool([a for a in answers if a.fold == f], labels)["uf1"] for f in _names(told)]
    found: dict[str, object] = {"strength": strength, "clips": len(told)}
    found |= {"people": pooled["units"]}
    found |= {"uf1": f"{pooled['uf1']:.4f}", "uf1_low": f"{low:.4f}", "uf1_high": f"{high:.4f}"}
    found |= {"uf1_worst_fold": f"{min(each):.4f}", "uf1_best_fold": f"{max(each):.4f}"}
    found |= {"uar": f"{pooled['uar']:.4f}", "war": f"{pooled['war']:.4f}"}
    for name in ("hit", "inside", "uniform"):
        found |= _interval(name, _mean(told, name))
    found |= {"constant_hit": _constant(told)}
    return found | _interval("shuffled", _shuffled(told, labels))


def _shuffled(told: Sequence[Told], labels: Sequence[str]) -> Interval | None:
    """By how much UF1 changes when the frames come in a random order."""
    asked = [t for t in told if t.shuffled]
    if not asked:
        return None
    at = {label: i for i, label in enumerate(labels)}
    truth, before, after = (
        np.array([at[getattr(t, name)] for t in asked]) for name in ("label", "as_is", "shuffled")
    )
    people = [t.subject for t in asked]
    return paired_differences(truth, before, after, people, classes=len(labels), seed=0)["f1"]


def _constant(told: Sequence[Told]) -> str:
    """How often the apex lies in the tubelet where it lies most: a hit without looking."""
    places = [t.apex for t in told if t.apex]
    return f"{max(Counter(places).values()) / len(places):.4f}" if places else ""


def _mean(told: Sequence[Told], name: str) -> Interval | None:
    known = [t for t in told if getattr(t, name) is not None]
    values = [getattr(t, name) for t in known]
    return mean_interval(values, [t.subject for t in known], seed=0) if known else None


def _interval(name: str, found: Interval | None) -> dict[str, object]:
    value, low, high = found or (None, None, None)
    each = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {key: "" if number is None else f"{number:.4f}" for key, number in each.items()}


def _told(row: dict[str, str], fold: str, strengths: dict[str, str]) -> Told:
    def number(name: str) -> float | None:
        return float(row[name]) if row[name] not in ("", "nan") else None

    return Told(
        fold=fold,
        clip=row["key"],
        subject=row["subject"],
        label=row["label"],
        as_is=row["as_is"],
        shuffled=row.get("shuffled", ""),
        strength=strengths[row["key"]],
        uniform=number("uniform"),
        inside=number("inside"),
        hit=number("hit"),
        apex=row["apex_place"],
    )


def _names(told: Sequence[Told]) -> list[str]:
    return sorted({t.fold for t in told})


def _folds(folder: Path) -> list[Path]:
    """The folds' folders, in their order."""
    return sorted((folder / "folds").iterdir())


def _shards(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "shards", *words], check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", choices=tuple(SCALES), default="small")
    parser.add_argument("--out", help="folder of everything; runs/recognition-SCALE if left out")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", type=int, help="instead of the scale's own: no row is written")
    parser.add_argument("--accept-code", action="store_true", help="keep folds of other code")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
