"""What tests of kernels need of the machine."""

from __future__ import annotations

import pytest

from jgolf.model.kernels import door


@pytest.fixture
def hopper_gpu() -> None:
    """Skips the test on a machine without a Hopper GPU."""
    if not door.is_hopper():
        pytest.skip("only a Hopper GPU can run these kernels")
