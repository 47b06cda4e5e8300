"""From a video to an answer: label, probabilities, and how much each frame counted.

Owns what is done with a fine-tuned network at inference. Frames, crops and views come from the
functions that evaluation uses; the artifact is `predictor_config.py`.
Refuses to know training, clusters and MLflow: it is shipped inside the registered model and imports
nothing that is not (`predictor_package.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.models import Network, build
from finetune.models.configs import unanswerable
from finetune.pictures import importance_strip, pair_picture, png
from finetune.prediction import Prediction
from finetune.predictor_config import PredictorConfig, artifact_folder, save_predictor
from mira.loading import load_weights
from mira.tubelets import normalise
from mira.weights import load_artifact
from shards.augment import view_crops
from shards.frames import view_indices
from shards.ingest.extract import FaceClip, extract_face
from shards.ingest.models import ModelError, with_model
from shards.ingest.settings import Rejected
from shards.labelling import flow_of
from shards.spotting import spot
from shards.wording import few

__all__ = ["Prediction", "Predictor", "PredictorConfig", "save_predictor"]

Video = str | bytes
"""A path, or the bytes of a file."""
Marks = tuple[float, float]
"""Onset and apex in seconds into a video."""

DETECTOR = (
    "without a command line: Predictor.load(…, detector_model=FILE), of a packaged model the "
    "parameter detector_model"
)
NO_FILE = "give a path on the machine where the model runs, or the bytes of the file"


class Pair(NamedTuple):
    """Onset and apex as frames of a face clip, and where they come from."""

    onset: int
    apex: int
    source: str


class Views(NamedTuple):
    """A clip as the model sees it."""

    pixels: NDArray[np.uint8]
    """[temporal · spatial, T, h, w, 3]; the spatial views of a temporal one are neighbours."""
    indices: NDArray[np.int64]
    """[temporal, T]: which frames of the clip."""


class Predictor:
    """A network with its preprocessing, ready to answer.

    Args:
        model: in evaluation mode on its device afterwards.
        config: see `PredictorConfig`.
        device: of the model; None takes a GPU where there is one.
    """

    def __init__(self, model: Network, config: PredictorConfig, *, device: str | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.config = config

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        detector_model: str | Path | None = None,
    ) -> Self:
        """From the folder of `save_predictor`, or a packaged or registered model around it.

        Args:
            detector_model: file of the detector that cropped the training clips, where that needs
                one; asked for with the first video, so that measuring on shards does without.

        Raises:
            FileNotFoundError, ValueError: not such a folder, or weights that do not fit.
            ModelError: not the detector's file that ingest was given.
        """
        artifact = load_artifact(artifact_folder(Path(folder)))
        config = PredictorConfig.from_json(artifact.config)
        if detector_model is not None:
            config = config.with_detector(detector_model)
            with_model(config.face)
        model = build(config.encoder, config.outputs, soa=config.soa)
        load_weights(model, artifact.state_dict)
        return cls(model, config, device=device)

    def predict(
        self, videos: Sequence[Video], *, pictures: bool = False, marks: Marks | None = None
    ) -> Iterator[Prediction]:
        """Answers in order, each as soon as it is known. An unusable video gets a reason.

        Args:
            marks: onset and apex, where they are known; others than networks that look at them give
                a reason instead of an answer.
        """
        for video in videos:
            yield self._answer(video, pictures=pictures, marks=marks)

    def views(self, frames: NDArray[np.uint8], pair: Pair | None = None) -> Views:
        """Frames [n, h, w, 3] of a face clip as the model takes them: evaluation's own sampling.

        With a pair its two frames stand behind the T of every view.
        """
        encoder, views = self.config.encoder, self.config.views
        indices = view_indices(
            len(frames), frames=encoder.frames, stride=self.config.stride, views=views.temporal
        )
        seen = indices
        if pair is not None:
            behind = np.broadcast_to(pair[:2], (len(indices), 2))
            seen = np.concatenate([indices, behind], axis=1)
        crops = [
            view_crops(frames[chosen], spatial=views.spatial, size=encoder.image_size)
            for chosen in seen
        ]
        return Views(np.concatenate(crops), indices)

    @torch.no_grad()
    def explain(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Views of one clip, uint8 [V, T, h, w, 3] (T + 2 with a pair), to answers on the CPU.

        Returns:
            answers [O], averaged over views (`Outputs.answers`); importance [V, T] of the frames,
            whose rows sum to 1: frames of a tubelet share theirs. T is 0 where no frame but the
            pair is looked at.
        """
        config: Any = self.config.encoder
        clips = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).to(self.device)  # [V, 3, T, h, w]
        given: dict[str, Any] = {}
        if "flow" in config.inputs:
            fields = np.stack([flow_of(view[-2], view[-1]) for view in pixels])
            given["flow"] = torch.from_numpy(fields).to(self.device)[:, : config.flow_channels]
        logits, importance = self.model.explain(normalise(clips), **given)
        told = self.config.outputs.answers(logits, views=len(pixels))[0].cpu()
        shared = config.frames // max(importance.shape[1], 1)
        return told, (importance / max(shared, 1)).repeat_interleave(shared, dim=1).cpu()

    def _answer(self, video: Video, *, pictures: bool, marks: Marks | None) -> Prediction:
        name = video if isinstance(video, str) else "bytes"
        if needed := unanswerable(self.config.encoder):
            return Prediction(
                name,
                reason=f"this model takes {', '.join(needed)} as an input, which no video shows",
                action="measure it on annotated shards, or train one without that input",
            )
        if marks is not None and not self.config.encoder.pair:
            return Prediction(
                name,
                reason="onset and apex are given, and a video transformer does not look at them",
                action="leave them out, or ask a model of HSTA or FaceSleuth-R",
            )
        if not isinstance(video, bytes) and not os.path.isfile(video):
            what = "is a folder" if os.path.isdir(video) else "there is no such file"
            return Prediction(name, reason=what, action=NO_FILE)
        try:
            moments = None if marks is None else {"onset": marks[0], "apex": marks[1]}
            face = extract_face(video, settings=self.config.face, moments=moments)
            pair = _pair(face) if self.config.encoder.pair else None
        except Rejected as no:
            return Prediction(name, reason=no.reason, action=_without_options(no.action))
        except ModelError as no:
            reason = f"faces are found as in the training clips, and {no}"
            return Prediction(name, reason=reason, action=DETECTOR)
        except OSError as no:  # of this machine or its disks: the other videos may fare better
            return Prediction(name, reason=f"{no.strerror or no}", action="mend that, ask again")
        views = self.views(face.frames, pair)
        told, importance = self.explain(views.pixels)
        merged = _by_frame(views.indices, importance.numpy())
        answer = Prediction(
            video=name,
            **self._told(told),
            times=tuple(face.start + index / face.fps for index in merged),
            importance=tuple(merged.values()),
            onset=None if pair is None else face.start + pair.onset / face.fps,
            apex=None if pair is None else face.start + pair.apex / face.fps,
            apex_source=None if pair is None else pair.source,
            box=tuple(face.box),
            note=_note(face),
        )
        return _with_picture(answer, face.frames, list(merged), pair) if pictures else answer

    def _told(self, answers: Tensor) -> dict[str, Any]:
        """The fields of a Prediction from the answers [O]."""
        outputs, told = self.config.outputs, {}
        labels, units, affect = (part[0] for part in outputs.split(answers[None]))
        if outputs.labels:
            best = int(labels.argmax())
            told |= {"label": outputs.labels[best], "probability": float(labels[best])}
            told["probabilities"] = dict(zip(outputs.labels, labels.tolist(), strict=True))
        if outputs.units:
            told["units"] = dict(zip(outputs.units, units.tolist(), strict=True))
        if outputs.affect:
            told["valence"], told["arousal"] = affect.tolist()
        return told


