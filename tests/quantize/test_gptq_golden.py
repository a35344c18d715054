"""GPTQ, corrections and input moments against the numbers of the script of pull request #1855, float32 on a CPU."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jgolf.config import LqerConfig, QuantizeConfig
from jgolf.quantize import lqer
from jgolf.quantize.curvature import input_moments
from jgolf.quantize.export import quantize, rows_of
from jgolf.quantize.gptq import Unrounded, feedback, gptq
from jgolf.quantize.rows import largest_level, sigma_scales
from jgolf.torch_bridge.names import path_of_torch_name, to_params
from tests.conftest import GOLDEN, params_of
from tests.pr1855 import FOLDER, MODEL, RECORD

GPTQ = GOLDEN / "gptq"
AS_THE_RECORD = dataclasses.replace(RECORD.quantize, lqer=dataclasses.replace(RECORD.quantize.lqer, dead_columns=True))
MOST_OTHER_LEVELS = 1e-3
"""Of a matrix: a difference at one column moves later ones of the row."""
EVERY_37TH = slice(None, None, 37)


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GPTQ / f"{name}.npz") as file:
        return dict(file)


def described(name: str):
    return json.loads((GPTQ / f"{name}.json").read_text())


def part(of: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in of.items() if name.startswith(prefix)}


MATRICES = [("matrices", entry) for entry in described("matrices")] + [
    ("edges", entry) for entry in described("edges")["matrices"]
]


@pytest.mark.parametrize(("file", "entry"), MATRICES, ids=[entry["name"] for _, entry in MATRICES])
def test_steps_order_factor_and_levels(file, entry):
    expected = part(arrays(file), entry["name"] + "/")
    weights, c = expected["W"].astype(np.float32), largest_level(entry["bits"])
    assert c == entry["clip_range"]
    scales = sigma_scales(weights, entry["bits"], entry["clip_sigmas"])
    np.testing.assert_array_equal(scales, expected["scale"])
    dead = np.diag(expected["H"]) == 0
    assert [*np.flatnonzero(dead)] == entry.get("dead_columns", [])
    how = feedback(expected["H"] + np.diag(dead).astype(np.float64))
    np.testing.assert_array_equal(how.order, expected["perm"])
    np.testing.assert_allclose(how.pivots, expected["U_diagonal"] ** -2.0, rtol=2e-4)
    levels = gptq({"m": Unrounded(weights, scales, c, expected["H"])})["m"]
    assert np.mean(levels != expected["q"]) <= MOST_OTHER_LEVELS
    assert not levels[:, dead].any() and np.abs(levels).max() <= c


def params_of_rows(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return to_params({name: values.astype(np.float32) for name, values in weights.items()})[0]


def moments_of(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    inputs = {path_of_torch_name(name): x.astype(np.float32) for name, x in inputs.items()}
    return {path: x.T @ x for path, x in inputs.items()}


def assert_factors(found, packed: dict[str, np.ndarray], error: np.ndarray, config: LqerConfig) -> np.ndarray:
    """The factors' integers and steps, once every component is turned to the sign that it has there; their product."""
    suffix = "_a" if config.asymmetric else ""
    left, right = lqer.factors(error, config.rank)
    there = packed["lqA" + suffix].astype(np.float32), packed["lqB" + suffix].astype(np.float32)
    signs = np.sign(np.einsum("rk,rk->k", left, there[0]) + np.einsum("kc,kc->k", right, there[1]))
    turned = lqer.correction(left * signs, right * signs[:, None], config)
    for factor, name in ((turned.left, "lqA"), (turned.right, "lqB")):
        np.testing.assert_array_equal(factor.levels, packed[name + suffix])
        scales = packed[name + "s" + suffix].ravel()
        assert np.mean(factor.scales != scales) <= (0 if config.asymmetric else 5e-3)
        np.testing.assert_allclose(factor.scales.astype(float), scales.astype(float), rtol=1e-3)
    np.testing.assert_array_equal(found.left.scales, turned.left.scales)
    assert found.left.levels.shape == turned.left.levels.shape
    return turned.dequantize()


