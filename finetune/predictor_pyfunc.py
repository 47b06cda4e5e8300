"""The registered model's entry point, executed by MLflow when the model is loaded.

MLflow keeps this file as source (no pickle) and calls `load_context` and `predict`. Everything else
is `predictor.py`, shipped beside it; whether that is what runs is checked here.
"""

import base64
import binascii
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

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


class ExpressionModel(PythonModel):
    """Videos in, one answer a video out."""

    def load_context(self, context: PythonModelContext) -> None:
        self.predictor = Predictor.load(context.artifacts["predictor"])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] (declared as -> None there)
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> list[dict[str, Any]]:
        """Answer.

        Args:
            model_input: column `video`, or a single column: paths on this machine, bytes of files,
                or "data:video/mp4;base64,…".
            params: `pictures`: whether to add a PNG of the frames (base64) to each answer; `onset`
                and `apex`: seconds into the videos, for networks that look at these, both or
                neither (negative), in which case they are spotted; `detector_model`: the file, on
                this machine, of the detector that cropped the training clips.

        Returns:
            `finetune.predictor.Prediction` as JSON values, in the order of the rows.
        """
        params = params or {}
        pictures, marks = bool(params.get("pictures")), _marks(params)
        predictor = self._predictor(params.get("detector_model"))
        return [_answer(predictor, given, pictures, marks) for given in _column(model_input)]

    def _predictor(self, detector_model: str | None) -> Predictor:
        known = self.predictor
        if not detector_model:
            return known
        config = known.config.with_detector(detector_model)
        return Predictor(known.model, config, device=str(known.device))


def _answer(
    predictor: Predictor, given: Video, pictures: bool, marks: Marks | None
) -> dict[str, Any]:
    try:
        video = _decoded(given)
    except ValueError as error:
        return _json(Prediction("data", reason=str(error), action="send it again"))
    return _json(next(predictor.predict([video], pictures=pictures, marks=marks)))


def _marks(params: dict[str, Any]) -> Marks | None:
    """Onset and apex, where both are told."""
    onset, apex = (float(params.get(name, -1.0)) for name in ("onset", "apex"))
    if (onset < 0) != (apex < 0):
        raise ValueError("params tell one of onset and apex: tell both in seconds, or neither")
    return None if onset < 0 else (onset, apex)


def _column(table: pd.DataFrame) -> list[Video]:
    if "video" not in table and len(table.columns) != 1:
        raise ValueError(
            f"the table has columns {list(table.columns)}; pass the videos in a column `video`"
        )
    cells = table["video"] if "video" in table else table.iloc[:, 0]
    # {"video": [a, b]} arrives as one cell that holds the list.
    return [v for cell in cells for v in (cell if isinstance(cell, list | tuple) else [cell])]


def _decoded(given: Video) -> Video:
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
