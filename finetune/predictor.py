"""From a video to an answer: label, probabilities, and how much each frame counted.

Owns the artifact that a fine-tuning run leaves (weights, sizes, labels, preprocessing) and what is
done with it at inference. Frames, crops and views come from the functions that evaluation uses.
Refuses to know training, clusters and MLflow: it is shipped inside the registered model and imports
nothing that is not (`predictor_package.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.models.classifier import Classifier
from finetune.pictures import importance_strip, png
from mira import MiraConstants
from mira.encoder import EncoderConfig
from mira.loading import load_weights
from mira.tubelets import normalise
from mira.weights import load_artifact, save_artifact
from shards.augment import ViewConfig, view_crops
from shards.frames import view_indices
from shards.ingest import extract_face
from shards.ingest.settings import IngestSettings, Rejected
from shards.manifest import Manifest

Video = str | bytes
"""A path, or the bytes of a file."""

NO_FILE = "give a path on the machine where the model runs, or the bytes of the file"


class EvaluationData(Protocol):
    """What the predictor reads of a run's data configuration."""

    @property
    def shards(self) -> tuple[str, ...]: ...
    @property
    def stride(self) -> int | None: ...
    @property
    def views(self) -> ViewConfig: ...


@dataclass(frozen=True)
class PredictorConfig:
    """Everything between a video and a probability that is not a weight."""

    encoder: EncoderConfig
    labels: tuple[str, ...]
    """Class names in the order of the logits."""
    stride: int | None
    """Distance of sampled frames; None spreads them over the clip."""
    views: ViewConfig
    face: IngestSettings
    """How faces are found and cropped: as in the training shards."""

    @classmethod
    def of(
        cls, *, encoder: EncoderConfig, data: EvaluationData, labels: tuple[str, ...]
    ) -> PredictorConfig:
        """The preprocessing of a training run. Raises `shards.index.ManifestError`."""
        made = Manifest.open(data.shards[0]).clip
        known = {f.name for f in fields(IngestSettings)}
        face = {name: value for name, value in made.items() if name in known}
        # Training may want long clips; a question is answered from what there is.
        face["min_frames"] = encoder.tubelet
        # The machine that answers has its own attention backends.
        encoder = replace(encoder, backend=None)
        return cls(encoder, labels, data.stride, data.views, IngestSettings(**face))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PredictorConfig:
        """The inverse of `to_json`. Raises ValueError for keys of another version."""
        try:
            encoder = dict(data["encoder"])
            encoder["constants"] = MiraConstants(**encoder["constants"])
            return cls(
                encoder=EncoderConfig(**encoder),
                labels=tuple(data["labels"]),
                stride=data["stride"],
                views=ViewConfig(**data["views"]),
                face=IngestSettings(**data["face"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"this is not the configuration of a predictor of this version ({error}); take the "
                "folder that fine-tuning wrote, or fine-tune again with this version"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every field present."""
        return asdict(self) | {"labels": list(self.labels)}


@dataclass(frozen=True)
class Prediction:
    """The answer for one video; `reason` and `action` are set instead where there is none."""

    video: str
    """Its path, or "bytes"."""
    label: str | None = None
    """The likeliest class."""
    probability: float | None = None
    """Of that class."""
    probabilities: dict[str, float] | None = None
    times: tuple[float, ...] = ()
    """Seconds into the video of every frame that was looked at, ascending."""
    importance: tuple[float, ...] = ()
    """Share of each of these frames; sums to 1."""
    box: tuple[float, ...] | None = None
    """Face crop in pixels of the upright video: left, top, width, height."""
    reason: str | None = None
    """Why the video cannot be used."""
    action: str | None = None
    """What its owner can do about it."""
    picture: bytes | None = None
    """PNG: the frames with their importance, if it was asked for."""


class Views(NamedTuple):
    """A clip as the model sees it."""

    pixels: NDArray[np.uint8]
    """[temporal · spatial, T, h, w, 3]; the spatial views of a temporal one are neighbours."""
    indices: NDArray[np.int64]
    """[temporal, T]: which frames of the clip."""


class Predictor:
    """A classifier with its preprocessing, ready to answer.

    Args:
        model: in evaluation mode on its device afterwards.
        config: see `PredictorConfig`.
        device: of the model; None takes a GPU where there is one.
    """

    def __init__(self, model: Classifier, config: PredictorConfig, *, device: str | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.config = config

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None) -> Self:
        """From the folder of `save_predictor`, or a packaged or registered model around it.

        Raises:
            FileNotFoundError, ValueError: not such a folder, or weights that do not fit.
        """
        artifact = load_artifact(_inner(Path(folder)))
        config = PredictorConfig.from_json(artifact.config)
        model = Classifier(config.encoder, len(config.labels))
        load_weights(model, artifact.state_dict)
        return cls(model, config, device=device)

    def predict(self, videos: Sequence[Video], *, pictures: bool = False) -> Iterator[Prediction]:
        """Answers in order, each as soon as it is known. An unusable video gets a reason."""
        for video in videos:
            yield self._answer(video, pictures=pictures)

    def views(self, frames: NDArray[np.uint8]) -> Views:
        """Frames [n, h, w, 3] of a face clip as the model takes them: evaluation's own sampling."""
        encoder, views = self.config.encoder, self.config.views
        indices = view_indices(
            len(frames), frames=encoder.frames, stride=self.config.stride, views=views.temporal
        )
        crops = [
            view_crops(frames[chosen], spatial=views.spatial, size=encoder.image_size)
            for chosen in indices
        ]
        return Views(np.concatenate(crops), indices)

    @torch.no_grad()
    def explain(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Views of one clip, uint8 [V, T, h, w, 3], to answers on the CPU.

        Returns:
            probabilities [C], averaged over views; importance [V, T] of the frames, whose rows sum
            to 1: frames of a tubelet share theirs.
        """
        clips = torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).to(self.device)  # [V, 3, T, h, w]
        logits, importance = self.model.explain(normalise(clips))
        tubelet = self.config.encoder.tubelet
        return (
            probabilities(logits, views=len(pixels))[0].cpu(),
            (importance / tubelet).repeat_interleave(tubelet, dim=1).cpu(),
        )

    def _answer(self, video: Video, *, pictures: bool) -> Prediction:
        name = video if isinstance(video, str) else "bytes"
        if not isinstance(video, bytes) and not os.path.isfile(video):
            return Prediction(name, reason="there is no such file", action=NO_FILE)
        try:
            face = extract_face(video, settings=self.config.face)
        except Rejected as no:
            return Prediction(name, reason=no.reason, action=no.action)
        views = self.views(face.frames)
        shares, importance = self.explain(views.pixels)
        merged = _by_frame(views.indices, importance.numpy())
        best = int(shares.argmax())
        answer = Prediction(
            video=name,
            label=self.config.labels[best],
            probability=float(shares[best]),
            probabilities=dict(zip(self.config.labels, shares.tolist(), strict=True)),
            times=tuple(face.start + index / face.fps for index in merged),
            importance=tuple(merged.values()),
            box=tuple(face.box),
        )
        return _with_picture(answer, face.frames[list(merged)]) if pictures else answer


def probabilities(logits: Tensor, *, views: int) -> Tensor:
    """Logits [B · views, C] to probabilities [B, C], float32, averaged over a clip's views."""
    return logits.float().softmax(1).unflatten(0, (-1, views)).mean(1)


def save_predictor(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: PredictorConfig,
    provenance: Mapping[str, Any],
) -> Path:
    """Write the artifact folder of a predictor; `state_dict` is that of its `Classifier`."""
    return save_artifact(folder, state_dict, config.to_json(), provenance)


def _inner(folder: Path) -> Path:
    """The artifact folder inside a packaged model, or the folder itself."""
    found = sorted((folder / "artifacts").glob("*/model.safetensors"))
    return found[0].parent if found else folder


def _with_picture(answer: Prediction, frames: NDArray[np.uint8]) -> Prediction:
    assert answer.label is not None and answer.probability is not None
    strip = importance_strip(
        frames,
        answer.times,
        answer.importance,
        label=answer.label,
        probability=answer.probability,
    )
    return replace(answer, picture=png(strip))


def _by_frame(indices: NDArray[np.int64], importance: NDArray[np.floating]) -> dict[int, float]:
    """Importance of each frame that any view looked at, by its ascending index; sums to 1."""
    temporal = importance.reshape(len(indices), -1, indices.shape[1]).mean(1) / len(indices)
    total: dict[int, float] = dict.fromkeys(np.unique(indices).tolist(), 0.0)
    for index, share in zip(indices.ravel().tolist(), temporal.ravel().tolist(), strict=True):
        total[index] += share
    return total
