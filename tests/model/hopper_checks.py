"""What the tests of Hopper's kernels share: such a GPU pretended, an interpreter, and a comparison of arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from jgolf.model.kernels import door, hopper

BFLOAT16 = 4e-3
"""Error of results that were rounded to it once, as a share of their norm."""


def assert_near(found, expected, *tolerances: float) -> None:
    """Every array, as a whole; with one tolerance, all of them by that."""
    found, expected = tuple(found), tuple(expected)
    tolerances = tolerances * len(found) if len(tolerances) == 1 else tolerances
    for one, other, tolerance in zip(found, expected, tolerances, strict=True):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        assert one.shape == other.shape
        assert np.linalg.norm(one - other) < tolerance * np.linalg.norm(other)


def pretend_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs may be lowered for a Hopper GPU, not run."""
    monkeypatch.setattr(door, "gpu", lambda: SimpleNamespace(device_kind="", compute_capability="9.0"))
    monkeypatch.setattr(hopper, "_num_multiprocessors", lambda: 132)


@contextlib.contextmanager
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the block, Mosaic GPU kernels run in JAX's interpreter; where it has none, the test is skipped."""
    interpreter = pytest.importorskip("jax._src.pallas.mosaic_gpu.interpret.params")
    monkeypatch.setattr(hopper, "_num_multiprocessors", lambda: 1)
    monkeypatch.setattr(hopper.plgpu, "layout_cast", lambda x, layout: x)  # it has no registers to lay out
    with interpreter.force_gpu_interpret_mode():
        yield
