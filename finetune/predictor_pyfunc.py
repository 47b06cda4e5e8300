"""The registered model's entry point, executed by MLflow when the model is loaded.

MLflow keeps this file as source (no pickle) and calls `load_context` and `predict`. Everything else
is `predictor.py`, shipped beside it; whether that is what runs is checked here.
"""

import base64
import binascii
import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


def _check_code(own: Path) -> None:
    """ValueError where this process runs other code than the model brings in the folder `own`.

    MLflow puts that folder first on the path, of which a package that was imported before takes no
    notice: a second model would answer with the code of the first.
    """
    for brought in sorted(file.parent for file in own.glob("*/__init__.py")):
        [running] = import_module(brought.name).__path__
        for file in sorted(brought.rglob("*.py")):
            other = Path(running, file.relative_to(brought))
            if not other.is_file() or other.read_bytes() != file.read_bytes():
                raise ValueError(
                    f"this process runs the package {brought.name} of {running}, and the model in "
                    f"{own.parent} brings another {file.relative_to(own)}: load it in a process of "
                    "its own, or ask it with launch/predict.py, which starts one"
                )


_check_code(Path(__file__).with_name("code"))

from finetune.prediction import Prediction
from finetune.predictor import Marks, Predictor, Video

EMBEDDED = "data:"  # data:video/mp4;base64,… as in RFC 2397
MOMENTS = ("onset", "apex")


class ExpressionModel(PythonModel):
    """Videos in, one answer a video out."""

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = Predictor.load(context.artifacts["predictor"])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] (declared as -> None there)
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> list[dict[str, Any]]:
        """Answer. (MLflow hands over any form, and warns of any other annotation than a table's.)

        Args:
            model_input: videos: paths on this machine, bytes of files, or
                "data:video/mp4;base64,…"; one, a list, or a table with the column `video` or a
                single column. A table may have the columns `onset` and `apex`: seconds into each
                video, for networks that look at these, both or neither (empty), in which case they
                are spotted.
            params: `pictures`: whether to add a PNG of the frames (base64) to each answer; `onset`
                and `apex` of a single video, neither if negative; `detector_model`: the file, on
                this machine, of the detector that cropped the training clips.

        Returns:
            `finetune.predictor.Prediction` as JSON values, in the order of the rows.

        Raises:
            ValueError: other columns, one of onset and apex, or one pair for several videos.
        """
        params = params or {}
        asked = _asked(model_input, _marks(params.get("onset"), params.get("apex")))
        predictor, pictures = self._predictor(params.get("detector_model")), params.get("pictures")
        return [_answer(predictor, given, bool(pictures), marks) for given, marks in asked]

    def _predictor(self, detector_model: str | None) -> Predictor:
        known = self.predictor
        if not detector_model:
            return known
        config = known.config.with_detector(detector_model)
        return Predictor(known.model, config, device=str(known.device))


def _answer(
    predictor: Predictor, given: Any, pictures: bool, marks: Marks | None
) -> dict[str, Any]:
    try:
        video = _decoded(given)
    except ValueError as error:
        return _json(Prediction("data", reason=str(error), action="send it again"))
    return _json(next(predictor.predict([video], pictures=pictures, marks=marks)))


def _asked(given: Any, marks: Marks | None) -> list[tuple[Any, Marks | None]]:
    """Each video with its onset and apex: those of its row, or `marks`, of a single one."""
    columns = _columns(given)
    if "video" not in columns or not set(columns) <= {"video", *MOMENTS}:
        raise ValueError(
            f"the table has the columns {', '.join(columns)}; pass the videos in a column `video`, "
            "what is known of them in `onset` and `apex`, and nothing else"
        )
    videos = columns["video"]
    if marks is not None and len(videos) > 1:
        raise ValueError(
            f"params tell the onset and apex of one video, and {len(videos)} are asked about: tell "
            "them in columns `onset` and `apex` of the table"
        )
    empty = [None] * len(videos)
    rows = zip(videos, *(columns.get(name, empty) for name in MOMENTS), strict=True)
    return [(video, _marks(onset, apex) or marks) for video, onset, apex in rows]


def _columns(given: Any) -> dict[str, list[Any]]:
    """What was handed over, as columns by name. Videos stay out of pandas where they came without
    it: it takes no names that are not UTF-8."""
    if isinstance(given, np.ndarray) and given.ndim > 1:
        given = pd.DataFrame(given)
    if isinstance(given, list) and given and isinstance(given[0], dict):
        given = pd.DataFrame(given)
    if isinstance(given, pd.DataFrame | dict):
        named = {str(name): _cells(given[name]) for name in given}
        return {"video": next(iter(named.values()))} if len(named) == 1 else named
    return {"video": _cells(given)}


def _cells(column: Any) -> list[Any]:
    """The cells of a column, or a single one; a cell that holds a list is as many."""
    if isinstance(column, np.ndarray | pd.Series):
        column = column.tolist()
    if not isinstance(column, list | tuple):
        return [column]
    return [v for cell in column for v in (cell if isinstance(cell, list | tuple) else [cell])]


def _marks(onset: Any, apex: Any) -> Marks | None:
    """Onset and apex, where both are told."""
    known = [float(told) for told in (onset, apex) if not pd.isna(told) and float(told) >= 0]
    if len(known) == 1:
        raise ValueError("one of onset and apex is told: tell both in seconds, or neither")
    return (known[0], known[1]) if known else None


def _decoded(given: Any) -> Video:
    given = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(given, str | bytes):
        raise ValueError(f"is a {type(given).__name__}, not a path, bytes or base64 data")
    if isinstance(given, str) and given.startswith(EMBEDDED):
        try:
            return base64.b64decode(given.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise ValueError(f"is not base64 ({error})") from error
    return given


def _json(answer: Prediction) -> dict[str, Any]:
    picture = answer.picture and base64.b64encode(answer.picture).decode()
    lists = {name: list(getattr(answer, name) or ()) for name in ("times", "importance", "box")}
    return asdict(answer) | lists | {"picture": picture}


set_model(ExpressionModel())
