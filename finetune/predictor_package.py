"""The predictor as a model that MLflow runs anywhere: packing it, and asking one that was packed.

Owns which code and which requirements travel with a model, its signature, and the process that asks
it. Refuses to know the registry (`launch/registry.py`) and how an answer is made (`predictor.py`).
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetune.prediction import Prediction
from finetune.predictor import Marks, Video

UNTOLD = -1.0  # a moment that is not known; parameters of MLflow have a type, and None has none
ROOT = Path(__file__).resolve().parent.parent
CODE = ("kernels", "mira", "shards", "finetune")
ENTRY = Path(__file__).with_name("predictor_pyfunc.py")
REQUIREMENTS = (
    "torch",
    "numpy",
    "pandas",
    "safetensors",
    "av",
    "opencv-python-headless",
    "matplotlib",
)

# Runs in a process of its own. Whatever libraries print goes to stderr; answers have a channel.
ASK = """
import base64, json, os, sys
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
import mlflow.pyfunc
question = json.load(sys.stdin)
model = mlflow.pyfunc.load_model(question["model"])
for kind, value in question["videos"]:
    video = value if kind == "path" else base64.b64decode(value)
    [answer] = model.predict([video], params=question["params"])
    print(json.dumps(answer), file=answers)
"""


def package(folder: str | Path, into: str | Path) -> Path:
    """Wrap a predictor's artifact folder as a complete MLflow model.

    The model is source and safetensors, no pickle. It carries our packages and names the versions
    of the others, so that it needs neither this checkout nor an installation of it.

    Args:
        folder: written by `finetune.predictor.save_predictor`.
        into: appears when complete; replaced if it exists.
    """
    folder, into = Path(folder), Path(into)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as aside:
        code = _staged_code(Path(aside, "code"))
        _save_model(folder, code, Path(aside, "model"))
        shutil.rmtree(into, ignore_errors=True)
        return Path(aside, "model").rename(into)


def predict_videos(
    model: str | Path,
    videos: Sequence[Video],
    **options: Any,
) -> list[Prediction]:
    """Ask a packaged or registered model; all answers of `stream_predictions`, in order."""
    return list(stream_predictions(model, videos, **options))


def stream_predictions(
    model: str | Path,
    videos: Sequence[Video],
    *,
    tracking_uri: str | None = None,
    pictures: bool = False,
    marks: Marks | None = None,
    detector_model: str | None = None,
) -> Iterator[Prediction]:
    """Ask a model in a process of its own, so that it runs with the code it was packed with.

    Args:
        model: folder of `package`, or any URI that MLflow loads (`models:/NAME@ALIAS`).
        videos: paths, or bytes of files.
        tracking_uri: store of a URI; not needed for a folder.
        pictures: add a PNG of the frames with their importance to each answer.
        marks: onset and apex, of a network that looks at them; None has them spotted.
        detector_model: file of the detector that cropped the training clips, if that needs one.

    Yields:
        answers in order, each when it is known.

    Raises:
        ValueError: the model cannot be loaded or fails; with what its process printed.
    """
    params: dict[str, Any] = {"pictures": pictures}
    if marks is not None:  # models that were packed before take no such parameters
        params |= {"onset": marks[0], "apex": marks[1]}
    if detector_model is not None:
        params["detector_model"] = os.path.abspath(os.path.expanduser(detector_model))
    question = {
        "model": str(model),
        "videos": [_sent(video) for video in videos],
        "params": params,
    }
    with tempfile.TemporaryFile("w+") as printed, _process(printed, tracking_uri) as process:
        assert process.stdin and process.stdout
        try:
            with process.stdin as pipe:
                json.dump(question, pipe)
        except BrokenPipeError:
            pass  # it ended before it read; why, stands in what it printed
        answered = 0
        for line in process.stdout:
            answered += 1
            yield _received(json.loads(line))
        if process.wait():
            printed.seek(0)
            text = printed.read()[-4000:].strip() or f"exit status {process.returncode}"
            reason = text.splitlines()[-1]
            raise ValueError(
                f"the model {model} failed, with {answered} of {len(videos)} videos answered: "
                f"{reason}\nIts process printed:\n{text}"
            )


def _process(printed: Any, tracking_uri: str | None) -> subprocess.Popen[str]:
    env = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    if tracking_uri is not None:
        env |= {"MLFLOW_TRACKING_URI": tracking_uri, "MLFLOW_REGISTRY_URI": tracking_uri}
    # -P: the current folder, which may be a checkout, does not come before the model's own code.
    return subprocess.Popen(
        [sys.executable, "-P", "-c", ASK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=printed,
        text=True,
        env=env,
    )


def _sent(video: Video) -> tuple[str, str]:
    if isinstance(video, bytes):
        return "bytes", base64.b64encode(video).decode()
    return "path", os.path.abspath(os.path.expanduser(video))


def _received(data: dict[str, Any]) -> Prediction:
    lists = {name: tuple(data[name]) for name in ("times", "importance")}
    box = tuple(data["box"]) if data["box"] else None
    picture = base64.b64decode(data["picture"]) if data["picture"] else None
    return Prediction(**{**data, **lists, "box": box, "picture": picture})


def _staged_code(into: Path) -> list[str]:
    """Copies of our packages without caches; paths for `code_paths`."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "tests")
    for name in CODE:
        shutil.copytree(ROOT / name, into / name, ignore=ignored)
    return [str(into / name) for name in CODE]


def _save_model(folder: Path, code: list[str], into: Path) -> None:
    from mlflow.pyfunc import save_model

    with warnings.catch_warnings():
        # An example would be stored with the model: a video, and faces are nobody's example.
        warnings.filterwarnings("ignore", message=".*input example was not provided.*")
        save_model(
            into,
            python_model=str(ENTRY),
            artifacts={"predictor": str(folder)},
            code_paths=code,
            pip_requirements=[f"{name}=={_version(name)}" for name in REQUIREMENTS],
            signature=_signature(),
        )


def _version(name: str) -> str:
    """Without a local part such as +cpu, which no package index has."""
    return importlib.metadata.version(name).partition("+")[0]


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Map

    text, number, numbers = DataType.string, DataType.double, Array(DataType.double)
    optional = {"label": text, "probability": number, "probabilities": Map(number)}
    optional |= {"units": Map(number), "valence": number, "arousal": number}
    optional |= {"onset": number, "apex": number, "apex_source": text}
    optional |= {"reason": text, "action": text, "note": text, "picture": text}
    answers: list[Any] = [ColSpec(text, "video")]
    answers += [ColSpec(numbers, name) for name in ("times", "importance", "box")]
    answers += [ColSpec(kind, name, required=False) for name, kind in optional.items()]
    # Without inputs: MLflow would take lists for a table that lacks names, or drop named columns.
    return ModelSignature(
        outputs=Schema(answers),
        params=ParamSchema(
            [
                ParamSpec("pictures", DataType.boolean, False),
                ParamSpec("onset", number, UNTOLD),
                ParamSpec("apex", number, UNTOLD),
                ParamSpec("detector_model", text, ""),
            ]
        ),
    )
