"""The factors against Fisher information computed by going through every label."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.model.embeddings import bigram_hash
from jgolf.model.functional import apply, hidden, parameter_shapes
from jgolf.quantize.curvature import _gradients, curvature, input_moments
from tests.conftest import RECIPE

MODEL = dataclasses.replace(
    RECIPE.model,
    vocab_size=6,
    num_layers=1,
    model_dim=8,
    num_heads=2,
    num_kv_heads=1,
    xsa_layers=(),
    value_embedding_layers=(0,),
    value_embedding_dim=4,
    bigram_buckets=16,
    bigram_dim=4,
    rope_dims=4,
    compute_dtype="float32",
)
KERNEL = "blocks/0/mlp/up_proj/kernel"


def random_params(model, scale=0.5):
    rng = np.random.default_rng(0)
    return {
        path: np.asarray(rng.normal(size=shape) * scale, np.float32) for path, shape in parameter_shapes(model).items()
    }


gradients = jax.jit(_gradients, static_argnums=(0, 1))


@jax.jit
def log_probabilities(params, tokens):
    return jax.nn.log_softmax(apply(MODEL, params, tokens))


def test_factors_are_the_moments_of_the_gradients_over_the_model_s_own_labels():
    params = random_params(MODEL)
    tokens = np.full((1000, 1), 3, np.int32)  # one position: its six labels can be gone through
    found = curvature(MODEL, params, tokens, jax.random.key(1))[KERNEL]

    def of_kernel(kernel):
        return log_probabilities({**params, KERNEL: kernel}, tokens[:1])[0, 0]

    grads = np.asarray(jax.jit(jax.jacobian(of_kernel))(params[KERNEL])).transpose(0, 2, 1)  # label, row, column
    probabilities = np.exp(of_kernel(params[KERNEL]))
    rows = np.einsum("v,vrc->r", probabilities, grads**2)
    columns = np.einsum("v,vrc,vrd->cd", probabilities, grads, grads)
    np.testing.assert_allclose(found.rows, rows, atol=0.1 * rows.max())
    np.testing.assert_allclose(found.columns, columns, atol=0.1 * np.abs(columns).max())
    assert np.trace(found.columns) == pytest.approx(found.rows.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("path", "size"),
    # Queries matter so little here that a smaller error would drown in float32's rounding.
    [(KERNEL, 0.01), ("blocks/0/attn/q_proj/kernel", 0.1), ("embed/embedding", 0.01), ("bigram/embedding", 0.01)],
)
def test_predicted_damage_is_the_loss_that_small_errors_cost(path, size):
    params = random_params(MODEL)
    tokens = np.random.default_rng(1).integers(0, 6, (200, 16)).astype(np.int32)
    factors = curvature(MODEL, params, tokens, jax.random.key(1))[path]
    log_p = log_probabilities(params, tokens)
    costs, predicted = [], []
    for seed in range(8):
        error = size * np.random.default_rng(seed).normal(size=params[path].shape).astype(np.float32)
        log_q = log_probabilities({**params, path: params[path] + error}, tokens)
        costs.append(float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))))
        predicted.append(factors.damage(error.T if path.endswith("kernel") else error))
    assert np.mean(predicted) == pytest.approx(np.mean(costs), rel=0.35)  # a product of two factors is an approximation


def test_rows_that_are_looked_up_more_often_count_for_more():
    tokens = np.array([[1, 1, 1, 1, 2, 1, 1, 1]], np.int32)
    found = curvature(MODEL, random_params(MODEL), tokens, jax.random.key(0))
    values = found["value_embed/embedding"].rows
    np.testing.assert_allclose(values / values[2], np.array([0.5, 7.5, 1.5, 0.5, 0.5, 0.5]) / 1.5, rtol=1e-6)
    bigrams = found["bigram/embedding"].rows
    first_position, twice_one = 15, ((36313 * 1) ^ (27191 * 1)) % 15
    assert bigrams[first_position] / bigrams[twice_one] == pytest.approx(1.5 / 5.5)


def test_every_table_that_is_only_looked_up_counts_by_how_often():
    """An untied embedding is such a table: rows that calibration lacks must not count for nothing."""
    tokens = np.array([[1, 1, 1, 1, 2, 1, 1, 1]], np.int32)
    untied = dataclasses.replace(MODEL, tie_embeddings=False)
    found = curvature(untied, random_params(untied), tokens, jax.random.key(0))
    rows = found["embed/embedding"].rows
    np.testing.assert_allclose(rows / rows[2], np.array([0.5, 7.5, 1.5, 0.5, 0.5, 0.5]) / 1.5, rtol=1e-6)
    for path in (path for path in found if path.endswith("/embedding")):
        assert found[path].rows.min() > 0, path
    tied = curvature(MODEL, random_params(MODEL), tokens, jax.random.key(0))["embed/embedding"].rows
    assert tied[0] / tied[2] > 0.5  # every row of a head has a gradient, seen or not


def test_a_tied_embedding_counts_as_the_table_and_as_the_head():
    """Its gradient is the sum of both uses' own, which a model with the same weights apart has."""
    params = random_params(MODEL)
    tokens = np.random.default_rng(2).integers(0, 6, (1, 16)).astype(np.int32)
    key = jax.random.key(3)
    found = curvature(MODEL, params, tokens, key)["embed/embedding"]
    apart = dataclasses.replace(MODEL, tie_embeddings=False)
    grads = gradients(
        apart, 0, {**params, "head/kernel": params["embed/embedding"].T}, tokens[0], jax.random.split(key, 1)[0]
    )
    table, head = np.asarray(grads["embed/embedding"], np.float64), np.asarray(grads["head/kernel"], np.float64).T
    both = table + head
    np.testing.assert_allclose(
        found.columns * tokens.size, both.T @ both, rtol=1e-4, atol=1e-5 * np.abs(both).max() ** 2
    )
    rows = np.square(both).sum(axis=1)
    seen = np.bincount(tokens[0], minlength=6)
    lacking = np.maximum((seen + 0.5) / 19 * 16 - seen, 0)  # half an occurrence more of each, and shares of that
    np.testing.assert_allclose(found.rows * tokens.size, rows + lacking * rows.sum() / 16, rtol=1e-4)
    for one in (table, head):
        assert np.linalg.norm(one) > 0.2 * np.linalg.norm(both)


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_other_text_has_more_of_count_as_often_as_there(tied):
    """Of a head's rows, and of tables': a few sequences lack much of a vocabulary, and what comes next does not."""
    model = dataclasses.replace(MODEL, tie_embeddings=tied)
    params, tokens = random_params(model), np.array([[1, 1, 2, 1, 2, 4, 1, 1]], np.int32)
    counted = [np.array([0] * 59 + [1] * 20, np.uint16), np.array([2] * 12 + [3] * 5, np.uint16)]
    shares = np.array([59.5, 20.5, 12.5, 5.5, 0.5, 0.5]) / 99
    alone, found = (curvature(model, params, tokens, jax.random.key(0), counted=runs) for runs in ((), counted))
    plain = np.square(np.asarray(gradients(model, 0, params, tokens[0], jax.random.split(jax.random.key(0), 1)[0])[
        "embed/embedding" if tied else "head/kernel"], np.float64))  # fmt: skip
    plain = plain.sum(axis=1 if tied else 0) / 8
    missing = np.maximum(8 * shares - np.array([0, 5, 2, 0, 1, 0]), 0)
    head = "embed/embedding" if tied else "head/kernel"
    np.testing.assert_allclose(found[head].rows, plain + missing * plain.sum() / 8, rtol=1e-4)
    for table in {"value_embed/embedding", "embed/embedding"} - {head}:
        np.testing.assert_allclose(found[table].rows / found[table].rows.sum(), shares, rtol=1e-6)
    np.testing.assert_array_equal(found[KERNEL].rows, alone[KERNEL].rows)


