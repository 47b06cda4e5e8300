"""The masked video autoencoder: encoder, decoder and loss.

Owns which tokens are predicted from which, and how a clip is scored. It knows no data, optimiser or
files; how masks are drawn is `masking.py`, what a prediction is compared with is `target.py`. State
dicts are in the public VideoMAE pretraining layout. Source: VideoMAE, NeurIPS 2022
(arXiv 2203.12602); decoder masks: VideoMAE V2, CVPR 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from mira import Statistics
from mira.blocks import LAYER_NORM_EPS, Attention, Block
from mira.cores import AttentionName
from mira.encoder import Encoder, EncoderConfig, initialise
from mira.flops import block_flops, encoder_flops
from mira.layouts import PublicCheckpoint, canonical
from mira.loading import LoadReport, block_count, encoder_config, load_weights, mlp_ratio
from mira.tubelets import sinusoids, token_positions
from pretrain.masking import MaskConfig
from pretrain.target import token_errors


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder; the defaults go with ViT-B."""

    dim: int = 384
    """Embedding dim; a multiple of heads."""
    depth: int = 4
    """Number of blocks."""
    heads: int = 6
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden size of a block's MLP as a multiple of dim."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.dim < self.heads or self.dim % self.heads:
            raise ValueError(
                f"DecoderConfig.dim={self.dim} must be a positive multiple of heads={self.heads}"
            )
        if self.depth < 1 or self.mlp_ratio <= 0:
            raise ValueError("DecoderConfig.depth and mlp_ratio must be positive")


class Decoder(nn.Module):
    """Plain transformer from all tokens to the pixels of the last ones.

    Args:
        config: see `DecoderConfig`.
        values: predicted values a token.
        eps: of the LayerNorms.
    """

    def __init__(self, config: DecoderConfig, values: int, *, eps: float = LAYER_NORM_EPS):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(
                config.dim,
                Attention(config.dim, config.heads),
                mlp_ratio=config.mlp_ratio,
                eps=eps,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=eps)
        self.head = nn.Linear(config.dim, values)

    def forward(self, x: Tensor, predicted: int) -> Tensor:
        """x [B, N, E], of which the last `predicted` tokens are wanted, to [B, predicted, values].

        In the last block only those ask: what the others would become is read by nothing.
        """
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, asking=predicted)
        return self.head(self.norm(x))