def _pair(face: FaceClip) -> Pair:
    """Onset and apex of a face clip, spotted unless told; Rejected where they are not in order."""
    if not face.marks:
        return Pair(*spot(face.frames), "spotted")
    onset, apex = face.marks["onset"], face.marks["apex"]
    if onset >= apex:
        raise Rejected(
            f"onset is frame {onset} of the face clip and apex frame {apex}: not two frames in "
            "order",
            "give an onset before the apex, or none to have them spotted",
        )
    return Pair(onset, apex, "given")


def _note(face: FaceClip) -> str | None:
    """What of the video was not looked at, in words."""
    parts = [] if face.damaged is None else [face.damaged]
    if face.people > 1:
        parts.append(f"{face.people} people are seen, the answer is about the one in the box")
    if face.other_shots:
        shots = [f"{start:.2f} to {stop:.2f} s" for start, stop in face.other_shots]
        parts.append(f"other shots were not looked at: {few(shots)}")
    return "; ".join(parts) or None


def _without_options(advice: str) -> str:
    """Ingest's advice without the options of its command, which a question does not have."""
    return re.split(r"[;,]( or)? [^;,]*--", advice)[0]


def _with_picture(
    answer: Prediction, frames: NDArray[np.uint8], looked_at: list[int], pair: Pair | None
) -> Prediction:
    title = "" if answer.label is None else f"{answer.label} ({answer.probability:.0%})"
    if looked_at:
        strip = importance_strip(frames[looked_at], answer.times, answer.importance, title=title)
    else:
        assert pair is not None, "a network looks at frames or at a pair"
        assert answer.onset is not None and answer.apex is not None
        strip = pair_picture(
            frames[pair.onset], frames[pair.apex], times=(answer.onset, answer.apex), title=title
        )
    return replace(answer, picture=png(strip))


def _by_frame(indices: NDArray[np.int64], importance: NDArray[np.floating]) -> dict[int, float]:
    """Importance of each frame that any view looked at, by its ascending index; sums to 1."""
    if not indices.size:
        return {}
    temporal = importance.reshape(len(indices), -1, indices.shape[1]).mean(1) / len(indices)
    total: dict[int, float] = dict.fromkeys(np.unique(indices).tolist(), 0.0)
    for index, share in zip(indices.ravel().tolist(), temporal.ravel().tolist(), strict=True):
        total[index] += share
    return total
