"""Runs of a very small model in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.runs import Runs


@pytest.fixture(scope="session")
def runs(nano_data: Path) -> Runs:
    """Starts runs."""
    return Runs(nano_data)
