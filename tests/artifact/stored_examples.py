"""Stored tensors for the tests of the artifact."""

import numpy as np

from jgolf.quantize.stored import Correction, Factor, StoredTensor


def stored_example(seed=0, rows=12, columns=40):
    """One tensor of every form and rank, and the extremes of each integer form."""
    rng = np.random.default_rng(seed)
    stored = {"embed/embedding": StoredTensor.floats("fp16", rng.normal(size=(columns, 8)))}
    paths = ["mlp/up_proj", "attn/q_proj", "attn/k_proj", "attn/v_proj", "mlp/down_proj"]
    for bits, path in zip((4, 5, 6, 7, 8), paths, strict=True):
        c = 2 ** (bits - 1) - 1
        levels = rng.normal(size=(rows, columns)) * c / 4 * rng.exponential(size=(rows, 1))
        levels = np.clip(np.rint(levels), -c - 1, c).astype(np.int8)
        levels[0, :2] = -c - 1, c
        path = f"blocks/0/{path}/kernel"
        correction = _correction(rng, rows, columns, bits) if bits in (5, 6) else None
        scales = rng.random(rows).astype(np.float16)
        stored[path] = StoredTensor.integers(path, f"int{bits}", levels, scales, correction)
    zeros = np.zeros((3, 5), np.int8)
    stored["bigram/embedding"] = StoredTensor.integers("bigram/embedding", "int8", zeros, np.ones(3, np.float16))
    stored["smear/gate"] = StoredTensor.floats("fp32", rng.normal(size=8))
    stored["bigram/scale"] = StoredTensor.floats("fp32", 0.05)
    stored["lanes/post"] = StoredTensor.floats("fp32", rng.normal(size=(3, 2, 2)))
    return stored


def _correction(rng, rows, columns, bits):
    """Of rank 2: one step for the left factor and one for two values of the right one, or one for each row of both."""
    rank = min(2, rows, columns)
    left, right = (rng.integers(-(2 ** (bits - 3)), 2 ** (bits - 3), size) for size in ((rows, rank), (rank, columns)))
    counts = (1, columns) if bits == 5 else (rows, rank)
    factors = zip((left, right), counts, strict=True)
    return Correction(*(Factor(one.astype(np.int8), rng.random(count).astype(np.float16)) for one, count in factors))


def assert_same_stored(found, expected):
    """Every field of every tensor is equal, types and order included."""
    assert list(found) == list(expected)
    for path, tensor in expected.items():
        other = found[path]
        assert (other.form, other.shape, other.transposed) == (tensor.form, tensor.shape, tensor.transposed)
        assert other.values.dtype == tensor.values.dtype
        np.testing.assert_array_equal(other.values, tensor.values, strict=True)
        assert (other.scales is None) == (tensor.scales is None)
        if tensor.scales is not None:
            np.testing.assert_array_equal(other.scales, tensor.scales, strict=True)
        for factor, expected_factor in zip(other.factors, tensor.factors, strict=True):
            np.testing.assert_array_equal(factor.levels, expected_factor.levels, strict=True)
            np.testing.assert_array_equal(factor.scales, expected_factor.scales, strict=True)
