"""Which network recognises expressions from full to barely visible, and what it looks at.

    python -m benchmarks.recognition [--scale small] [--out FOLDER] [--models plain hsta]

Renders people at full strength, on whom every network is trained first, and other people whose
clips show four strengths. These are dealt into folds by person: each network is trained on and then
asked about the fold it has not seen. All of it with every seed, at one budget; the last step is
taken. Finished parts are not done again: the same command goes on after a stop. Rows a network and
strength go to benchmarks/results/recognition.csv; `python -m benchmarks.plot_recognition` draws
them. On one GPU a fold: `--scale full`.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.recognition_figures import Told, read, rows_of
from benchmarks.recognition_jobs import ask, train_first
from benchmarks.recognition_models import MODELS, SCALES, STRENGTHS, Part, Scale, config_of
from benchmarks.rows import append, processor
from finetune.config import FinetuneConfig
from finetune.models import build
from finetune.models.configs import privileged
from finetune.protocols import ProtocolConfig
from finetune.study import driver
from finetune.study.config import StudyConfig
from launch.cluster import ray_cluster
from launch.engine import RunConfig
from shards.frames import decode
from shards.index import index_shard
from shards.manifest import Manifest, write_manifest
from shards.spotting import spot

RESULTS = Path(__file__).parent / "results" / "recognition.csv"
CLASSES = ("neutral=", "happiness=positive")
CLASSES += tuple(f"{name}=negative" for name in ("anger", "disgust", "fear", "sadness"))
"""The three classes of the field; faces without an expression are left out."""


def main() -> int:
    """Do what is not done yet, append the rows."""
    options = _options()
    scale = SCALES[options.scale]
    out = Path(options.out or f"runs/recognition-{scale.name}").absolute()
    full = rendered(scale.first, out / "full", scale)
    faint = rendered(scale.then, out / "faint", scale)
    classes = of_three_classes(full)
    strengths = strengths_of(faint)
    spotted = with_spotted_marks(faint)
    told: dict[str, list[Told]] = {}
    results: dict[str, list[dict]] = {}
    with ray_cluster(silent=True):
        for seed in range(options.seeds or scale.seeds):
            where = [out / model / f"seed{seed}" for model in options.models]
            made = [config_of(model, scale.first, scale.name) for model in options.models]
            firsts = [
                first_of(config, full, classes, folder, seed, options.steps)
                for config, folder in zip(made, where, strict=True)
            ]
            train_first(firsts)
            for model, first, folder in zip(options.models, firsts, where, strict=True):
                study = study_of(model, scale, folder / "study", faint, first, options)
                results.setdefault(model, []).extend(train(study))
                folds = _folds(Path(study.out))
                ask(folds, study.finetune, spotted)
                for fold in folds:
                    found = read(fold, seed=seed, strengths=strengths)
                    told.setdefault(model, []).extend(found)
    for model, rows in rows_of(told, STRENGTHS).items():
        made = common(model, scale, results[model])
        print(f"{model}: UF1 {rows[0]['uf1']} ({rows[0]['uf1_low']} to {rows[0]['uf1_high']})")
        if options.steps is None:
            append(RESULTS, [made | row for row in rows])
    return 0


def rendered(part: Part, out: Path, scale: Scale) -> Path:
    """The shards of one set of people, made if they are not there."""
    videos, shards = out / "videos", out / "shards"
    if (videos / "render.json").is_file():
        check_rendered(json.loads((videos / "render.json").read_text()), part, scale, videos)
    else:
        size = f"{scale.picture}x{scale.picture}"
        made = ["--subjects", str(part.people), "--clips", str(part.clips), "--size", size]
        made += ["--seconds", "1", "--fps", str(part.fps), "--splits", "all=1"]
        made += ["--seed", str(part.seed), "--strengths", *part.strengths]
        _shards("render", "--out", str(videos), *made)
    if not (shards / "manifest.json").is_file():
        _ingest(videos, shards, videos / "annotations.csv", scale)
    return shards


def check_rendered(found: dict[str, Any], part: Part, scale: Scale, videos: Path) -> None:
    """ValueError where the videos that are there are those of another scale."""
    wanted = {
        "subjects": part.people,
        "clips_per_subject": part.clips,
        "seed": part.seed,
        "size": [scale.picture, scale.picture],
        "fps": part.fps,
        "strengths": [float(strength) for strength in part.strengths],
    }
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ValueError(
                f"{videos} has {name} {found.get(name)}, scale {scale.name} needs {value}: name "
                "another --out, or remove that folder"
            )


def strengths_of(shards: Path) -> dict[str, str]:
    """Each clip's strength, by its key."""
    with (shards.parent / "videos" / "annotations.csv").open(newline="") as file:
        strength = {row["path"]: row["strength"] for row in csv.DictReader(file)}
    manifest = Manifest.open(shards)
    rows = [row for i in range(len(manifest.shards)) for row in manifest.index(i)]
    return {row.key: strength[row.record.path] for row in rows}


