"""From trained parameters to storage forms; `stored.dequantize` is the way back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jgolf import rules
from jgolf.config import QuantizeConfig, form_bits
from jgolf.errors import ArtifactError
from jgolf.quantize import lqer
from jgolf.quantize.rows import largest_level, quantize_int8_rows, quantize_rows, round_to_levels, sigma_scales
from jgolf.quantize.stored import StoredTensor


def quantize(
    params: Mapping[str, np.ndarray], config: QuantizeConfig, moments: Mapping[str, np.ndarray] | None = None
) -> dict[str, StoredTensor]:
    """Every parameter in the storage form that the rules give it.

    Args:
      params: path → array of any floating-point type.
      config: forms by kind of parameter, steps, rounding, corrections.
      moments: path → Σ x xᵀ over the inputs x of that matrix, see `curvature.input_moments`. Without it, and for
        tables that are looked up, GPTQ rounds to the nearest level.

    Raises:
      ArtifactError: a parameter is not finite, or too large for its form.
    """
    moments = dict(moments or {})
    params = {path: np.asarray(values, np.float32) for path, values in params.items()}
    stored = {path: quantize_one(path, values, config) for path, values in params.items()}
    matrices = {path: rows_of(path, params[path]) for path in stored if _is_rounded_matrix(path, stored[path])}
    if config.gptq:
        stored |= _with_feedback(matrices, stored, {path: moments[path] for path in moments if path in matrices})
    return stored | _corrected(matrices, stored, config, moments)


def quantize_one(path: str, weights: np.ndarray, config: QuantizeConfig) -> StoredTensor:
    """One float32 parameter, without regard to the others or to any text: rounded to the nearest levels.

    Raises:
      ArtifactError: it is not finite, or too large for its form.
    """
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


def rows_of(path: str, values: np.ndarray) -> np.ndarray:
    """A matrix or table as its storage form lies: [rows, columns], a step a row."""
    return np.ascontiguousarray(values.T) if rules.rule_of(path).transposed else values


def _levels_and_scales(
    path: str, weights: np.ndarray, bits: int, config: QuantizeConfig
) -> tuple[np.ndarray, np.ndarray]:
    rows, kind = rows_of(path, weights), rules.rule_of(path).kind
    if kind == "gate":
        return quantize_rows(rows, bits, (1.0,), scale_floor=False, symmetric=True)
    if sigmas := _clip_sigmas(kind, config):
        scales, c = sigma_scales(rows, bits, sigmas), largest_level(bits)
        return round_to_levels(rows, scales, -c, c), scales
    if bits == 8:
        return quantize_int8_rows(rows, config.table_clip_percentile, config.scale_floor)
    return quantize_rows(rows, bits, config.clip_percentiles, config.scale_floor, config.symmetric_levels)


def _clip_sigmas(kind: rules.Kind, config: QuantizeConfig) -> float:
    return {
        "mlp": config.mlp_clip_sigmas,
        "attention": config.attention_clip_sigmas,
        "embedding": config.embedding_clip_sigmas,
    }.get(kind, config.table_clip_sigmas)


def _is_rounded_matrix(path: str, tensor: StoredTensor) -> bool:
    return tensor.scales is not None and rules.rule_of(path).kind != "gate"


def _with_feedback(
    matrices: Mapping[str, np.ndarray], stored: Mapping[str, StoredTensor], moments: Mapping[str, np.ndarray]
) -> dict[str, StoredTensor]:
    """The matrices whose inputs are known, with the steps that they have and GPTQ's levels."""
    from jgolf.quantize.gptq import Unrounded, gptq  # imports JAX, which plain rounding does without

    unrounded = {
        path: Unrounded(matrices[path], stored[path].scales, largest_level(stored[path].bits), own)
        for path, own in moments.items()
    }
    return {path: dataclasses.replace(stored[path], values=levels) for path, levels in gptq(unrounded).items()}


def _corrected(
    matrices: Mapping[str, np.ndarray],
    stored: Mapping[str, StoredTensor],
    config: QuantizeConfig,
    moments: Mapping[str, np.ndarray],
) -> dict[str, StoredTensor]:
    """The matrices that get a correction, with it."""
    if not config.lqer.rank:
        return {}
    errors = {path: rows - rows_of(path, stored[path].dequantize()) for path, rows in matrices.items()}
    if not config.lqer.dead_columns:
        for path in errors.keys() & moments.keys():
            errors[path][:, np.diag(moments[path]) == 0] = 0
    found = lqer.corrections(errors, config.lqer)
    return {path: dataclasses.replace(stored[path], correction=correction) for path, correction in found.items()}
