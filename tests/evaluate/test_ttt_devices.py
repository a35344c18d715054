"""The same scores for every number of devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def scores(sizes: str) -> list[dict[str, np.ndarray]]:
    most = max(map(int, sizes.split(",")))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={most}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.evaluate.ttt_worker", sizes],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    return [{name: np.array(nats) for name, nats in one.items()} for one in found]


@pytest.mark.parametrize("sizes", ["1,2", pytest.param("1,8,3", marks=pytest.mark.slow)])
def test_devices_change_no_score(sizes: str) -> None:
    """Of 1, 2, 3 and 8 devices: with as many documents as one has, with fewer, and where ranks are not shared."""
    alone, *spread = scores(sizes)
    for found in spread:
        for name, nats in alone.items():
            np.testing.assert_allclose(found[name], nats, rtol=1e-5, atol=1e-5)