def test_a_whole_state_through_all_forms():
    golden, expected = arrays("mixed"), described("mixed")
    weights, packed = part(golden, "W/"), part(golden, "packed/")
    params = params_of_rows(weights)
    stored = quantize(params, AS_THE_RECORD, moments_of(part(golden, "X/")))
    settings = expected["lqer"]
    assert AS_THE_RECORD.lqer == LqerConfig(
        settings["rank"], settings["top_k"], settings["factor_bits"], settings["asymmetric"], settings["group"], True
    )
    for name, form in expected["meta"].items():
        tensor = stored[path_of_torch_name(name)]
        restored = rows_of(path_of_torch_name(name), tensor.dequantize())
        if form == "passthrough (float16)":
            assert tensor.form == "fp16"
            np.testing.assert_array_equal(restored, packed[name])
        elif form == "gate_int8_row":
            assert tensor.form == "int8"
            np.testing.assert_array_equal(tensor.values, packed[name + ".gq"])
            np.testing.assert_array_equal(tensor.scales, packed[name + ".gs"])
            np.testing.assert_array_equal(restored, golden[f"dequantized/{name}"])
        else:
            assert form.startswith(f"gptq ({tensor.form})")
            assert np.mean(tensor.values != packed[name + ".q"]) <= MOST_OTHER_LEVELS
            np.testing.assert_array_equal(tensor.scales, packed[name + ".scale"])
            assert (tensor.correction is not None) == form.endswith("+lqer_asym")
            norms = expected["error_norms"][name]
            whole = weights[name].astype(np.float32)
            plain = whole - tensor.values * tensor.scales.astype(np.float32)[:, None]
            assert np.linalg.norm(plain) == pytest.approx(norms["error_norm"], rel=2e-3)
            assert np.linalg.norm(whole - restored) == pytest.approx(norms["error_norm_after_lqer"], rel=2e-3)
            if tensor.correction is not None:
                product = assert_factors(tensor.correction, part(packed, name + "."), plain, AS_THE_RECORD.lqer)
                restored = whole - plain + product
            rows = restored[EVERY_37TH] - golden[f"dequantized_rows/{name}"]
            assert np.abs(rows).mean() < 1e-4 * whole.std()


@pytest.mark.parametrize("how", ["asym", "sym"])
def test_both_forms_of_corrections_with_dead_columns_and_opposed_rows(how):
    golden, expected = arrays("edges"), described("edges")
    settings = expected["lqer"]
    config = dataclasses.replace(
        AS_THE_RECORD,
        lqer=LqerConfig(
            settings["rank"], settings["top_k"], settings["factor_bits"], how == "asym", settings["group"], True
        ),
    )
    weights = part(golden, "W/")
    moments = moments_of(part(golden, "X/"))
    stored = quantize(params_of_rows(weights), config, moments)
    left_out = quantize(
        params_of_rows(weights),
        dataclasses.replace(config, lqer=dataclasses.replace(config.lqer, dead_columns=False)),
        moments,
    )
    for name, facts in expected["tensors"].items():
        path = path_of_torch_name(name)
        tensor, whole = stored[path], weights[name].astype(np.float32)
        np.testing.assert_array_equal(tensor.scales, golden[f"packed/{name}.scale"])
        assert np.mean(tensor.values != golden[f"packed/{name}.q"]) <= MOST_OTHER_LEVELS
        error = whole - tensor.values * tensor.scales.astype(np.float32)[:, None]
        packed = part(part(golden, f"packed_{how}/"), name + ".")
        product = assert_factors(tensor.correction, packed, error, config.lqer)
        rows = (whole - error + product)[EVERY_37TH] - golden[f"dequantized_rows_{how}/{name}"]
        assert np.abs(rows).mean() < 1e-4 * whole.std()
        singular = np.linalg.svd(error, compute_uv=False)[: settings["rank"] + 1]
        np.testing.assert_allclose(singular, facts["top_singular_values"], rtol=2e-4)
        restored = rows_of(path, tensor.dequantize())
        after = np.linalg.norm(whole - restored)
        assert after == pytest.approx(facts[how]["error_norm_after_lqer"], rel=2e-3)
        live = np.setdiff1d(np.arange(whole.shape[1]), facts["dead_columns"])
        assert not tensor.values[:, facts["dead_columns"]].any()
        if facts["dead_columns"]:
            better = np.linalg.norm((whole - rows_of(path, left_out[path].dequantize()))[:, live])
            assert better < 0.99 * np.linalg.norm((whole - restored)[:, live])


