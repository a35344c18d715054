"""How small the streams are, against entropies computed here and against the reference's container."""

import io
from pathlib import Path

import numpy as np
import pytest
import zstandard

from jgolf import rules
from jgolf.artifact import container
from jgolf.artifact.codes import BASES, digit_places, pack_digits, unpack_digits
from jgolf.artifact.layout import level_classes
from jgolf.quantize.stored import StoredTensor
from jgolf.torch_bridge.names import path_of_torch_name

GOLDEN = Path(__file__).parents[1] / "golden"


def entropy_bytes(symbols):
    counts = np.unique(symbols, return_counts=True)[1]
    return -(counts * np.log2(counts / counts.sum())).sum() / 8


def packed_levels_bytes(levels, form, codec):
    path = "blocks/0/mlp/up_proj/kernel"
    stored = {path: StoredTensor.integers(path, form, levels, np.ones(len(levels), np.float16))}
    return len(container.pack(stored, {}, codec))


@pytest.mark.parametrize("base", BASES)
def test_digits_fill_bytes_and_come_back(base):
    assert base ** digit_places(base).size <= 256 < base ** (digit_places(base).size + 1)
    magnitudes = np.random.default_rng(base).integers(0, 130, 1001).astype(np.uint8)
    packed = np.frombuffer(pack_digits(magnitudes, base), np.uint8)
    assert packed.size == -(-1001 // digit_places(base).size)
    np.testing.assert_array_equal(unpack_digits(packed, base)[:1001], np.minimum(magnitudes, base - 1))


@pytest.mark.parametrize("spread, excess", [(0.3, 0.06), (0.6, 0.03), (1.2, 0.02), (2.0, 0.015), (5.0, 0.01)])
def test_zstd_comes_close_to_the_entropy_of_unstructured_levels(spread, excess):
    levels = np.rint(np.random.default_rng(0).normal(size=(512, 1536)) * spread).clip(-32, 31).astype(np.int8)
    assert packed_levels_bytes(levels, "int6", "zstd") < (1 + excess) * entropy_bytes(levels) + 300


def test_the_range_coder_reaches_the_entropy():
    pytest.importorskip("constriction")
    for spread in (0.3, 2.0):
        levels = np.rint(np.random.default_rng(0).normal(size=(512, 1536)) * spread).clip(-32, 31).astype(np.int8)
        assert packed_levels_bytes(levels, "int6", "range") < 1.002 * entropy_bytes(levels) + 300


def test_rows_and_columns_of_different_spread_go_below_the_zero_order_entropy():
    rng = np.random.default_rng(1)
    spread = 2 * np.exp(0.5 * rng.normal(size=(512, 1)) + 0.5 * rng.normal(size=1536))
    levels = np.rint(rng.normal(size=(512, 1536)) * spread).clip(-32, 31).astype(np.int8)
    given_spread = np.rint(rng.normal(size=(512, 1536))).size * np.log2(np.sqrt(2 * np.pi * np.e) * 2) / 8
    packed_bytes = packed_levels_bytes(levels, "int6", "zstd")
    assert packed_bytes < 0.93 * entropy_bytes(levels)
    assert packed_bytes < 1.03 * given_spread  # the entropy of a Gaussian, mean log spread


def test_a_matrix_without_structure_has_one_class():
    levels = np.rint(np.random.default_rng(2).normal(size=(400, 300)) * 3).astype(np.int8)
    rows, columns = level_classes(levels)
    assert len(np.unique(rows)) == 1 and not columns.any()


def test_the_reference_s_artifact_shrinks_below_095_of_its_bytes():
    torch = pytest.importorskip("torch")
    compressed = (GOLDEN / "small" / "final_model.int6.ptz").read_bytes()
    raw = zstandard.ZstdDecompressor().decompress(compressed)
    tensors = torch.load(io.BytesIO(raw), weights_only=True)["w"]
    stored = {}
    for name, tensor in tensors.items():
        values = tensor.numpy()
        path = path_of_torch_name(name.removesuffix(".q"))
        if name.endswith(".q"):
            form = "int8" if np.abs(values.astype(int)).max() > 32 else "int6"
            scales = tensors[name.removesuffix("q") + "scale"].numpy()
            stored[path] = StoredTensor.integers(path, form, values, scales)
        elif not name.endswith(".weight.scale"):
            kernel = rules.rule_of(path).transposed
            stored[path] = StoredTensor.floats("fp16", values.T if kernel else values)
    assert sum(tensor.values.size for tensor in stored.values()) == 2_362_510
    assert len(container.pack(stored, {})) < 0.9 * len(compressed)
