from __future__ import annotations

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "functional.py"


@pytest.mark.slow
def test_the_example_runs_and_its_claims_hold(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # it calls `python -m jgolf`
    found = runpy.run_path(str(EXAMPLE))
    assert found["metrics"].loss.shape == (4,) and float(found["metrics"].loss.max()) < np.log(1024) - 1
    assert len(set(found["val_bpb"])) == 4
    # The gradient of a batch is the mean of its sequences' gradients, so its norm is at most the mean norm.
    gradient = jax.jit(jax.grad(lambda params: found["api"].loss(found["model"], params, *found["val"])))(
        found["params"]
    )
    norm = np.sqrt(sum(float((value**2).sum()) for value in gradient.values()))
    assert 0 < norm <= float(found["norms"].mean())
    assert np.isfinite(float(found["curvature"]))
    assert found["sizes"]["int4"] < found["sizes"]["int6"] < found["sizes"]["int8"]
    assert "bits per byte" in capsys.readouterr().out
