"""The network of pull request #1855 against numbers that its own classes computed, on the CPU in float32."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from jgolf.config import resolved
from jgolf.config.plan import layer_order, make_plan, num_skips
from jgolf.model.context import make_context
from jgolf.model.functional import apply, block_outputs, hidden, logits_of, loss, parameter_shapes
from jgolf.torch_bridge.names import by_torch_name
from tests.conftest import params_of, relative_distances
from tests.pr1855 import FOLDER, MODEL, RECORD, SETTINGS

FORWARD_TOLERANCE = 2e-5  # with rotary frequencies that are not rounded the logits are 6e-5 off
GRADIENT_TOLERANCE = 2e-4
PIECE_LENGTH = SETTINGS["train_seq_len"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "model.npz") as file:
        return dict(file)


def assert_close(found, expected: np.ndarray) -> None:
    """Within the tolerance, of the largest value."""
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() < FORWARD_TOLERANCE * np.abs(expected).max()


def test_parameters_and_order_of_layers(golden):
    shapes = {path: value.shape for path, value in params_of(golden, "params/").items()}
    assert shapes == parameter_shapes(MODEL)
    assert sum(map(np.prod, shapes.values())) == SETTINGS["parameters"]
    assert num_skips(MODEL) == SETTINGS["num_skip_weights"]
    for looped, name in ((False, "layers_off"), (True, "layers_on")):
        assert [*layer_order(MODEL, looped)] == SETTINGS[name]["encoder"] + SETTINGS[name]["decoder"]


def test_the_real_size():
    expected = json.loads((FOLDER / "init_stats_real.json").read_text())
    model = resolved(RECORD.model)
    found = {name: list(shape) for name, shape in by_torch_name(parameter_shapes(model), banks=True).items()}
    assert found == {name: stats["shape"] for name, stats in expected.items() if not name.startswith("_")}
    assert sum(map(np.prod, found.values())) == expected["_parameters"]
    assert [*layer_order(model, looped=True)] == expected["_encoder_on"] + expected["_decoder_on"]
    context = make_context(model, np.zeros((1, 2), np.int32))
    np.testing.assert_allclose(np.arctan2(context.sin, context.cos)[1], expected["_inv_freq"], rtol=1e-6)


@pytest.mark.parametrize(
    ("kernels", "looped"),
    [
        ("plain", False),
        ("plain", True),
        pytest.param("interpret", False, marks=pytest.mark.slow),  # the modules with loops, the order without are here
        ("interpret", True),
    ],
)
def test_hidden_states_logits_loss_and_gradients(golden, kernels, looped):
    model = dataclasses.replace(MODEL, kernels=kernels)
    params, phase = params_of(golden, "params/"), "on" if looped else "off"
    how = {"looped": looped, "piece_length": PIECE_LENGTH}

    @jax.jit
    def everything(params):
        x = hidden(model, params, golden["x"], **how)
        return (
            x,
            logits_of(model, params, x),
            jax.value_and_grad(partial(loss, model, inputs=golden["x"], targets=golden["y"], **how))(params),
        )

    x, logits, (value, grads) = everything(params)
    assert_close(x, golden[f"hidden_{phase}"])
    assert_close(logits, golden[f"logits_{phase}"])
    np.testing.assert_allclose(value, golden[f"loss_{phase}"], rtol=FORWARD_TOLERANCE)
    expected = params_of(golden, f"grads_{phase}/")
    distances = relative_distances({path: grads[path] for path in expected}, expected)
    assert max(distances.values()) < GRADIENT_TOLERANCE, distances
    unused = {path: np.asarray(grads[path])[: MODEL.lanes_from] for path in ("lanes/residual", "lanes/post")}
    if not looped:
        used = {visit.skip for visit in make_plan(MODEL, looped)} - {None}
        unused |= {path: np.asarray(grads[path])[len(used) :] for path in ("skip_weights", "skip_gates")}
    assert not any(values.any() for values in unused.values())


def test_attention_of_every_run_of_a_block(golden):
    params = params_of(golden, "params/")
    seen = jax.jit(partial(block_outputs, MODEL, looped=True, piece_length=PIECE_LENGTH))(params, golden["x"])
    found = [seen[f"attention of {visit.name}"][0] for visit in make_plan(MODEL, looped=True)]
    assert_close(np.stack(found), golden["attn_out_on"])


@pytest.mark.parametrize("kernels", ["plain", "interpret"])
def test_without_documents_only_the_smear_heeds_them(golden, kernels):
    logits = jax.jit(partial(apply, dataclasses.replace(MODEL, kernels=kernels)))(
        params_of(golden, "params/"), golden["dense_x"]
    )
    assert_close(logits, golden["dense_logits_on"])
