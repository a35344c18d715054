"""Which parameter gets which storage form, and that dequantizing undoes the layout."""

import dataclasses

import numpy as np
import pytest

from jgolf.errors import ArtifactError
from jgolf.quantize.export import quantize
from jgolf.quantize.rows import quantize_rows, quantize_table_rows
from jgolf.quantize.stored import StoredTensor, dequantize
from tests.conftest import RECIPE

CONFIG = dataclasses.replace(RECIPE.quantize, small_size=100)


def normal(*shape, std=1.0):
    return (np.random.default_rng(sum(shape)).normal(size=shape) * std).astype(np.float32)


PARAMS = {
    "embed/embedding": normal(32, 16),
    "bigram/embedding": normal(64, 16),
    "bigram/proj/kernel": normal(16, 32),
    "blocks/0/attn/q_proj/kernel": normal(16, 16),
    "blocks/0/attn/k_proj/kernel": normal(16, 4),
    "blocks/0/mlp/up_proj/kernel": normal(16, 48),
    "smear/gate": normal(16),
    "bigram/scale": np.float32(0.05),
}


def test_forms_follow_the_rules():
    stored = quantize(PARAMS, CONFIG)
    assert {path: tensor.form for path, tensor in stored.items()} == {
        "embed/embedding": "fp16",
        "bigram/embedding": "int8",
        "bigram/proj/kernel": "int6",
        "blocks/0/attn/q_proj/kernel": "int6",
        "blocks/0/attn/k_proj/kernel": "fp16",
        "blocks/0/mlp/up_proj/kernel": "int5",
        "smear/gate": "fp32",
        "bigram/scale": "fp32",
    }
    assert all(tensor.shape == np.shape(PARAMS[path]) for path, tensor in stored.items())


def test_a_kernel_s_rows_are_its_outputs_and_a_table_s_its_entries():
    stored = quantize(PARAMS, CONFIG)
    kernel = stored["blocks/0/attn/q_proj/kernel"]
    weights = np.ascontiguousarray(PARAMS["blocks/0/attn/q_proj/kernel"].T)
    levels, scales = quantize_rows(weights, 6, CONFIG.clip_percentiles)
    np.testing.assert_array_equal(kernel.values, levels)
    np.testing.assert_array_equal(kernel.scales, scales)
    table = stored["bigram/embedding"]
    levels, scales = quantize_table_rows(PARAMS["bigram/embedding"], CONFIG.table_clip_percentile)
    np.testing.assert_array_equal(table.values, levels)
    np.testing.assert_array_equal(table.scales, scales)


def test_dequantize_is_within_half_a_step_in_the_parameter_s_own_layout():
    config = dataclasses.replace(RECIPE.quantize, small_size=100, clip_percentiles=(1.0,), scale_floor=False)
    restored = dequantize(quantize(PARAMS, config))
    largest_levels = {"bigram/proj/kernel": 31, "blocks/0/attn/q_proj/kernel": 31, "blocks/0/mlp/up_proj/kernel": 15}
    for path, c in largest_levels.items():
        step = np.abs(PARAMS[path]).max(axis=0) / c
        assert (np.abs(restored[path] - PARAMS[path]) <= 0.51 * step).all()
    step = np.abs(PARAMS["bigram/embedding"]).max(axis=1, keepdims=True) / 127
    rounding = 0.5 + 127 * 2**-11  # the step is rounded to float16 after the levels are taken
    assert (np.abs(restored["bigram/embedding"] - PARAMS["bigram/embedding"]) <= (rounding + 0.01) * step).all()
    np.testing.assert_array_equal(restored["smear/gate"], PARAMS["smear/gate"])
    np.testing.assert_array_equal(restored["embed/embedding"], PARAMS["embed/embedding"].astype(np.float16))
    assert all(values.dtype == np.float32 for values in restored.values())


@pytest.mark.parametrize("form, c", [("int4", 7), ("int5", 15), ("int6", 31), ("int7", 63), ("int8", 127)])
def test_each_width_of_integers_can_be_chosen_for_a_kind(form, c):
    stored = quantize(
        {"blocks/0/mlp/up_proj/kernel": normal(16, 48, std=4.0)},
        dataclasses.replace(RECIPE.quantize, mlp=form, small_size=0),
    )
    tensor = stored["blocks/0/mlp/up_proj/kernel"]
    assert tensor.form == form and tensor.values.max() == c and tensor.values.min() in (-c, -c - 1)


def test_values_that_a_form_cannot_hold_are_refused_by_name():
    with pytest.raises(ArtifactError, match="smear/gate: 1 values are not finite"):
        quantize({"smear/gate": np.array([1, np.nan], np.float32)}, CONFIG)
    with pytest.raises(ArtifactError, match="embed/embedding: largest magnitude 1e.05 .* fp16"):
        quantize({"embed/embedding": np.full((2, 2), 1e5, np.float32)}, CONFIG)
    with pytest.raises(ArtifactError, match="q_proj/kernel: largest magnitude .* int6"):
        quantize({"blocks/0/attn/q_proj/kernel": np.full((16, 16), 1e9, np.float32)}, CONFIG)


def test_square_kernels_come_back_the_right_way_round():
    levels = np.arange(9, dtype=np.int8).reshape(3, 3)
    tensor = StoredTensor.integers("blocks/0/attn/q_proj/kernel", "int6", levels, np.ones(3, np.float16))
    np.testing.assert_array_equal(tensor.dequantize(), levels.T)
    tensor = StoredTensor.integers("bigram/embedding", "int8", levels, np.array([1, 2, 4], np.float16))
    np.testing.assert_array_equal(tensor.dequantize(), levels * np.array([[1], [2], [4]]))