def test_moments_of_a_small_network_are_those_of_its_inputs_worked_out_one_by_one():
    """Tables' projections read what was looked up; an untied head reads the output of the last norm."""
    model = dataclasses.replace(MODEL, tie_embeddings=False, value_embedding_dim=2)
    params = random_params(model)
    tokens = np.random.default_rng(2).integers(0, 6, (3, 16)).astype(np.int32)
    found = input_moments(model, params, tokens, 24)
    assert "embed/embedding" not in found and {path for path in found} == {p for p in params if p.endswith("/kernel")}
    x = np.asarray(jax.jit(hidden, static_argnums=0)(model, params, tokens), np.float64).reshape(-1, model.model_dim)
    np.testing.assert_allclose(found["head/kernel"], x.T @ x / 2, rtol=1e-4, atol=1e-4)
    x = np.asarray(params["value_embed/embedding"], np.float64)[tokens.ravel()]
    np.testing.assert_allclose(found["value_embed/proj/kernel"], x.T @ x / 2, rtol=1e-4, atol=1e-4)
    x = np.asarray(params["bigram/embedding"], np.float64)[np.asarray(bigram_hash(tokens, 16)).ravel()]
    np.testing.assert_allclose(found["bigram/proj/kernel"], x.T @ x / 2, rtol=1e-4, atol=1e-4)
    apart = input_moments(model, params, tokens, 24, piece_length=4)
    assert np.abs(apart[KERNEL] - found[KERNEL]).max() > 1e-3


def test_models_without_tables_have_matrices_only():
    model = dataclasses.replace(MODEL, bigram_buckets=0, value_embedding_layers=(), tie_embeddings=False)
    params = random_params(model)
    found = curvature(model, params, np.zeros((1, 4), np.int32), jax.random.key(0))
    assert set(found) == {p for p in params if p.endswith(("/kernel", "/embedding"))}
    assert found["head/kernel"].columns.shape == (8, 8) and found["head/kernel"].rows.shape == (6,)
