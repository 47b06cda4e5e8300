"""Face detectors, one small class each, and how a video is looked through with one.

A detector takes a picture, uint8 [h, w, 3] RGB, and returns boxes, float [n, 5]: left, top, width,
height in its pixels, and a confidence of 0 … 1; from `SURE` on it needs no second witness. Knows
neither videos nor clips. Another detector is one more class, its line in `DETECTORS` and its name
in `settings.DetectorName`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import cv2
import numpy as np

from shards.ingest.models import WHERE, ModelError, model_bytes

SURE = 0.9
YUNET_LEAST = 0.6
"""Least score of a face that YuNet reports."""
DETECT_SIDE = 480
"""Longer side of the picture a detector looks at."""
TILT = 28
"""Degrees; the frontal cascade itself covers about 15 to each side."""
WHOLE_EVERY = 6
"""Looks after which the whole picture is searched again, for other people."""
NEAR = 2.4
"""Side of the searched part, in widths of the face that was there a moment ago."""


class Detector(Protocol):
    def __call__(self, rgb: np.ndarray, *, sure: bool = False, least: float = 0) -> np.ndarray:
        """Boxes of width `least` pixels or more; `sure` skips what costs more and says less."""
        ...


class Haar:
    """OpenCV's cascades, part of its package: frontal, then tilted heads, then weaker evidence."""

    def __init__(self) -> None:
        self._frontal = _cascade("haarcascade_frontalface_alt2.xml")
        self._second = _cascade("haarcascade_frontalface_default.xml")
        self._profile = _cascade("haarcascade_profileface.xml")

    def __call__(self, rgb: np.ndarray, *, sure: bool = False, least: float = 0) -> np.ndarray:
        gray, scale = _small_gray(rgb)
        smallest = round(max(20.0, min(gray.shape) / 14, least * scale))
        found = _search(self._frontal, gray, smallest, step=1.15, votes=3, confidence=1.0)
        for search in () if sure else (self._tilted, self._weaker):
            if not len(found):
                found = search(gray, smallest)
        found[:, :4] /= scale
        return _outermost(found)

    def _tilted(self, gray: np.ndarray, smallest: int) -> np.ndarray:
        """Found in the picture turned about its middle; as upright boxes of the picture."""
        height, width = gray.shape
        for degrees in (-TILT, TILT):
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
            level = cv2.warpAffine(gray, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
            found = _search(self._frontal, level, smallest, step=1.15, votes=3, confidence=0.8)
            if len(found):
                middles = found[:, :2] + found[:, 2:4] / 2
                back = cv2.invertAffineTransform(turn)
                found[:, :2] = middles @ back[:, :2].T + back[:, 2] - found[:, 2:4] / 2
                break
        return found

    def _weaker(self, gray: np.ndarray, smallest: int) -> np.ndarray:
        found = _search(self._second, gray, smallest, step=1.1, votes=6, confidence=0.6)
        for mirrored in (False, True):
            if not len(found):
                side = gray[:, ::-1] if mirrored else gray
                found = _search(self._profile, side, smallest, step=1.1, votes=5, confidence=0.4)
                if mirrored:
                    found[:, 0] = gray.shape[1] - found[:, 0] - found[:, 2]
        return found


class YuNet:
    """OpenCV's FaceDetectorYN with a model file of the 2023 form (Wu et al. 2023, YuNet).

    Its boxes are higher than wide; they become squares about the same middle, as Haar's are.
    """

    def __init__(self, model: str) -> None:
        data = np.frombuffer(model_bytes(model), np.uint8)
        try:
            self._net = cv2.FaceDetectorYN.create("onnx", data, np.zeros(0, np.uint8), (320, 320))
        except cv2.error as error:
            raise ModelError(
                f"{model} is no model that OpenCV {cv2.__version__} can load ({error.err}); take "
                f"{WHERE['yunet']}"
            ) from None
        self._net.setScoreThreshold(YUNET_LEAST)

    def __call__(self, rgb: np.ndarray, *, sure: bool = False, least: float = 0) -> np.ndarray:
        scale = min(1.0, DETECT_SIDE / max(rgb.shape[:2]))
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        if scale < 1:
            bgr = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        self._net.setInputSize((bgr.shape[1], bgr.shape[0]))
        rows = self._net.detect(bgr)[1]
        rows = np.zeros((0, 15)) if rows is None else np.asarray(rows, np.float64)
        boxes = rows[:, [0, 1, 2, 3, 14]].round(2)  # what lies beyond differs between processors
        boxes[:, :4] /= scale
        side = boxes[:, 2:4].max(axis=1, initial=0)[:, None]
        boxes[:, :2] += boxes[:, 2:4] / 2 - side / 2
        boxes[:, 2:4] = side
        kept = (boxes[:, 2] >= max(1.0, least)) & (boxes[:, 4] >= (SURE if sure else 0))
        return _outermost(boxes[kept])


DETECTORS: dict[str, Callable[[str], Detector]] = {"haar": lambda model: Haar(), "yunet": YuNet}
"""Each is made with the path of its model file."""


@cache
def detector(name: str, model: str = "") -> Detector | None:
    """The detector of that name; None for "none". Raises ModelError."""
    if name == "none":
        return None
    cv2.setNumThreads(1)  # with more, the order of OpenCV's candidates changes from run to run
    return DETECTORS[name](model)


class Follower:
    """Looks through one video: near the face of a moment ago first, since that is cheap.

    The whole picture is searched when nothing is there, when there were several faces, and now and
    then for people who come in.
    """

    def __init__(self, detect: Detector) -> None:
        self._detect = detect
        self._last: np.ndarray | None = None
        self._looks = 0

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        self._looks += 1
        found = np.zeros((0, 5))
        if self._last is not None and self._looks % WHOLE_EVERY:
            found = self._near(rgb, self._last)
        if not len(found):
            found = self._detect(rgb)
        self._last = found[0] if len(found) == 1 else None
        return found

    def _near(self, rgb: np.ndarray, box: np.ndarray) -> np.ndarray:
        height, width = rgb.shape[:2]
        reach = NEAR * box[2] / 2
        middle = box[:2] + box[2:4] / 2
        left, top = np.maximum(middle - reach, 0).astype(int)
        right, bottom = np.minimum(middle + reach, (width, height)).astype(int)
        part = np.ascontiguousarray(rgb[top:bottom, left:right])
        found = self._detect(part, least=0.6 * box[2])
        found[:, :2] += (left, top)
        return found


def turn_of(pictures: Sequence[np.ndarray], detect: Detector) -> int:
    """Quarter turns, as numpy.rot90 counts them, that make faces upright; 0 if none clearly does.

    For videos whose rotation metadata is wrong or missing: `pictures` are some without a sure face.
    """
    hits = [
        sum(bool(len(detect(np.ascontiguousarray(np.rot90(p, turn)), sure=True))) for p in pictures)
        for turn in (1, 2, 3)
    ]
    best = int(np.argmax(hits))
    return best + 1 if hits[best] >= max(3, 0.6 * len(pictures)) else 0


def _cascade(name: str) -> cv2.CascadeClassifier:
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + name)  # type: ignore[attr-defined]
    if cascade.empty():
        raise FileNotFoundError(
            f"{name} is not part of the installed OpenCV; install opencv-python-headless<5"
        )
    return cascade


def _small_gray(rgb: np.ndarray) -> tuple[np.ndarray, float]:
    gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scale = min(1.0, DETECT_SIDE / max(gray.shape))
    if scale < 1:
        gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return gray, scale


def _search(
    cascade: cv2.CascadeClassifier,
    gray: np.ndarray,
    smallest: int,
    *,
    step: float,
    votes: int,
    confidence: float,
) -> np.ndarray:
    gray = np.ascontiguousarray(gray)
    boxes = cascade.detectMultiScale(gray, step, votes, minSize=(smallest, smallest))
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes, np.full((len(boxes), 1), confidence)], axis=1)


def _outermost(boxes: np.ndarray) -> np.ndarray:
    """Without boxes whose middle lies in a larger one: eyes and mouth within their own face."""
    kept: list[np.ndarray] = []
    for box in sorted(boxes, key=lambda b: -b[2]):
        middle = box[:2] + box[2:4] / 2
        if not any((k[:2] <= middle).all() and (middle <= k[:2] + k[2:4]).all() for k in kept):
            kept.append(box)
    return np.asarray(kept).reshape(-1, 5)
