"""The form in which an artifact holds one parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jgolf import rules
from jgolf.config import form_bits

FLOAT_TYPES = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A parameter in storage form; build one with `integers` or `floats`.

    Attributes:
      form: "int4" … "int8", "fp16" or "fp32".
      shape: shape of the parameter; a kernel's is (in, out).
      values: for integers the int8 levels [rows, columns], a row being an output of a kernel (so a
        kernel's levels lie as (out, in)) or an entry of a table; for floats an array of `shape`.
      scales: float16 [rows], the step of each row; None for floats.
      transposed: whether `values` lies the other way round than `shape`.
    """

    form: str
    shape: tuple[int, ...]
    values: np.ndarray
    scales: np.ndarray | None
    transposed: bool

    @classmethod
    def integers(cls, path: str, form: str, levels: np.ndarray, scales: np.ndarray) -> StoredTensor:
        """The parameter called `path` as int8 `levels` [rows, columns] and float16 `scales` [rows]."""
        transposed = rules.rule_of(path).transposed
        return cls(form, levels.shape[::-1] if transposed else levels.shape, levels, scales, transposed)

    @classmethod
    def floats(cls, form: str, values: np.ndarray) -> StoredTensor:
        """A parameter rounded to the floating-point type that `form` names."""
        return cls(form, np.shape(values), np.asarray(values, FLOAT_TYPES[form]), None, False)

    @property
    def bits(self) -> int | None:
        """Bits of one level, None for floats."""
        return form_bits(self.form)

    def dequantize(self) -> np.ndarray:
        """The parameter as float32, of `shape`: level × step."""
        if self.scales is None:
            return self.values.astype(np.float32)
        weights = self.values * self.scales.astype(np.float32)[:, None]
        return np.ascontiguousarray(weights.T) if self.transposed else weights


def dequantize(stored: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """The float32 parameters that a model computes with, by path."""
    return {path: tensor.dequantize() for path, tensor in stored.items()}
