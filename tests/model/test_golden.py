"""The network against numbers that the PyTorch reference computed, on the CPU in float32."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf.model.embeddings import bigram_hash
from jgolf.model.functional import apply, loss, parameter_shapes
from jgolf.quantize.fake import fake_quantize
from jgolf.torch_bridge.names import by_torch_name
from tests.conftest import RECIPE, params_of

TINY = Path(__file__).parents[1] / "golden" / "tiny"
CONFIG = dataclasses.replace(
    RECIPE.model,
    vocab_size=128,
    num_layers=4,
    model_dim=64,
    num_heads=4,
    num_kv_heads=2,
    bigram_buckets=97,
    bigram_dim=16,
    xsa_layers=(2, 3),
    rope_dims=8,
    value_embedding_layers=(2, 3),
    value_embedding_dim=16,
    compute_dtype="float32",
    kernels="interpret",
)
FORWARD_TOLERANCE = 2e-5
GRADIENT_TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(TINY / "model.npz") as file:
        return dict(file)


def relative_error(found: jax.Array, expected: np.ndarray) -> float:
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected))


def test_every_reference_tensor_has_a_parameter(golden):
    names = {name.removeprefix("params/") for name in golden if name.startswith("params/")}
    assert names == set(by_torch_name(parameter_shapes(CONFIG)))


def test_bigram_hash(golden):
    np.testing.assert_array_equal(bigram_hash(golden["x"], CONFIG.bigram_buckets), golden["bigram_hash"])


def test_logits(golden):
    logits = jax.jit(partial(apply, CONFIG))(params_of(golden, "params/"), golden["x"])
    assert relative_error(logits, golden["logits"]) < FORWARD_TOLERANCE


def test_logits_of_a_sequence_with_a_rescaled_rotary_base(golden):
    logits = jax.jit(partial(apply, CONFIG))(params_of(golden, "params/"), golden["long_x"])
    assert relative_error(logits[:, -16:], golden["long_logits_last16"]) < FORWARD_TOLERANCE


@pytest.mark.parametrize("quantized", [False, True])
def test_loss_and_every_gradient(golden, quantized):
    params = params_of(golden, "params/")
    if quantized:
        params = fake_quantize(params, RECIPE.quantize)
    prefix = "qat_" if quantized else ""
    value, grads = jax.jit(jax.value_and_grad(partial(loss, CONFIG)))(params, golden["x"], golden["y"])
    np.testing.assert_allclose(value, golden[prefix + "loss"], rtol=FORWARD_TOLERANCE)
    expected = params_of(golden, prefix + "grads/")
    errors = {path: relative_error(grads[path], expected[path]) for path in grads}
    assert max(errors.values()) < GRADIENT_TOLERANCE, errors
