"""The form in which an artifact holds one parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jgolf import rules
from jgolf.config import form_bits

FLOAT_TYPES = {"fp16": np.dtype(np.float16), "fp32": np.dtype(np.float32)}


@dataclass(frozen=True, eq=False)
class Factor:
    """A small matrix of integers: level × step.

    Attributes:
      levels: int8 [rows, columns].
      scales: float16 [n], the steps of n equally long runs of levels, taken row by row.
    """

    levels: np.ndarray
    scales: np.ndarray

    @property
    def bits(self) -> int:
        """That its levels need, 1 to 8."""
        lowest, highest = int(self.levels.min()), int(self.levels.max())
        return next(bits for bits in range(1, 9) if -(2 ** (bits - 1)) <= lowest and highest < 2 ** (bits - 1))

    def dequantize(self) -> np.ndarray:
        """Float32 [rows, columns]."""
        runs = self.levels.reshape(self.scales.size, -1)
        return (runs * self.scales.astype(np.float32)[:, None]).reshape(self.levels.shape)


@dataclass(frozen=True, eq=False)
class Correction:
    """A product that is added to a matrix of integers: left [rows, rank] @ right [rank, columns]."""

    left: Factor
    right: Factor

    @property
    def factors(self) -> tuple[Factor, Factor]:
        """Both."""
        return self.left, self.right

    def dequantize(self) -> np.ndarray:
        """Float32 [rows, columns]."""
        return self.left.dequantize() @ self.right.dequantize()


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
      correction: what is added to level × step, lying as `values` does; None for nothing.
    """

    form: str
    shape: tuple[int, ...]
    values: np.ndarray
    scales: np.ndarray | None
    transposed: bool
    correction: Correction | None = None

    @classmethod
    def integers(
        cls, path: str, form: str, levels: np.ndarray, scales: np.ndarray, correction: Correction | None = None
    ) -> StoredTensor:
        """The parameter called `path` as int8 `levels` [rows, columns] and float16 `scales` [rows]."""
        transposed = rules.rule_of(path).transposed
        shape = levels.shape[::-1] if transposed else levels.shape
        return cls(form, shape, levels, scales, transposed, correction)

    @classmethod
    def floats(cls, form: str, values: np.ndarray) -> StoredTensor:
        """A parameter rounded to the floating-point type that `form` names."""
        return cls(form, np.shape(values), np.asarray(values, FLOAT_TYPES[form]), None, False)

    @property
    def bits(self) -> int | None:
        """Bits of one level, None for floats."""
        return form_bits(self.form)

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Of the correction; none without one."""
        return () if self.correction is None else self.correction.factors

    def dequantize(self) -> np.ndarray:
        """The parameter as float32, of `shape`: level × step, corrected."""
        if self.scales is None:
            return self.values.astype(np.float32)
        weights = self.values * self.scales.astype(np.float32)[:, None]
        if self.correction is not None:
            weights += self.correction.dequantize()
        return np.ascontiguousarray(weights.T) if self.transposed else weights


def dequantize(stored: Mapping[str, StoredTensor]) -> dict[str, np.ndarray]:
    """The float32 parameters that a model computes with, by path."""
    return {path: tensor.dequantize() for path, tensor in stored.items()}
