"""The video classifier: an encoder, the mean over tokens, a norm and a linear head.

Owns the head and how the network is put together from a checkpoint. It knows no loss, data or
metric. Its state dict is the public VideoMAE and MiRA fine-tuning layout.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from finetune.models.soa import SoaConfig, TokenOrientationAttention
from mira import Statistics
from mira.cores import AttentionName
from mira.encoder import EncoderConfig, Trunk, mean_importance
from mira.flops import encoder_flops
from mira.layouts import PublicCheckpoint, canonical
from mira.loading import CheckpointError, LoadReport, encoder_config, load_weights
from mira.weights import Artifact, load_artifact, load_public

THETA_RATE = 10.0
"""Learning rate of θ of Single-Orientation Attention as a multiple of the run's."""
HEAD_SCALE = 1e-3
"""Factor on the initial head, so that a fresh one starts with nearly equal logits."""


class Classifier(Trunk):
    """Blocks on tubelets, then the mean over tokens, `fc_norm` and `head`.

    Args:
        config: see `EncoderConfig`.
        num_classes: logits a clip.
        soa: Single-Orientation Attention on the last block's tokens; None for none.
    """

    load_report: LoadReport  # of `from_public`

    def __init__(
        self,
        config: EncoderConfig,
        num_classes: int,
        *,
        soa: SoaConfig | None = None,
    ):
        super().__init__(config)
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be positive")
        self.num_classes = num_classes
        self.orientation = None
        if soa is not None:
            grid = config.grid
            self.orientation = TokenOrientationAttention(
                config.dim, grid.frames, grid.rows, grid.columns, soa
            )
        self.fc_norm = nn.LayerNorm(config.dim, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight.mul_(HEAD_SCALE)

    def forward(self, x: Tensor, *, importance: list[Tensor] | None = None) -> Tensor:
        """Clips [B, C, T, h, w], normalised, to logits [B, num_classes].

        Args:
            importance: receives frame importance [B, F], see `Trunk.frame_importance`.
        """
        return self.classify(self.features(x, importance=importance))

    def features(self, x: Tensor, *, importance: list[Tensor] | None = None) -> Tensor:
        """What the head sees: the mean token, normalised, [B, E]."""
        last = self.config.depth - 1
        tokens = self.run(self.embed(x), last, importance=importance)
        if self.orientation is None:
            return self.fc_norm(self.run_block(last, tokens, pooled=True, importance=importance))
        tokens = self.run_block(last, tokens, importance=importance)
        return self.fc_norm(self.orientation(tokens).mean(1))

    def classify(self, features: Tensor) -> Tensor:
        """Logits [B, num_classes] from what `features` returned."""
        return self.head(features)

    @torch.no_grad()
    def explain(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, num_classes] and frame importance [B, F] from one forward pass."""
        found: list[Tensor] = []
        logits = self(x, importance=found)
        return logits, mean_importance(found)

    def layer_ids(self) -> dict[str, int]:
        """Layer of every parameter, for layer decay: embedding 0, block i is i + 1, head L + 1."""
        top = self.config.depth + 1
        ids = {}
        for name, _ in self.named_parameters():
            part, _, rest = name.partition(".")
            if part == "blocks":
                ids[name] = int(rest.partition(".")[0]) + 1
            else:
                ids[name] = 0 if part == "patch_embed" else top
        return ids

    def rate_scales(self) -> dict[str, float]:
        """Parameters with a learning rate of their own, as multiples of the run's: θ of `soa`."""
        learned = self.orientation is not None and self.orientation.soa.theta.requires_grad
        return {"orientation.soa.theta": THETA_RATE} if learned else {}

    def flops(self) -> float:
        """Floating point operations of one clip's forward pass."""
        config = self.config
        gate = 0.0 if self.orientation is None else self.orientation.flops()
        head = 2.0 * config.dim * self.num_classes
        return encoder_flops(config, config.grid.tokens) + gate + head

    @classmethod
    def from_public(
        cls,
        state_dict: Mapping[str, Any] | PublicCheckpoint,
        *,
        heads: int,
        frames: int,
        image_size: int,
        attention: AttentionName = "sdpa",
        mira_layers: int | None = None,
        statistics: Statistics = "instance",
        drop_path: float = 0.0,
    ) -> Self:
        """A classifier with the weights of a public fine-tuning checkpoint, all of them.

        Args:
            state_dict: VideoMAE, MiRA or Hugging Face names, with or without the dict around them,
                or what `mira.weights.load_public` returned.
            heads, frames, image_size: what tensor shapes do not tell.
            attention, mira_layers, statistics, drop_path: see `EncoderConfig`.

        Returns:
            the model; its `load_report` says what became of every tensor.

        Raises:
            ValueError: another kind of checkpoint, or one that does not fit.
        """
        found = state_dict
        if not isinstance(found, PublicCheckpoint):
            found = canonical(found)
        if found.kind != "classifier":
            raise ValueError(
                f"this is a {found.kind} checkpoint, without a head; start a new classifier "
                "from it with Classifier.from_encoder"
            )
        state = found.state_dict
        config = encoder_config(
            state,
            heads=heads,
            frames=frames,
            image_size=image_size,
            attention=attention,
            mira_layers=mira_layers,
            statistics=statistics,
            drop_path=drop_path,
            layer_norm_eps=found.layer_norm_eps,
        )
        model = cls(config, len(state["head.weight"]))
        model.load_report = load_weights(model, state).also_dropped(found.dropped)
        return model

    @classmethod
    def from_encoder(
        cls,
        artifact: str | Path | Artifact | PublicCheckpoint,
        config: EncoderConfig,
        num_classes: int,
        *,
        soa: SoaConfig | None = None,
    ) -> tuple[Self, LoadReport]:
        """A classifier with a fresh head on a pretrained encoder.

        Decoder, final norm and any former head are dropped.

        Args:
            artifact: an artifact folder or its content, a public checkpoint file or its content.
            config: the encoder to build; its sizes must be the artifact's.
            num_classes: logits a clip.

        Returns:
            the model, and what became of every tensor.

        Raises:
            FileNotFoundError: nothing there.
            ValueError: weights of another size or, as far as the artifact tells, of another number
                of heads or LayerNorm eps.
        """
        if isinstance(artifact, str | Path):
            artifact = _open(Path(artifact))
        if isinstance(artifact, Artifact):
            # Some artifacts hold the encoder's fields alone.
            saved = artifact.config.get("encoder", artifact.config)
            artifact = canonical(artifact.state_dict)
        else:
            saved = {"layer_norm_eps": artifact.layer_norm_eps}
        _check_unseen(saved, config)
        model = cls(config, num_classes, soa=soa)
        fresh = ("fc_norm.", "head.", "orientation.")
        state = artifact.encoder_state()
        report = load_weights(model, state, may_drop=("norm.",), may_be_new=fresh)
        return model, report.also_dropped(artifact.dropped)


def _open(path: Path) -> Artifact | PublicCheckpoint:
    if (path / "provenance.json").is_file():
        return load_artifact(path)
    return load_public(path)


def _check_unseen(saved: Mapping[str, Any], config: EncoderConfig) -> None:
    """What changes the meaning of weights, and no shape shows."""
    for field in ("heads", "layer_norm_eps"):
        wanted = getattr(config, field)
        if saved.get(field, wanted) != wanted:
            raise CheckpointError(
                f"the encoder was trained with {field}={saved[field]}, the model has {wanted}: "
                f"set {field}={saved[field]} (--encoder.{field} {saved[field]})"
            )
