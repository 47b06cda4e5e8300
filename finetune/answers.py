"""The command that asks a model about videos: prints the answers and writes them down.

Owns the output: a line a video, `predictions.json`, and a strip of frames a video. How an answer is
made is `predictor.py`.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tyro

from finetune.prediction import Prediction
from finetune.predictor_config import artifact_folder
from finetune.predictor_package import stream_predictions
from launch.config import parse_one, to_dict
from launch.fetching import fetched
from launch.job import command, write_json
from launch.provenance import provenance
from launch.record import closing_run, create_run, printable
from launch.store import store_uri
from launch.tracking import SilentTracker, Tracker, TrackingConfig


@dataclass(frozen=True)
class PredictConfig:
    """A model and videos."""

    model: tyro.conf.Positional[str]
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder with a packaged model."""
    videos: tyro.conf.Positional[tuple[str, ...]]
    """Video files."""
    out: str = "runs/prediction"
    """Folder for `predictions.json` and the pictures."""
    onset: float | None = None
    """Seconds into the video, for HSTA and FaceSleuth-R alone; None has onset and apex spotted."""
    apex: float | None = None
    """Seconds into the video; goes with onset."""
    detector_model: str | None = None
    """Model file of the detector that cropped the training clips, where that needs one (yunet); it
    must have the sha256 that ingest wrote down."""
    record: bool = True
    """Whether the answers become a run in MLflow, for which the right to write there is needed."""
    tracking: TrackingConfig = field(default_factory=lambda: TrackingConfig(experiment="predict"))
    """Where the model is registered, and the answers are recorded."""

    @property
    def marks(self) -> tuple[float, float] | None:
        """Onset and apex, where they were told. ValueError for one without the other."""
        if self.onset is None and self.apex is None:
            return None
        if self.onset is None or self.apex is None:
            raise ValueError("onset and apex go together: tell both in seconds, or neither")
        return self.onset, self.apex


def main(argv: Sequence[str]) -> int:
    """The command line of `launch/predict.py`; 1 where no video could be used."""
    config = parse_one(PredictConfig, argv, prog="launch/predict.py", description=str(__doc__))
    return command(lambda: run(config))


def run(config: PredictConfig) -> list[Prediction]:
    """Ask, print, write. Raises ValueError where not one video could be used."""
    if not config.videos:
        raise ValueError("no video was named: launch/predict.py MODEL VIDEO …")
    if config.marks and len(config.videos) > 1:
        raise ValueError(
            f"onset and apex are of one video, {len(config.videos)} are named: ask one by one"
        )
    missing = [video for video in config.videos if not Path(video).expanduser().is_file()]
    if missing:
        raise FileNotFoundError(
            f"no such video: {', '.join(missing)}; give paths of video files on this machine"
        )
    out = Path(config.out).expanduser().absolute()
    with fetched(config.model, uri=store_uri(config.tracking.uri, str(out)), beside=out) as model:
        answers = _answers(config, model, out)
    if all(answer.reason for answer in answers):
        raise ValueError(f"none of the {len(answers)} videos could be used; see the reasons above")
    return answers


def _answers(config: PredictConfig, model: Path, out: Path) -> list[Prediction]:
    if not (model / "MLmodel").is_file():
        raise ValueError(
            f"{model} is not a packaged model; give models:/NAME@ALIAS, or the folder `model` that "
            "fine-tuning wrote"
        )
    if _precropped(model):
        print(
            "note: this model learned from clips that were already cropped (detector none): it "
            "takes the middle square of a video for the face",
            file=sys.stderr,
        )
    out.mkdir(parents=True, exist_ok=True)
    how = {"marks": config.marks, "detector_model": config.detector_model}
    with recorded(config, out) as tracker:
        return ask(model, config.videos, out, tracker, **how)


def _precropped(model: Path) -> bool:
    file = artifact_folder(model) / "config.json"  # of the version that registered it
    return file.is_file() and json.loads(file.read_text())["face"]["detector"] == "none"


@contextmanager
def recorded(config: PredictConfig, out: Path) -> Iterator[Tracker | SilentTracker]:
    """A run's tracker, or one that keeps nothing."""
    if not config.record:
        yield SilentTracker()
        return
    handle = create_run(
        config.tracking, output=str(out), config=to_dict(config), origin=provenance(seed=0)
    )
    with closing_run(handle):
        yield Tracker(*handle, system_metrics_seconds=0)


def ask(
    model: Path,
    videos: Sequence[str],
    out: Path,
    tracker: Tracker | SilentTracker,
    **how: Any,
) -> list[Prediction]:
    """All answers; each is printed when it is known, its picture kept here and in MLflow. Those
    that were given are written down however the asking ends.

    Args:
        how: see `stream_predictions`.
    """
    answers: list[Prediction] = []
    try:
        for answer in stream_predictions(model, videos, pictures=True, **how):
            answers.append(answer)
            show(answer)
            if answer.picture is not None:
                name = f"{len(answers) - 1:03d}_{Path(answer.video).stem}"
                (out / f"{name}.png").write_bytes(answer.picture)
                tracker.figure(printable(name), answer.picture)
    finally:
        if answers:  # else those of another time stay
            write_json(out / "predictions.json", [plain(answer) for answer in answers])
            tracker.log_file(str(out / "predictions.json"))
        tracker.close()
    return answers


def show(answer: Prediction) -> None:
    """One line for people."""
    if answer.reason is not None:
        print(f"{answer.video}: {answer.reason}; {answer.action}", file=sys.stderr)
        return
    print(printable(f"{answer.video}: {'; '.join(told(answer))}"))


def told(answer: Prediction) -> list[str]:
    """What an answer says, in words."""
    parts = []
    if answer.probabilities:
        parts.append(_ranked(answer.probabilities, shown=3))
    if answer.units:
        parts.append(f"action units {_ranked(answer.units, shown=5)}")
    if answer.valence is not None and answer.arousal is not None:
        parts.append(f"valence {answer.valence:+.2f}, arousal {answer.arousal:+.2f}")
    if answer.importance:
        peak = max(zip(answer.importance, answer.times, strict=True))[1]
        parts.append(f"the most important frame is at {peak:.2f} s")
    if answer.onset is not None and answer.apex is not None:
        parts.append(
            f"onset at {answer.onset:.2f} s, apex at {answer.apex:.2f} s ({answer.apex_source})"
        )
    if answer.note is not None:
        parts.append(f"note: {answer.note}")
    return parts


def _ranked(shares: dict[str, float], *, shown: int) -> str:
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ranked[:shown])


def plain(answer: Prediction) -> dict:
    """An answer as JSON values, without its picture, which lies beside."""
    return {name: value for name, value in asdict(answer).items() if name != "picture"}
