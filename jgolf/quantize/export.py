"""From trained parameters to storage forms; `stored.dequantize` is the way back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jgolf import rules
from jgolf.config import QuantizeConfig, form_bits
from jgolf.errors import ArtifactError
from jgolf.quantize.rows import quantize_int8_rows, quantize_rows
from jgolf.quantize.stored import StoredTensor


def quantize(params: Mapping[str, np.ndarray], config: QuantizeConfig) -> dict[str, StoredTensor]:
    """Every parameter in the storage form that the rules give it.

    Args:
      params: path → array of any floating-point type.
      config: forms by kind of parameter, clip search, scale floor.

    Raises:
      ArtifactError: a parameter is not finite, or too large for its form.
    """
    return {path: _quantize_one(path, np.asarray(values, np.float32), config) for path, values in params.items()}


def _quantize_one(path: str, weights: np.ndarray, config: QuantizeConfig) -> StoredTensor:
    form = rules.storage_form(path, weights.shape, config)
    bits = form_bits(form)
    if not np.isfinite(weights).all():
        raise ArtifactError(f"{path}: {np.count_nonzero(~np.isfinite(weights))} values are not finite")
    with np.errstate(over="ignore", invalid="ignore"):  # the check below says which parameter
        if bits is None:
            tensor = StoredTensor.floats(form, weights)
        else:
            tensor = StoredTensor.integers(path, form, *_levels_and_scales(path, weights, bits, config))
    if not np.isfinite(tensor.values if bits is None else tensor.scales).all():
        largest = float(np.abs(weights).max())
        raise ArtifactError(f"{path}: largest magnitude {largest:.4g} is past what {form} can hold; choose fp32 for it")
    return tensor


def _levels_and_scales(
    path: str, weights: np.ndarray, bits: int, config: QuantizeConfig
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.ascontiguousarray(weights.T) if rules.rule_of(path).transposed else weights
    if bits == 8:
        return quantize_int8_rows(rows, config.table_clip_percentile, config.scale_floor)
    return quantize_rows(rows, bits, config.clip_percentiles, config.scale_floor, config.symmetric_levels)