class VideoMAE(nn.Module):
    """Predict the pixels of hidden tubelets from the visible ones.

    Args:
        encoder: see `EncoderConfig`.
        decoder: see `DecoderConfig`.
    """

    load_report: LoadReport  # of `from_public`
    positions: Tensor  # [N, decoder dim], not in the state dict

    def __init__(self, encoder: EncoderConfig, decoder: DecoderConfig):
        super().__init__()
        self.decoder_config = decoder
        self.grid = encoder.grid
        self.encoder = Encoder(encoder)
        self.encoder_to_decoder = nn.Linear(encoder.dim, decoder.dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.dim))
        self.decoder = Decoder(decoder, self.grid.tubelet_dim, eps=encoder.layer_norm_eps)
        positions = sinusoids(self.grid.tokens, decoder.dim)
        self.register_buffer("positions", positions, persistent=False)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        initialise(self.encoder_to_decoder)
        initialise(self.decoder)

    def forward(self, x: Tensor, mask: Tensor, decoder_mask: Tensor | None = None) -> Tensor:
        """Predict.

        Args:
            x: [B, C, T, h, w], normalised (`mira.tubelets.normalise`).
            mask: bool [B, N], true where hidden from the encoder; as many in every clip. Masks are
                best left on the CPU: what follows from them is worked out where they are.
            decoder_mask: bool [B, N], true where not even predicted; None predicts what is hidden.

        Returns:
            [B, M, tubelet · patch² · C], channel fastest: normalised pixels of the hidden tokens in
            order, or with a decoder mask of all tokens that it leaves (`losses` ignores those of
            them that the encoder saw).
        """
        visible, predicted = token_positions(~mask), self._predicted(mask, decoder_mask)
        seen = self.encoder(x, visible)
        visible, predicted = (at.to(x.device, non_blocking=True) for at in (visible, predicted))
        seen = self.encoder_to_decoder(seen) + self.positions[visible]
        asked = self.mask_token + self.positions[predicted]
        return self.decoder(torch.cat([seen, asked], dim=1), predicted.shape[1])

    def losses(
        self, prediction: Tensor, x: Tensor, mask: Tensor, decoder_mask: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of each clip's hidden tokens, float32 [B]; arguments as `forward`.

        With a decoder mask only the predicted tokens that the encoder did not see count.
        """
        predicted = self._predicted(mask, decoder_mask)
        at = predicted.to(x.device, non_blocking=True)
        errors = token_errors(prediction, x, self.grid, at)
        if decoder_mask is None:
            return errors.mean(1)
        counted = mask.gather(1, predicted).to(x.device, non_blocking=True)
        return (errors * counted).sum(1) / counted.sum(1)

    def loss(
        self, prediction: Tensor, x: Tensor, mask: Tensor, decoder_mask: Tensor | None = None
    ) -> Tensor:
        """The mean of `losses`, a scalar."""
        return self.losses(prediction, x, mask, decoder_mask).mean()

    def flops(self, mask: MaskConfig, *, published: bool = False) -> float:
        """Floating point operations of one clip's forward pass.

        Args:
            mask: how much is hidden.
            published: count what the published code computes: the embedding of all tubelets, and
                the decoder's last block of all tokens; here only those that are needed.
        """
        grid, decoder = self.grid, self.decoder_config
        visible = grid.tokens - grid.frames * mask.hidden_per_frame(grid)
        predicted = grid.tokens - visible
        if mask.decoder_ratio:
            predicted = round(grid.tokens * (1 - mask.decoder_ratio))
        embedded = grid.tokens if published else visible
        total = encoder_flops(self.encoder.config, visible, embedded=embedded)
        total += 2.0 * visible * self.encoder.config.dim * decoder.dim
        block = partial(block_flops, visible + predicted, decoder.dim, decoder.mlp_ratio)
        total += (decoder.depth - 1) * block()
        total += block(asking=None if published else predicted)
        return total + 2.0 * predicted * decoder.dim * grid.tubelet_dim

    @classmethod
    def from_public(
        cls,
        state_dict: Mapping[str, Any] | PublicCheckpoint,
        *,
        heads: int,
        decoder_heads: int,
        frames: int,
        image_size: int,
        attention: AttentionName = "sdpa",
        statistics: Statistics = "instance",
        mira_layers: int | None = None,
        eval_statistics: Literal["instance", "batch"] = "instance",
    ) -> Self:
        """A model with the weights of a public pretraining checkpoint, all of them.

        Args:
            state_dict: VideoMAE, VideoMAE V2, MiRA, MARLIN or Hugging Face names, with or without
                the dict around them, or what `mira.weights.load_public` returned. MARLIN's decoder
                predicts plain pixels; training on turns it to normalised ones.
            heads, decoder_heads, frames, image_size: what tensor shapes do not tell.
            attention, statistics, mira_layers, eval_statistics: see `EncoderConfig`.

        Returns:
            the model; its `load_report` says what became of every tensor.

        Raises:
            ValueError: another kind of checkpoint, or one that does not fit.
        """
        found = state_dict
        if not isinstance(found, PublicCheckpoint):
            found = canonical(found)
        if found.kind != "pretraining":
            raise ValueError(
                f"this is a {found.kind} checkpoint, without a decoder; load it with "
                "finetune.models.Classifier, or take a pretraining checkpoint"
            )
        state = found.state_dict
        encoder = encoder_config(
            found.encoder_state(),
            heads=heads,
            frames=frames,
            image_size=image_size,
            attention=attention,
            statistics=statistics,
            mira_layers=mira_layers,
            eval_statistics=eval_statistics,
            layer_norm_eps=found.layer_norm_eps,
        )
        dim = state["decoder.norm.weight"].shape[0]
        depth, ratio = block_count(state, "decoder."), mlp_ratio(state, dim, "decoder.")
        model = cls(encoder, DecoderConfig(dim, depth, decoder_heads, ratio))
        model.load_report = load_weights(model, state).also_dropped(found.dropped)
        return model

    def _predicted(self, mask: Tensor, decoder_mask: Tensor | None) -> Tensor:
        return token_positions(mask if decoder_mask is None else ~decoder_mask)