def with_spotted_marks(shards: Path) -> Path:
    """The same clips with onset and apex as `shards.spotting` finds them, in other shards."""
    out = shards.parent / "shards-spotted"
    if (out / "manifest.json").is_file():
        return out
    out.mkdir(exist_ok=True)
    manifest, made = Manifest.open(shards), []
    for shard in manifest.shards:
        with tarfile.open(shards / shard.name) as given, tarfile.open(out / shard.name, "w") as new:
            spotted = {}
            for member in given:
                file = given.extractfile(member)
                data = file.read() if file is not None else b""
                if member.name.endswith(".mp4"):
                    onset, apex = spot(decode(data, np.arange))
                    spotted = {"onset": onset, "apex": apex, "offset": None}
                else:
                    record = json.loads(data) | spotted | {"apex_source": "spotted"}
                    data = json.dumps(record).encode()
                    member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        made.append(index_shard(out / shard.name))
    about = json.loads((shards / "manifest.json").read_text())
    keep = {name: about[name] for name in ("labels", "clip", "created_by")}
    write_manifest(out, made, **keep)
    return out


def of_three_classes(shards: Path) -> Path:
    """A split file that gives the clips of some shards the classes of the second training."""
    found = shards.parent / "classes.csv"
    named = dict(name.split("=") for name in CLASSES)
    manifest = Manifest.open(shards)
    rows = [row for i in range(len(manifest.shards)) for row in manifest.index(i)]
    with found.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset", "key", "split", "label"])
        for row in rows:
            label = row.record.label or ""
            if kind := named.get(label, label):
                writer.writerow([row.record.dataset, row.key, "train", kind])
    return found


def first_of(
    config: FinetuneConfig, shards: Path, classes: Path, out: Path, seed: int, steps: int | None
) -> FinetuneConfig:
    """The first training of a network: expressions at full strength."""
    run = replace(config.run, seed=seed)
    data = replace(config.data, shards=(str(shards),), splits=str(classes), split="train")
    return replace(
        config,
        data=replace(data, seed=seed),
        run=shortened(run, steps),
        cluster=replace(config.cluster, output=str(out / "first")),
        validation_split=None,
    )


def shortened(run: RunConfig, steps: int | None) -> RunConfig:
    """With another number of steps, if there is one."""
    if steps is None:
        return run
    return replace(run, steps=steps, save_every=steps, eval_every=steps)


def study_of(
    model: str,
    scale: Scale,
    out: Path,
    shards: Path,
    first: FinetuneConfig,
    options: argparse.Namespace,
) -> StudyConfig:
    """Folds by person, the same for every network and seed; the last step of each."""
    config = config_of(model, scale.then, scale.name)
    seed = first.run.seed
    return StudyConfig(
        replace(
            config,
            data=replace(config.data, shards=(str(shards),), seed=seed),
            run=shortened(replace(config.run, seed=seed), options.steps),
            init=str(Path(first.cluster.output, "last")),
        ),
        ProtocolConfig(protocol="kfold", k=scale.folds, rename=CLASSES, validation_share=0.0),
        out=str(out),
        select_last=True,
        accept_code=options.accept_code,
    )


def train(config: StudyConfig) -> list[dict]:
    """Run what is not finished of a study; what each fold's result says."""
    driver.run(config)
    return [json.loads((f / "result.json").read_text()) for f in _folds(Path(config.out))]


def common(model: str, scale: Scale, results: Sequence[dict]) -> dict[str, object]:
    """What every row of a network says of how it was made."""
    config = config_of(model, scale.then, scale.name)
    network = build(config.encoder, config.outputs(("negative", "positive", "surprise")))
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "torch": torch.__version__,
        "scale": scale.name,
        "model": model,
        "told": " ".join(privileged(config.encoder)),
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflop": f"{network.flops() / 1e9:.4f}",
        "first_people": scale.first.people,
        "first_steps": scale.first.steps,
        "steps": scale.then.steps,
        "batch": config.run.global_batch,
        "folds": scale.folds,
        "seconds_a_fold": f"{min(fold['seconds'] for fold in results):.0f}",
        "code": " ".join(sorted({fold["code"][:12] for fold in results})),
    }


def _folds(folder: Path) -> list[Path]:
    """The folds' folders, in their order."""
    return sorted((folder / "folds").iterdir())


def _ingest(videos: Path, shards: Path, annotations: Path, scale: Scale) -> None:
    cut = ["--size", str(scale.size), "--margin", "0", "--min-frames", "8", "--overwrite"]
    _shards("ingest", str(videos), "--out", str(shards), *cut, "--annotations", str(annotations))


def _shards(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "shards", *words], check=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", choices=tuple(SCALES), default="small")
    parser.add_argument("--out", help="folder of everything; runs/recognition-SCALE if left out")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, help="instead of the scale's own")
    parser.add_argument("--steps", type=int, help="instead of the scale's own: no row is written")
    parser.add_argument("--accept-code", action="store_true", help="keep folds of other code")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
