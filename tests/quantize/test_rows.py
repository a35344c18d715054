"""Clip search and Int8 rows against the PyTorch reference's numbers, torch.quantile, and a plain re-derivation."""

from pathlib import Path

import numpy as np
import pytest

from jgolf.quantize import rows
from jgolf.quantize.rows import quantize_int8_rows, quantize_rows, row_quantiles

GOLDEN = Path(__file__).parents[1] / "golden"
PERCENTILES = (0.999, 0.9995, 0.9999, 0.99999, 1.0)


@pytest.fixture(params=["tiny", "small"])
def golden(request):
    return np.load(GOLDEN / request.param / "quantize.npz")


@pytest.mark.parametrize("bits", [5, 6])
def test_clip_search_gives_the_reference_s_integers(golden, bits):
    levels, scales = quantize_rows(golden["w"], bits, PERCENTILES)
    np.testing.assert_array_equal(levels, golden[f"q{bits}"])
    np.testing.assert_array_equal(scales, golden[f"scale{bits}"])
    assert levels.dtype == np.int8 and scales.dtype == np.float16


def test_table_rows_give_the_reference_s_integers(golden):
    levels, scales = quantize_int8_rows(golden["w"], 0.9999984)
    np.testing.assert_array_equal(levels, golden["q8"])
    np.testing.assert_array_equal(scales, golden["scale8"])


def test_int8_rows_are_clipped_before_they_are_divided(monkeypatch):
    """Rows whose step is the floor 1 / 127, with a value past the clip that would round to the next level."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(rows, "CHUNK_VALUES", 3000)
    weights = np.random.default_rng(0).uniform(-1, 1, (200, 1000)).astype(np.float32) * 0.02
    weights[:100, 0] = np.linspace(0.3, 2.6, 100, dtype=np.float32) / 127
    weights[:100, 1:] = np.clip(weights[:100, 1:], -0.3 / 127, 0.3 / 127)
    percentile = 0.9985  # between the largest magnitude and the next one
    w = torch.from_numpy(weights)
    clip = torch.quantile(w.abs(), percentile, dim=1)
    step = torch.clamp(clip / 127.0, min=1.0 / 127.0)[:, None]
    expected = torch.round(torch.clamp(w, -clip[:, None], clip[:, None]) / step).clamp(-127, 127)
    levels, scales = quantize_int8_rows(weights, percentile)
    np.testing.assert_array_equal(levels, expected.to(torch.int8).numpy())
    np.testing.assert_array_equal(scales, step[:, 0].half().numpy())
    unclipped = torch.round(w / step).clamp(-127, 127)
    assert int((unclipped != expected).sum()) > 20  # without the clip, these are others


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("scale_floor", [True, False])
@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
def test_clip_search_takes_the_smallest_error_of_all_percentiles(monkeypatch, bits, scale_floor, symmetric):
    monkeypatch.setattr(rows, "CHUNK_VALUES", 1000)  # several chunks, the last one smaller
    weights = np.random.default_rng(bits).standard_t(3, (37, 300)).astype(np.float32) * 0.2
    levels, scales = quantize_rows(weights, bits, PERCENTILES, scale_floor, symmetric)
    c = 2 ** (bits - 1) - 1
    errors, candidates = [], []
    for percentile in PERCENTILES:
        step = np.quantile(np.abs(weights).astype(np.float64), percentile, axis=1) / c
        step = np.maximum(step, 1 / c if scale_floor else 0).astype(np.float32).astype(np.float16)
        rounded = np.clip(np.round(weights / step.astype(np.float32)[:, None]), -c if symmetric else -c - 1, c)
        errors.append(np.square(weights - rounded * step.astype(np.float64)[:, None]).mean())
        candidates.append((rounded, step))
    best = candidates[int(np.argmin(errors))]
    np.testing.assert_array_equal(levels, best[0])
    np.testing.assert_array_equal(scales, best[1])


def test_rows_of_zeros_stay_zero_without_the_floor():
    for quantized in (quantize_rows(np.zeros((2, 8), np.float32), 5, PERCENTILES, False),
                      quantize_int8_rows(np.zeros((2, 8), np.float32), 0.9999984, False)):  # fmt: skip
        np.testing.assert_array_equal(quantized[0], 0)
        assert (quantized[1] > 0).all()


@pytest.mark.parametrize("columns", [1, 2, 17, 96, 512, 1536])
def test_quantiles_are_those_of_torch_to_the_bit(columns):
    torch = pytest.importorskip("torch")
    weights = np.random.default_rng(columns).standard_t(3, (101, columns)).astype(np.float32)
    quantiles = (0.3, 0.5, 0.999, 0.9995, 0.9999984, 1.0)
    for quantile, found in zip(quantiles, row_quantiles(weights, quantiles), strict=True):
        expected = torch.quantile(torch.from_numpy(weights).abs(), quantile, dim=1).numpy()
        np.testing.assert_array_equal(found, expected)
