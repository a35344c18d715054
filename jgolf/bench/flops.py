"""Floating-point operations that the model itself asks for, in closed form.

A product of [n, i] and [i, o] counts 2·n·i·o; attention counts the pairs of positions that causality leaves.
The backward pass does twice the forward pass: a product for the gradient of each factor. What an
implementation computes again, or computes and masks, does not count, nor does anything that is no product.
"""

from __future__ import annotations

from jgolf.config import ModelConfig


def forward_flops(model: ModelConfig, sequences: int, seq_len: int, last: int = 0) -> int:
    """Operations to get the logits of the `last` positions of each sequence, or of all where it is 0."""
    last = last or seq_len
    all_positions, last_positions = sequences * seq_len, sequences * last
    qkv = 2 * model.model_dim * (model.model_dim + 2 * model.kv_dim)
    after_attention = 2 * model.model_dim * (model.model_dim + 2 * model.mlp_dim)
    inner_layers = model.num_layers - 1
    total = inner_layers * (all_positions * (qkv + after_attention) + attention_flops(model, sequences, seq_len))
    total += all_positions * qkv + last_positions * after_attention + attention_flops(model, sequences, seq_len, last)
    if model.bigram_buckets and model.bigram_dim != model.model_dim:
        total += all_positions * 2 * model.bigram_dim * model.model_dim
    if model.value_embedding_dim != model.kv_dim:
        each = all_positions * 2 * model.value_embedding_dim * model.kv_dim
        total += len(model.value_embedding_layers) * each
    return total + last_positions * 2 * model.model_dim * model.vocab_size


def train_flops(model: ModelConfig, sequences: int, seq_len: int) -> int:
    """Operations of the forward and the backward pass of a training step."""
    return 3 * forward_flops(model, sequences, seq_len)


def attention_flops(model: ModelConfig, sequences: int, seq_len: int, last: int = 0) -> int:
    """Operations of one layer's causal attention, forward: scores and weighted values, for the `last` queries or all.

    The query at position t, from 0, sees t + 1 keys.
    """
    last = last or seq_len
    pairs = last * seq_len - last * (last - 1) // 2
    return sequences * 4 * model.model_dim * pairs


def newton_schulz_flops(count: int, rows: int, columns: int, steps: int) -> int:
    """Operations to orthogonalize `count` matrices: XXᵀ, its square, and the product with X, in each step."""
    short, long = sorted((rows, columns))
    return count * steps * (4 * short * short * long + 2 * short**3)
