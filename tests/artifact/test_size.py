"""Size accounting against sums done by hand."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from jgolf.artifact.container import pack
from jgolf.artifact.size import (
    KindSize,
    SizeReport,
    advice,
    cheapest_way_back,
    entropy_bytes,
    measure,
    raw_bytes,
    size_table,
    smaller_forms,
)
from jgolf.quantize.export import quantize
from jgolf.quantize.stored import StoredTensor
from tests.conftest import RECIPE

CONFIG = dataclasses.replace(RECIPE.quantize, small_size=1000)


@pytest.fixture(scope="module")
def stored():
    rng = np.random.default_rng(0)
    shapes = {
        "blocks/0/mlp/up_proj/kernel": (64, 192),
        "blocks/0/attn/q_proj/kernel": (64, 64),
        "blocks/0/attn/k_proj/kernel": (64, 8),
        "embed/embedding": (128, 64),
        "bigram/embedding": (256, 16),
        "smear/gate": (64,),
    }
    return quantize({path: rng.normal(size=shape) * 0.3 for path, shape in shapes.items()}, CONFIG)


def test_kinds_add_up(stored):
    report = measure(stored, artifact_bytes=len(pack(stored, {})), code_bytes=1000)
    sizes = {size.kind: size for size in report.kinds}
    assert {kind: size.values for kind, size in sizes.items()} == {
        "mlp": 64 * 192, "attention": 64 * 64 + 64 * 8, "embedding": 128 * 64, "table": 256 * 16, "control": 64,
    }  # fmt: skip
    assert sizes["attention"].forms == ("fp16", "int6")
    assert sizes["mlp"].raw_bytes == 64 * 192 * 5 // 8 + 2 * 192
    assert sizes["attention"].raw_bytes == 64 * 64 * 6 // 8 + 2 * 64 + 2 * 64 * 8
    assert sizes["control"].raw_bytes == 4 * 64
    assert abs(sum(size.packed_bytes for size in report.kinds) - report.artifact_bytes) <= len(report.kinds)
    assert report.total_bytes == report.artifact_bytes + 1000
    assert report.over_bytes == report.total_bytes - 16_000_000


def test_entropies_of_known_distributions():
    levels = np.repeat(np.array([0, 0, 1, -1], np.int8), 64).reshape(16, 16)  # 1.5 bits
    scales = np.ones(16, np.float16)
    tensor = StoredTensor.integers("bigram/embedding", "int8", levels, scales)
    assert entropy_bytes(tensor) == pytest.approx(256 * 1.5 / 8)
    assert raw_bytes(tensor) == 256 + 32
    floats = StoredTensor.floats("fp16", [1.0, -1.0, 1.0, -1.0])  # one bit each: the sign
    assert entropy_bytes(floats) == pytest.approx(4 / 8)


def test_smaller_forms_save_what_packing_says(stored):
    changes = {change.setting: change for change in smaller_forms(stored, CONFIG)}
    assert set(changes) == {"mlp", "attention", "embedding", "table", "small", "control"}
    assert (changes["mlp"].old, changes["mlp"].new) == ("int5", "int4")
    path = "blocks/0/mlp/up_proj/kernel"
    smaller = quantize({path: stored[path].dequantize()}, dataclasses.replace(CONFIG, mlp="int4"))
    saved_bytes = len(pack({path: stored[path]}, {}, zstd_level=1)) - len(pack(smaller, {}, zstd_level=1))
    assert changes["mlp"].saved_bytes == saved_bytes > 0
    error = np.square(smaller[path].dequantize() - stored[path].dequantize()).sum()
    relative = error / np.square(stored[path].dequantize()).sum()
    assert changes["mlp"].damage == pytest.approx(relative * 64 * 192, rel=1e-4)


def test_the_cheapest_way_back_is_the_least_damage_that_suffices(stored):
    changes = smaller_forms(stored, CONFIG)
    for over_bytes in (1, 500, 2000):
        best = cheapest_way_back(changes, over_bytes)
        assert best.saved_bytes >= over_bytes
        assert all(best.damage <= other.damage for other in changes if other.saved_bytes >= over_bytes)
    assert f"--quantize.{best.setting} {best.new}" in advice(changes, over_bytes)
    assert cheapest_way_back(changes, 10**9) is None
    listed = advice(changes, 10**9)
    assert "no single change" in listed and all(f"--quantize.{change.setting}" in listed for change in changes)


def test_what_cannot_shrink_is_not_offered():
    stored = quantize({"smear/gate": np.ones(4)}, dataclasses.replace(CONFIG, control="fp16"))
    assert smaller_forms(stored, dataclasses.replace(CONFIG, control="fp16")) == []


def test_the_table_fits_a_terminal():
    kinds = [
        KindSize("table_projection", ("int4", "int5", "int6", "int8"), 98_304, 0, 12_345.6, 12_000),
        KindSize("attention", ("fp16", "int6"), 18_874_368, 0, 12_345_678.9, 12_000_000),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(size_table(SizeReport(tuple(kinds), 15_990_000, 20_000)))
    text = console.export_text()
    assert "16,010,000" in text and "over" in text and "10,000" in text and "…" not in text
    assert "18,874,368" in text and "12,345,679" in text and "int4–int8" in text and "fp16 int6" in text
    assert SizeReport((), 15_000_000, 1_000_000).over_bytes == 0
