"""The network a token at a time: what earlier positions leave for later ones is kept in a cache.

The layers are plain.py's; a step runs them on one token of every row and hands them a past, which reads the cache
and fills the next one. All rows stand at the same position. Shapes as in plain.py; W is the cache's length.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jgolf.config import ModelConfig, resolved
from jgolf.config.plan import make_plan
from jgolf.data.shards import BOS_ID
from jgolf.model import plain
from jgolf.model.context import Context, rotary_tables
from jgolf.model.embeddings import pair_hash
from jgolf.model.kernels.attention import attention_where
from jgolf.model.lora import NO_ADDITIONS

Cache = dict[str, Array]
"""By name: `position` [], the tokens so far; `start` [B], where each row's document began; `token` [B, 1], the last
one; the streams [B, 1, D] that a smear reads one position later; keys and values [B, K, W, H] of every execution of a
block."""


def empty_cache(config: ModelConfig, rows: int, length: int, looped: bool = True) -> Cache:
    """The cache before the first token.

    Args:
      config: the network.
      rows: texts that run beside one another.
      length: positions that there is room for.
      looped: whether the loop's layers run more than once.
    """
    config = resolved(config)
    dtype = jnp.dtype(config.compute_dtype)
    cache = {
        "position": jnp.zeros((), jnp.int32),
        "start": jnp.zeros(rows, jnp.int32),
        "token": jnp.zeros((rows, 1), jnp.int32),
    }
    smears = {"gated smear": config.gated_smear, "smear": config.smear_gate}
    cache |= {name: jnp.zeros((rows, 1, config.model_dim), dtype) for name, is_on in smears.items() if is_on}
    heads = rows, config.num_kv_heads, length, config.head_dim
    names = [visit.name for visit in make_plan(config, looped)]
    return cache | {f"{part} of {name}": jnp.zeros(heads, dtype) for name in names for part in ("keys", "values")}


def cache_bytes(config: ModelConfig, length: int) -> int:
    """What a row of the cache takes, but for a few numbers."""
    kept = 2 * config.kv_dim * length * jnp.dtype(config.compute_dtype).itemsize
    return kept * len(make_plan(resolved(config)))


def step(
    config: ModelConfig,
    params: plain.Params,
    cache: Cache,
    tokens: Int[Array, " B"],
    *,
    documents: bool = False,
    rotary_length: int = 0,
    looped: bool = True,
) -> tuple[Float[Array, "B V"], Cache]:
    """Logits for the token after the next one of every row, float32, and the cache with that one in it.

    As `jgolf.model.functional.apply` gives them for the last of all tokens so far, with kernels or without; the cache
    must have room for one more.

    Args:
      config: the network.
      params: its parameters.
      cache: of the tokens before, by `empty_cache` or a step.
      tokens: the next ones.
      documents: whether attention stays within documents, which begin with BOS.
      rotary_length: length by which the rotary base is chosen; 0 for the cache's.
      looped: as for the cache.
    """
    config, tokens = resolved(config), tokens[:, None].astype(jnp.int32)
    plan, begins = make_plan(config, looped), tokens == BOS_ID
    length = cache[f"keys of {plan[0].name}"].shape[2]
    tables = rotary_tables(config, length, rotary_length or length)
    rotary = (jax.lax.dynamic_slice_in_dim(table, cache["position"], 1) for table in tables)
    past = _Past(cache, tokens, documents)
    context = Context(tokens, begins, None, length, *rotary, NO_ADDITIONS, past)
    x = plain.hidden(config, params, context, plan, lambda name, value: None, last=1)
    return plain.logits(config, params, x)[:, 0], past.following


class _Past:
    """`jgolf.model.context.Past` of a step: what the layers ask for is read from a cache and put into `following`."""

    def __init__(self, cache: Cache, tokens: Int[Array, "B 1"], documents: bool):
        self._cache, self._position = cache, cache["position"]
        begins = (tokens[:, 0] == BOS_ID) & documents
        self.following: Cache = {
            "position": self._position + 1,
            "start": jnp.where(begins, self._position, cache["start"]),
            "token": tokens,
        }

    def bigram_hash(self, tokens: Int[Array, "B 1"], buckets: int) -> Int[Array, "B 1"]:
        return jnp.where(self._position == 0, buckets - 1, pair_hash(tokens, self._cache["token"], buckets))

    def before(self, name: str, x: Float[Array, "B 1 D"]) -> Float[Array, "B 1 D"]:
        self.following[name] = x
        return self._cache[name]

    def attention(
        self, name: str, q: Float[Array, "B 1 N H"], k: Float[Array, "B 1 K H"], v: Float[Array, "B 1 K H"]
    ) -> Float[Array, "B 1 N H"]:
        k, v = (self._kept(f"{part} of {name}", new) for part, new in (("keys", k), ("values", v)))
        place = jnp.arange(k.shape[1])
        visible = (self.following["start"][:, None] <= place) & (place <= self._position)
        return attention_where(q, k, v, visible[:, None])

    def _kept(self, name: str, new: Float[Array, "B 1 K H"]) -> Float[Array, "B W K H"]:
        """All positions' keys or values with the step's own among them; heads are kept apart, as products read them."""
        kept = jax.lax.dynamic_update_slice_in_dim(self._cache[name], new.swapaxes(1, 2), self._position, axis=2)
        self.following[name] = kept
        return kept.swapaxes(1, 2)
