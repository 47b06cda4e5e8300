"""What a fine-tuning run leaves beside its weights: sizes, outputs, preprocessing; and the folder.

Owns the artifact's form. Refuses to know training, clusters and MLflow: it is shipped inside the
registered model and imports nothing that is not (`predictor_package.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from finetune.models import NetworkConfig
from finetune.models.configs import read_config
from finetune.outputs import Outputs
from mira.weights import save_artifact, weights_file
from shards.augment import ViewConfig
from shards.ingest.settings import IngestSettings
from shards.manifest import Manifest

CROPPING = ("detector", "detector_sha256", "crop", "margin", "min_face", "max_side", "size")
"""Settings of ingest that decide which pixels of a video are the face."""


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
    """Everything between a video and an answer that is not a weight."""

    encoder: NetworkConfig
    """The network."""
    labels: tuple[str, ...]
    """Class names in the order of the logits; none where classes are not told."""
    stride: int | None
    """Distance of sampled frames; None spreads them over the clip."""
    views: ViewConfig
    face: IngestSettings
    """How faces are found and cropped: as in the training shards."""
    units: tuple[str, ...] = ()
    """Action units that are told."""
    affect: bool = False
    """Whether valence and arousal are told."""
    soa: bool = False
    """Whether the network has Single-Orientation Attention as an add-on."""

    @property
    def outputs(self) -> Outputs:
        """What the logits mean."""
        return Outputs(self.labels, self.units, self.affect)

    @classmethod
    def of(
        cls, *, encoder: NetworkConfig, data: EvaluationData, outputs: Outputs, soa: bool = False
    ) -> PredictorConfig:
        """The preprocessing of a training run. Raises `shards.index.ManifestError`."""
        made = Manifest.open(data.shards[0]).clip
        known = {f.name for f in fields(IngestSettings)}
        face = {name: value for name, value in made.items() if name in known}
        # Training may want long clips; a question is answered from what there is.
        face["min_frames"] = max(getattr(encoder, "tubelet", 1), 2 if encoder.pair else 1)
        return cls(
            encoder=_portable(encoder),
            labels=outputs.labels,
            stride=data.stride,
            views=data.views,
            face=IngestSettings(**face),
            units=outputs.units,
            affect=outputs.affect,
            soa=soa,
        )

    def with_detector(self, file: str | Path) -> PredictorConfig:
        """With the detector's model file, which lies elsewhere on every machine; it is checked
        where it is used."""
        path = str(Path(file).expanduser().absolute())
        return replace(self, face=replace(self.face, detector_model=path))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PredictorConfig:
        """The inverse of `to_json`. Raises ValueError for keys of another version."""
        try:
            return cls(
                encoder=read_config(data["encoder"]),
                labels=tuple(data["labels"]),
                stride=data["stride"],
                views=ViewConfig(**data["views"]),
                face=IngestSettings(**data["face"]),
                units=tuple(data.get("units", ())),  # folders from before told classes alone
                affect=data.get("affect", False),
                soa=data.get("soa", False),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is not the configuration of a predictor of this version ({error}); take the "
                "folder that fine-tuning wrote, or fine-tune again with this version"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every field present."""
        lists = {"labels": list(self.labels), "units": list(self.units)}
        return asdict(self) | lists


def other_crops(manifests: Sequence[Manifest]) -> list[str]:
    """What is cropped otherwise than in the first folder, by which a predictor crops videos: a line
    a folder and setting."""
    first, *rest = manifests
    return [
        f"{other.folder} was cropped with {name} {other.clip.get(name)}, {first.folder} with "
        f"{first.clip.get(name)}, as the model will crop videos: name the folder first that they "
        "resemble"
        for other in rest
        for name in CROPPING
        if other.clip.get(name) != first.clip.get(name)
    ]


def save_predictor(
    folder: str | Path,
    state_dict: Mapping[str, Tensor],
    config: PredictorConfig,
    provenance: Mapping[str, Any],
) -> Path:
    """Write the artifact folder of a predictor; `state_dict` is that of its network."""
    return save_artifact(folder, state_dict, config.to_json(), provenance)


def artifact_folder(folder: Path) -> Path:
    """The artifact folder inside a packaged model, or the folder itself."""
    found = sorted((folder / "artifacts").glob("*/model.safetensors"))
    return found[0].parent if found else folder


def weights_of(path: Path) -> Path:
    """The file of weights in such a folder, in one of Hugging Face's, or the file itself.

    Raises FileNotFoundError where a folder holds none.
    """
    return weights_file(artifact_folder(path))


def _portable(encoder: NetworkConfig) -> NetworkConfig:
    """The machine that answers has its own attention backends."""
    return replace(encoder, backend=None) if hasattr(encoder, "backend") else encoder