def test_moments_are_sums_over_the_inputs_of_every_run_of_a_block():
    golden, expected = arrays("hessians"), described("hessians")
    with np.load(FOLDER / "model.npz") as file:
        params = params_of(file, "params/")
    rows = golden["rows"].astype(np.int32)
    found = input_moments(MODEL, params, rows.reshape(-1, rows.shape[-1]), rows[0].size)
    assert len(found) == len(expected["trace"]) == 6 * MODEL.num_layers + 1
    for name, trace in expected["trace"].items():
        assert np.trace(found[path_of_torch_name(name)]) == pytest.approx(trace, rel=1e-5)
    for name, moments in part(golden, "H/").items():
        distance = np.abs(found[path_of_torch_name(name)] - moments).max()
        assert distance < 1e-5 * np.abs(moments).max(), name
    for part_name in "kv":
        np.testing.assert_array_equal(
            found[f"blocks/3/attn/{part_name}_proj/kernel"], found["blocks/3/attn/q_proj/kernel"]
        )


def test_rows_without_a_step_are_zeros_and_never_nan():
    """Fresh output projections and gates are all zero; a constant row has no deviation."""
    config = QuantizeConfig(
        mlp="int6", attention="int6", gate="int8", small_size=0, mlp_clip_sigmas=11.5, attention_clip_sigmas=13.0,
        gptq=True, lqer=LqerConfig(rank=2, top=9),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    some = rng.normal(size=(48, 40)).astype(np.float32)
    some[:, 3], some[:, 4] = 0.0, 0.25
    params = {
        "blocks/0/mlp/up_proj/kernel": some,
        "blocks/0/mlp/down_proj/kernel": np.zeros((40, 48), np.float32),
        "blocks/0/attn/out_proj/kernel": np.zeros((40, 1), np.float32),
        "blocks/0/attn/q_proj/kernel": np.ones((1, 40), np.float32),  # one input: no deviation to speak of
        "blocks/0/attn/gate": np.zeros((4, 12), np.float32),
    }
    for moments in (None, {path: np.eye(len(values)) for path, values in params.items() if path.endswith("kernel")}):
        stored = quantize(params, config, moments)
        for path, tensor in stored.items():
            assert np.isfinite(tensor.dequantize()).all(), path
        up = stored["blocks/0/mlp/up_proj/kernel"]
        assert not up.values[[3, 4]].any() and not up.scales[[3, 4]].any() and up.values[5].any()
        assert not stored["blocks/0/mlp/down_proj/kernel"].dequantize().any()
        assert not stored["blocks/0/attn/gate"].values.any()


def test_without_moments_the_levels_are_the_nearest_ones():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(30, 50)).astype(np.float32)
    config = dataclasses.replace(RECORD.quantize, small_size=0, lqer=LqerConfig())
    path = "blocks/0/mlp/up_proj/kernel"
    tensor = quantize({path: weights}, config)[path]
    steps = (11.5 * weights.T.std(axis=1, ddof=1) / 31).astype(np.float16)
    np.testing.assert_array_equal(tensor.scales, steps)
    np.testing.assert_array_equal(
        tensor.values, np.clip(np.rint(weights.T / steps[:, None].astype(np.float32)), -31, 31)
    )


def test_feedback_beats_rounding_to_the_nearest_level_on_the_calibration_inputs():
    golden = arrays("mixed")
    params, inputs = params_of_rows(part(golden, "W/")), part(golden, "X/")
    config = dataclasses.replace(RECORD.quantize, lqer=LqerConfig())
    near, fed = quantize(params, config), quantize(params, config, moments_of(inputs))
    for name, x in inputs.items():
        path = path_of_torch_name(name)
        cost = [
            np.square(x.astype(np.float32) @ rows_of(path, params[path] - one[path].dequantize()).T).mean()
            for one in (near, fed)
        ]
        assert cost[1] < 0.5 * cost[0], name
