"""Floating point operations of a forward pass, by arithmetic.

Owns the counting rule: 2 operations a multiply-add of matrix products and attention; norms,
activations, biases and softmax are not counted, and backward costs twice the forward. It knows
sizes, no tensors.
"""

from mira.encoder import EncoderConfig


def block_flops(tokens: int, dim: int, mlp_ratio: float, *, asking: int | None = None) -> float:
    """A transformer block: projections, MLP, and the two products of attention.

    Args:
        asking: how many of the tokens ask and go on, all answer; None for all.
    """
    asking = tokens if asking is None else asking
    matrices = 2 * tokens + (2 + 2 * mlp_ratio) * asking  # k and v; q, projection and MLP
    return 2.0 * matrices * dim * dim + 4.0 * asking * tokens * dim


def encoder_flops(config: EncoderConfig, tokens: int, *, embedded: int | None = None) -> float:
    """A clip through the encoder.

    Args:
        tokens: how many tokens the blocks see.
        embedded: how many tubelets are embedded; None for as many as `tokens`.
    """
    embed = 2.0 * (tokens if embedded is None else embedded) * config.grid.tubelet_dim * config.dim
    return embed + config.depth * block_flops(tokens, config.dim, config.mlp_ratio)
