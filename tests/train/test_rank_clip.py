"""Clipping rank by rank gives the same on every number of devices: what NumPy finds, rank by rank."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jgolf.errors import ConfigError
from jgolf.train.rank_clip import mean_of_clipped_ranks
from tests.train.rank_clip_worker import MAX_NORM, loss_and_grads
from tests.train.runs import Runs, finish

RANKS, ACCUMULATION, ROWS, WIDTH = 4, 3, 6, 5
# Whole ranks on a device (1, 2, 4), whole devices in a rank (8, 12), and devices that have parts of two (3, 6).
SIZES = (1, 2, 3, 4, 6, 8, 12)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Rows [micro-step, rank, row, position] in the order of a step; the ranks' gradients differ in size."""
    rng = np.random.default_rng(0)
    shape = (ACCUMULATION, RANKS, ROWS, WIDTH)
    scales = np.array([0.1, 0.5, 1.0, 2.0])[:, None, None]
    inputs, targets = (np.float32(scales * rng.normal(size=shape)) for _ in range(2))
    return {"inputs": inputs, "targets": targets, "w": np.float32(rng.normal(size=WIDTH)), "v": np.ones(WIDTH, "f4")}


def expected(arrays: dict[str, np.ndarray], ranks: int) -> dict[str, np.ndarray]:
    """Loss, mean of clipped gradients and mean norm, in float64."""
    w, v = arrays["w"].astype(np.float64), arrays["v"].astype(np.float64)
    shape = (ACCUMULATION, ranks, -1, WIDTH)
    losses, norms, grads = [], [], []
    for rank in range(ranks):
        x, y = (arrays[name].reshape(shape)[:, rank].reshape(-1, WIDTH) for name in ("inputs", "targets"))
        error = x @ w - y @ v
        grad = np.stack([error @ x, -(error @ y)]) / len(error)
        norms.append(np.linalg.norm(grad))
        grads.append(grad * min(1.0, MAX_NORM / (norms[-1] + 1e-6)))
        losses.append(0.5 * np.mean(error**2))
    w_grad, v_grad = np.mean(grads, axis=0)
    return {"loss": np.mean(losses), "norm": np.mean(norms), "w": w_grad, "v": v_grad, "norms": np.array(norms)}


def on_devices(
    runs: Runs, arrays: dict[str, np.ndarray], tried: list[tuple[int, int]], folder: Path
) -> dict[str, np.ndarray]:
    """What a process of its own finds for pairs of a number of devices and one of ranks."""
    np.savez(folder / "batches.npz", **arrays)
    worker = Path(__file__).parent / "rank_clip_worker.py"
    pairs = ",".join(f"{size}/{ranks}" for size, ranks in tried)
    devices = max(size for size, _ in tried)
    finish(runs.start(worker, str(folder / "batches.npz"), str(folder / "found.npz"), pairs, devices=devices))
    return dict(np.load(folder / "found.npz"))


def test_any_number_of_devices(runs: Runs, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = on_devices(runs, arrays, [(size, ranks) for size in SIZES for ranks in (1, RANKS)], tmp_path)
    norms = expected(arrays, RANKS)["norms"]
    assert norms.min() < MAX_NORM < norms.max()  # some are clipped
    for ranks in (1, RANKS):
        wanted = expected(arrays, ranks)
        for size in SIZES:
            for name in ("loss", "norm", "w", "v"):
                np.testing.assert_allclose(found[f"{size}/{ranks}/{name}"], wanted[name], rtol=1e-5, err_msg=f"{size}")


def test_more_devices_than_rows(runs: Runs, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    """As with whole documents, a rank's tokens of a micro-step are one row here, which no devices can share."""
    arrays = arrays | {name: arrays[name][:, :, :1] for name in ("inputs", "targets")}
    tried = [(12, RANKS), (6, RANKS), (3, 1)]
    found = on_devices(runs, arrays, tried, tmp_path)
    for size, ranks in tried:
        wanted = expected(arrays, ranks)
        for name in ("loss", "norm", "w", "v"):
            np.testing.assert_allclose(
                found[f"{size}/{ranks}/{name}"], wanted[name], rtol=1e-5, err_msg=f"{size}/{ranks}"
            )


@pytest.mark.parametrize("shape", [(ACCUMULATION * RANKS, ROWS), (ACCUMULATION, RANKS * ROWS), (1, 72), (72, 1)])
def test_any_cut_into_micro_batches(arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> None:
    """One device, as `train.py` and as sweeps lay a step out."""
    params = {name: jnp.asarray(arrays[name]) for name in "wv"}
    batch = (arrays[name].reshape(*shape, WIDTH) for name in ("inputs", "targets"))
    loss, grads, norm = mean_of_clipped_ranks(loss_and_grads, params, *batch, MAX_NORM, RANKS, ACCUMULATION)
    wanted = expected(arrays, RANKS)
    for name, value in {"loss": loss, "norm": norm, **grads}.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5)


def test_no_clipping(arrays: dict[str, np.ndarray]) -> None:
    params = {name: jnp.asarray(arrays[name]) for name in "wv"}
    batch = [arrays[name].reshape(ACCUMULATION, -1, WIDTH) for name in ("inputs", "targets")]
    found = mean_of_clipped_ranks(loss_and_grads, params, *batch, 0.0, RANKS, ACCUMULATION)
    _, grads = loss_and_grads(params, *batch)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5), found.grads, grads)


def test_rows_that_cannot_be_split_are_refused(arrays: dict[str, np.ndarray]) -> None:
    batch = [arrays[name].reshape(ACCUMULATION, -1, WIDTH) for name in ("inputs", "targets")]
    with pytest.raises(ConfigError, match=r"a step of 72 sequences .* train.num_ranks 5 × train.accumulation 3"):
        mean_of_clipped_ranks(loss_and_grads, {}, *batch, MAX_NORM, 5, ACCUMULATION)
