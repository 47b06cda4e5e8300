"""Any encoder as a frozen network: what a run of ours wrote, or a checkpoint of others.

Owns telling the kinds apart and what each leaves to say. A folder that pretraining wrote becomes
the encoder and the mean of its normalised tokens; one that fine-tuning wrote the network before its
head; public files either, by what they hold. It knows no data and no probe.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models import Classifier, Network, NetworkConfig, build
from finetune.predictor import Predictor
from finetune.predictor_config import artifact_folder
from launch.config import from_dict
from mira.cores import AttentionName
from mira.encoder import Encoder, EncoderConfig
from mira.layouts import PublicCheckpoint
from mira.loading import encoder_config, load_weights
from mira.weights import Artifact, load_artifact, load_public

HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
"""Of the published sizes S, B, L and H by their dim; weights do not show it."""
PUBLISHED = {"frames": 16, "image_size": 224}


@dataclass(frozen=True)
class Sizes:
    """What is to differ from the model's own, or what its file does not tell; None: as it is."""

    frames: int | None = None
    """Frames of a clip; a public file that does not tell it is taken for 16."""
    image_size: int | None = None
    """Pixels a side; a public file that does not tell it is taken for 224."""
    heads: int | None = None
    """Attention heads, of a public file alone; known for the published sizes."""
    attention: AttentionName | None = None
    """Attention core; the cores share their weights. None is the model's own, plain for a public
    file."""
    mira_layers: int | None = None
    """How many of the last blocks use it; None is the model's own, all of a public file."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that were set."""
        return {name: value for name, value in vars(self).items() if value is not None}


class MeanToken(nn.Module):
    """An encoder whose features are the mean of its normalised tokens."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config: NetworkConfig = config
        self.encoder = Encoder(config)

    def features(self, x: Tensor) -> Tensor:
        """Clips [B, C, T, h, w], normalised, to [B, E]."""
        return self.encoder(x).mean(1)


Frozen = MeanToken | Network
"""What has `features` and `config`."""


def open_network(path: str | Path, sizes: Sizes, *, random: int | None = None) -> Frozen:
    """A network with `features` and `config`, in evaluation mode on the CPU.

    Args:
        path: a folder that pretraining or fine-tuning wrote, a registered model as a folder, or a
            public checkpoint (`mira.weights.load_public`).
        random: seed of fresh weights in the place of the model's, as a control.

    Raises:
        FileNotFoundError, ValueError: nothing there, or not a network that this one is.
    """
    path = Path(path)
    if random is not None:
        torch.manual_seed(random)
    load = random is None
    folder = artifact_folder(path)
    if not (folder / "provenance.json").is_file():
        network = _of_others(load_public(path), _told(path) | sizes.given, load=load)
    elif "labels" in (artifact := load_artifact(folder)).config:
        network = _fine_tuned(folder, sizes, load=load)
    else:
        network = _pretrained(artifact, sizes, load=load)
    return network.eval().requires_grad_(False)


def _fine_tuned(folder: Path, sizes: Sizes, *, load: bool) -> Frozen:
    if sizes.given:
        raise ValueError(
            f"{', '.join(sizes.given)}: {folder} is a fine-tuned network, which has its own; leave "
            "these out"
        )
    predictor = Predictor.load(folder, device="cpu")
    own = predictor.config
    return predictor.model if load else build(own.encoder, own.outputs, soa=own.soa)


def _pretrained(artifact: Artifact, sizes: Sizes, *, load: bool) -> Frozen:
    # Some artifacts hold the encoder's fields alone.
    saved = from_dict(EncoderConfig, artifact.config.get("encoder", artifact.config))
    given = sizes.given
    if given.pop("heads", saved.heads) != saved.heads:
        raise ValueError(f"heads={sizes.heads}, but the encoder was trained with {saved.heads}")
    network = MeanToken(_at_rest(replace(saved, **given)))
    if load:
        load_weights(network.encoder, artifact.state_dict)
    return network


def _of_others(found: PublicCheckpoint, given: dict[str, Any], *, load: bool) -> Frozen:
    state = found.encoder_state()
    dim = len(state["patch_embed.proj.weight"])
    if "heads" not in given and dim not in HEADS:
        raise ValueError(f"a file does not tell its number of heads: set --sizes.heads (dim {dim})")
    told: dict[str, Any] = PUBLISHED | {"heads": HEADS.get(dim)} | given
    config = _at_rest(encoder_config(state, layer_norm_eps=found.layer_norm_eps, **told))
    if found.kind == "classifier":
        classifier = Classifier(config, len(found.state_dict["head.weight"]))
        if load:
            load_weights(classifier, found.state_dict)
        return classifier
    network = MeanToken(config)
    if load:  # some published encoders end without the norm: a fresh one then normalises plainly
        load_weights(network.encoder, state, may_be_new=("norm.",))
    return network


def _at_rest(config: EncoderConfig) -> EncoderConfig:
    """For this machine, and so that a clip's features do not depend on its neighbours."""
    return replace(config, backend=None, eval_statistics="instance", checkpoint_blocks=False)


def _told(path: Path) -> dict[str, Any]:
    """What the configuration in a folder of Hugging Face's tells."""
    file = path / "config.json"
    told = json.loads(file.read_text()) if path.is_dir() and file.is_file() else {}
    names = {"num_attention_heads": "heads", "num_frames": "frames", "image_size": "image_size"}
    return {ours: told[theirs] for theirs, ours in names.items() if theirs in told}
