"""Rounding the rows of a matrix to integers, one step (scale) per row.

Every function takes weights [rows, columns] whose row is quantized as one: an output of a kernel, or
an entry of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

CHUNK_VALUES = 1 << 18  # weights handled at once: temporary arrays stay in the processor's cache
SMALLEST_SCALE = np.float32(2.0**-24)  # the smallest positive float16
INT8_LEVELS = 127


def largest_level(bits: int) -> int:
    """The largest level c of a signed integer; the smallest one is −c − 1, or −c where levels are symmetric."""
    return 2 ** (bits - 1) - 1


def quantize_rows(
    weights: np.ndarray,
    bits: int,
    percentiles: Sequence[float],
    scale_floor: bool = True,
    symmetric: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Clip search: the clip percentile with the smallest squared error over the whole matrix.

    A row is clipped at that quantile of its magnitudes; its step is max(clip / c, 1 / c), rounded to
    float16 before the levels clamp(round(w / step), −c − 1, c) are taken.

    Args:
      weights: float32 [rows, columns].
      bits: 4 to 8; c = 2^(bits − 1) − 1.
      percentiles: quantiles to try, each above 0 and at most 1; of equals the first wins.
      scale_floor: without it the step is clip / c, however small.
      symmetric: levels −c … c, without −c − 1.

    Returns:
      int8 levels [rows, columns] and float16 scales [rows].
    """
    c = largest_level(bits)
    lowest = -c if symmetric else -c - 1
    clips = row_quantiles(weights, percentiles)
    candidates = [_scales(clip, c, scale_floor).astype(np.float16) for clip in clips]
    errors = [float("inf")] * len(candidates)
    for i, scales in enumerate(candidates):
        same = next((j for j in range(i) if np.array_equal(candidates[j], scales)), None)
        errors[i] = errors[same] if same is not None else squared_error(weights, scales, lowest, c)
    scales = candidates[int(np.argmin(errors))]
    return round_to_levels(weights, scales, lowest, c), scales


def sigma_scales(weights: np.ndarray, bits: int, clip_sigmas: float) -> np.ndarray:
    """Steps by which a row's largest level stands for so many of its standard deviations (n − 1): float16 [rows].

    At 11.5 that sets how fine the levels are rather than where a row is clipped. The step of a row whose values are all
    equal, and of one of a single value, is 0.
    """
    if weights.shape[1] < 2:
        return np.zeros(len(weights), np.float16)
    deviations = np.empty(len(weights), np.float32)
    for rows in row_chunks(weights.shape):
        deviations[rows] = weights[rows].std(axis=1, ddof=1, dtype=np.float64)
    with np.errstate(over="ignore"):
        return (np.float32(clip_sigmas) * deviations / np.float32(largest_level(bits))).astype(np.float16)


def quantize_int8_rows(
    weights: np.ndarray, percentile: float, scale_floor: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Int8: each row clipped at one quantile, step max(clip / 127, 1 / 127), levels −127 … 127.

    Values are clipped before they are divided, which tells where the step is above clip / 127: a value past
    the clip must not round to a level that the clip does not reach. The step is rounded to float16 after
    the levels are taken. Arguments and results as in `quantize_rows`.
    """
    clip = row_quantiles(weights, [percentile])[0]
    scales = _scales(clip, INT8_LEVELS, scale_floor)
    levels = np.empty(weights.shape, np.int8)
    for rows in row_chunks(weights.shape):
        clipped = np.clip(weights[rows], -clip[rows, None], clip[rows, None])
        levels[rows] = _rounded(clipped, scales[rows], -INT8_LEVELS, INT8_LEVELS)
    return levels, scales.astype(np.float16)


def row_quantiles(weights: np.ndarray, quantiles: Sequence[float]) -> list[np.ndarray]:
    """Quantiles of each row's magnitudes, linearly interpolated as torch.quantile does it in float32.

    Returns:
      One float32 array [rows] per quantile.
    """
    last = weights.shape[1] - 1
    positions = [np.float32(quantile) * np.float32(last) for quantile in quantiles]
    lower = [int(position) for position in positions]
    upper = [int(np.ceil(position)) for position in positions]
    first = min(lower)
    kept = np.empty((weights.shape[0], last + 1 - first), np.float32)
    for rows in row_chunks(weights.shape):
        magnitudes = np.abs(weights[rows])
        magnitudes.partition(first, axis=1)
        kept[rows] = np.sort(magnitudes[:, first:], axis=1)
    return [
        _lerp(kept[:, low - first], kept[:, high - first], position - np.float32(low))
        for position, low, high in zip(positions, lower, upper, strict=True)
    ]


def round_to_levels(weights: np.ndarray, scales: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """clamp(round(weights / scales), lowest, highest) as int8, half to even, one scale a row; 0 where that is 0."""
    levels = np.empty(weights.shape, np.int8)
    for rows in row_chunks(weights.shape):
        levels[rows] = _rounded(weights[rows], scales[rows], lowest, highest)
    return levels


def squared_error(weights: np.ndarray, scales: np.ndarray, lowest: int, highest: int) -> float:
    """Sum over all weights of (w − level × scale)²."""
    total = 0.0
    for rows in row_chunks(weights.shape):
        restored = _rounded(weights[rows], scales[rows], lowest, highest)
        restored *= scales[rows].astype(np.float32)[:, None]
        restored -= weights[rows]
        total += float(np.einsum("rc,rc->r", restored, restored).sum(dtype=np.float64))
    return total


def row_chunks(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of whole rows, of about CHUNK_VALUES values each."""
    step = max(1, CHUNK_VALUES // max(shape[1], 1))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _rounded(weights: np.ndarray, scales: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    scales = scales.astype(np.float32)[:, None]
    ratio = np.divide(weights, scales, out=np.zeros(weights.shape, np.float32), where=scales != 0)
    np.rint(ratio, out=ratio)
    return np.clip(ratio, lowest, highest, out=ratio)


def _scales(clip: np.ndarray, c: int, scale_floor: bool) -> np.ndarray:
    return np.maximum(clip / np.float32(c), np.float32(1 / c) if scale_floor else SMALLEST_SCALE)


def _lerp(low: np.ndarray, high: np.ndarray, weight: np.float32) -> np.ndarray:
    """low + weight · (high − low) with one rounding at the end, from the nearer end, as PyTorch's kernel does it."""
    base, weight = (low, weight) if weight < 0.5 else (high, weight - np.float32(1))
    # A product of two float32 is exact in float64, so this is a fused multiply-add.
    return (np.float64(weight) * (high - low).astype(np.float64) + base).astype(np.float32)
