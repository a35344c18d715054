"""What a batch brings besides its tokens, made once and handed down to every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jgolf.config import ModelConfig
from jgolf.data.shards import BOS_ID
from jgolf.model.lora import NO_ADDITIONS, Additions


class Past(Protocol):
    """What the positions of a pass read of those before them, where these are not in the same rows."""

    def bigram_hash(self, tokens: Int[Array, "B T"], buckets: int) -> Int[Array, "B T"]:
        """Bucket of each token and the one before it."""

    def before(self, name: str, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """What the stream of that name was one position earlier."""

    def attention(
        self, name: str, q: Float[Array, "B T N H"], k: Float[Array, "B T K H"], v: Float[Array, "B T K H"]
    ) -> Float[Array, "B T N H"]:
        """Causal attention of the visit of that name, over earlier positions, too."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a pass over a batch reads besides the parameters: arrays that depend on the tokens, and additions.

    Attributes:
      tokens: ids [B, T].
      begins: whether a document begins at the position, [B, T].
      segments: number of the piece that the position is in, [B, T], rising along the row; attention stays
        within pieces. None: a row is one piece.
      longest_piece: most tokens of a piece; a static number.
      cos, sin: of the rotary angles, [T, r], r = rotated dimensions / 2.
      additions: low-rank additions to the blocks' matrices.
      past: positions before the rows'; None: there are none.
      fp8: whether those products of the MLPs that can have operands of eight bits do; static, too.
    """

    tokens: Int[Array, "B T"]
    begins: Bool[Array, "B T"]
    segments: Int[Array, "B T"] | None
    longest_piece: int
    cos: Float[Array, "T r"]
    sin: Float[Array, "T r"]
    additions: Additions
    past: Past | None = None
    fp8: bool = False


def make_context(
    config: ModelConfig,
    tokens: Int[Array, "B T"],
    piece_length: int = 0,
    rotary_length: int = 0,
    additions: Additions = NO_ADDITIONS,
    fp8: bool = False,
) -> Context:
    """The context of rows of tokens.

    Args:
      config: the network.
      tokens: ids.
      piece_length: where attention stays within documents, the most tokens of one: longer ones are cut into pieces
        of this length, counted from their own start. 0: every row is a piece.
      rotary_length: length by which the rotary base is chosen, where rows are cut shorter; 0 for the longest piece.
      additions, fp8: see `Context`.
    """
    begins = tokens == BOS_ID
    length = tokens.shape[1]
    segments = None if piece_length == 0 else jnp.cumsum(piece_starts(tokens, piece_length), axis=1, dtype=jnp.int32)
    longest = min(piece_length or length, length)
    rotary = rotary_tables(config, length, rotary_length or longest)
    return Context(tokens, begins, segments, longest, *rotary, additions, fp8=fp8)


def piece_starts(tokens: Int[Array, "B T"], piece_length: int) -> Bool[Array, "B T"]:
    """Where a piece begins: at a row's start, at every BOS, and every `piece_length` tokens after either."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    document_start = jax.lax.cummax(jnp.where(tokens == BOS_ID, place, 0), axis=1)
    return (place - document_start) % piece_length == 0


def rotary_base(config: ModelConfig, length: int) -> float:
    """Base of the rotary frequencies for pieces of up to `length` tokens.

    Past `rope_original_length` it grows by (length / original)^(d / (d − 2)), in training too.
    """
    dims, original = config.rope_dims or config.head_dim, config.rope_original_length
    if not original or length <= original or dims <= 2:
        return config.rope_base
    return config.rope_base * (length / original) ** (dims / (dims - 2))


def rotary_tables(
    config: ModelConfig, length: int, longest_piece: int
) -> tuple[Float[Array, "T r"], Float[Array, "T r"]]:
    """Cosines and sines of the rotary angles: position in the row × base^(−2j/d)."""
    dims = config.rope_dims or config.head_dim
    exponents = -jnp.arange(0, dims, 2, dtype=jnp.float32) / dims
    frequencies = (rotary_base(config, longest_piece) ** exponents).astype(config.rope_frequency_dtype)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies.astype(jnp.float32)
    return jnp.cos(angles), jnp.sin(angles)
