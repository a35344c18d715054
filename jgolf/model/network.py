"""The network as modules, made for kernels: the plan's visits, one after the other. plain.py says what it computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jgolf.config import ModelConfig
from jgolf.config.plan import Plan, Visit, kept, num_skips
from jgolf.model.blocks import Block, Inputs, Skip
from jgolf.model.context import Context
from jgolf.model.embeddings import BigramHash, Embedding, GatedSmear, SmearGate, ValueEmbedding, shift_right
from jgolf.model.kernels.loss import head_losses, logit_losses, mean_head_loss, softcap
from jgolf.model.kernels.products import matmul
from jgolf.model.kernels.rowwise import Rows, rowwise
from jgolf.model.layers import Linear
from jgolf.model.lora import HEAD, Additions, added, additions_of
from jgolf.model.norm import rms_norm
from jgolf.model.plain import Observer


def rms_normalised(x: Float[Array, "n D"]) -> tuple[Array]:
    """`rms_norm` of the stream."""
    return (rms_norm(x),)


def rms_normalised_mean(a: Float[Array, "n D"], m: Float[Array, "n D"]) -> tuple[Array]:
    """`rms_norm` of the mean of both lanes."""
    return (rms_norm((a + m) / 2),)


def smeared(x: Float[Array, "n D"], before: Float[Array, "n D"], share: Float[Array, "n 1"]) -> tuple[Array]:
    """`rms_norm` of a stream to which a share of the position before is added."""
    return (rms_norm(x + share * before),)


class Lanes(nnx.Module):
    """What two-lane layers keep of each lane, and how much of each update goes to it; a row for every layer."""

    def __init__(self, num_layers: int):
        self.residual = nnx.Param(jnp.zeros((num_layers, 2)))
        self.post = nnx.Param(jnp.zeros((num_layers, 2, 2)))


class GPT(nnx.Module):
    """The whole network. Created with zeros: `jgolf.model.initial.init` gives the starting values."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.embed = Embedding(config.vocab_size, config.model_dim)
        self.bigram = (
            BigramHash(config.bigram_buckets, config.bigram_dim, config.model_dim) if config.bigram_buckets else None
        )
        self.gated_smear = GatedSmear(config.gate_window) if config.gated_smear else None
        self.smear = SmearGate(config.model_dim) if config.smear_gate else None
        self.value_embed = (
            ValueEmbedding(
                config.vocab_size, config.value_embedding_dim, config.kv_dim, len(config.value_embedding_layers)
            )
            if config.value_embedding_layers
            else None
        )
        self.blocks = nnx.List([Block(config, layer) for layer in range(config.num_layers)])
        skips = (num_skips(config), config.model_dim)
        self.skip_weights = nnx.Param(jnp.zeros(skips)) if skips[0] else None
        self.skip_gates = nnx.Param(jnp.zeros(skips)) if skips[0] and config.skip_gates else None
        self.lanes = Lanes(config.num_layers) if config.lanes_from else None
        self.head = None if config.tie_embeddings else Linear(config.model_dim, config.vocab_size)

    def hidden(self, context: Context, plan: Plan, observe: Observer, last: int) -> Float[Array, "B S D"]:
        """The normalised output of the last visit, at the `last` positions; the rest is not computed there.

        `observe` is given every visit's output.
        """
        choice, num_tokens = self.config.kernels, context.tokens.shape[1]
        x0 = self._embedded(context)
        observe("embedding", x0)
        inputs = Inputs(context, x0, self._value_embeddings(context), {})
        x: Rows | tuple[Rows, Rows] = (x0,)
        outputs: dict[int, Array] = {}
        split, read_later = False, kept(plan)
        for place, visit in enumerate(plan):
            block, skip = self.blocks[visit.layer], self._skip(place, visit, outputs)
            inputs = inputs._replace(additions=additions_of(context.additions, visit))
            how = {"last": last if place == len(plan) - 1 else num_tokens}
            how["keeps"] = place - 1 in read_later and visit.reads != place - 1
            if visit.two_lanes:
                x, split = x if split else (x, x), True
                keep, post = (param[...][visit.layer] for param in (self.lanes.residual, self.lanes.post))
                x, inputs, before = block.on_lanes(x, skip, inputs, keep=keep, post=post, **how)
            else:
                x, inputs, before = block.on_stream(x, skip, inputs, **how)
            if before is not None:
                outputs[place - 1] = before
            observe(visit.name, sum(x) / 2 if split else sum(x))
        if split:
            return rowwise(choice, rms_normalised_mean, list(x))[0]
        return rowwise(choice, rms_normalised, [x])[0]

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Softcapped float32 logits of normalised hidden states."""
        return softcap(matmul(hidden, self._head_kernel()), self.config.logit_softcap)

    def losses(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T *n"], additions: Additions
    ) -> Float[Array, "B T *n"]:
        """Negative log likelihood in nats of each target, or of several tokens in its place, float32.

        Args:
          hidden: normalised states.
          targets: ids.
          additions: to the matrices.
        """
        choice, cap = self.config.kernels, self.config.logit_softcap
        addition = added(additions, HEAD, hidden)
        if addition is None and targets.ndim == 2:
            return head_losses(choice, cap, hidden, self._head_kernel(), targets)
        logits = matmul(hidden, self._head_kernel())
        logits = logits if addition is None else logits + addition
        if targets.ndim == 2:
            return logit_losses(choice, cap, logits, targets)
        each = [logit_losses(choice, cap, logits, targets[..., index]) for index in range(targets.shape[-1])]
        return jnp.stack(each, axis=-1)

    def mean_loss(
        self, hidden: Float[Array, "B T D"], targets: Int[Array, "B T"], additions: Additions
    ) -> Float[Array, ""]:
        """The mean of `losses`."""
        if HEAD in additions:
            return jnp.mean(self.losses(hidden, targets, additions))
        config = self.config
        return mean_head_loss(config.kernels, config.logit_softcap, hidden, self._head_kernel(), targets)

    def _head_kernel(self) -> Float[Array, "D V"]:
        return self.embed.embedding[...].T if self.head is None else self.head.kernel[...]

    def _embedded(self, context: Context) -> Float[Array, "B T D"]:
        """The stream that the first block reads."""
        choice, dtype = self.config.kernels, jnp.dtype(self.config.compute_dtype)
        x = self.embed(choice, context.tokens, dtype)
        if self.bigram is not None:
            x = x + self.bigram(choice, context.tokens, dtype)
        if self.gated_smear is None:
            (x,) = rowwise(choice, rms_normalised, [x])
        else:
            (x,) = rowwise(choice, smeared, [x, shift_right(x), self.gated_smear(x, context.begins)])
        return x if self.smear is None else self.smear(x)

    def _value_embeddings(self, context: Context) -> dict[int, Float[Array, "B T K*H"]]:
        if self.value_embed is None:
            return {}
        values = self.value_embed(self.config.kernels, context.tokens, jnp.dtype(self.config.compute_dtype))
        return dict(zip(self.config.value_embedding_layers, values, strict=True))

    def _skip(self, place: int, visit: Visit, outputs: dict[int, Array]) -> Skip | None:
        if visit.reads is None:
            return None
        row = slice(visit.skip, visit.skip + 1)
        gate = None if self.skip_gates is None else jax.nn.sigmoid(self.skip_gates[...][row])
        return Skip(None if visit.reads == place - 1 else outputs[visit.reads], self.skip_weights[...][row], gate)
