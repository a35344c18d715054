"""Gradients that are averaged a layer at a time are those of the whole batch on one device."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jgolf import compiling
from jgolf.bench.running import random_params
from jgolf.model.functional import loss
from jgolf.train.exchange import layers_apart
from tests.conftest import NANO
from tests.train.runs import Runs, finish

MODEL = dataclasses.replace(NANO, num_layers=3, loop_layers=(1,), num_loops=1, xsa_layers=(2,))
ROWS, SEQ_LEN = 24, 12
# Devices and micro-batches.
TRIED = [(1, 1), (2, 1), (3, 1), (8, 1), (2, 4)]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    """Parameters, and a batch whose rows differ, so that every device has gradients of its own."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, MODEL.vocab_size, (ROWS, SEQ_LEN + 1), dtype=np.int32)
    return random_params(MODEL) | {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}


@pytest.fixture(scope="module")
def found(runs: Runs, arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What a process with eight devices finds."""
    folder = tmp_path_factory.mktemp("exchange")
    np.savez(folder / "given.npz", **arrays)
    worker = Path(__file__).parent / "exchange_worker.py"
    pairs = ",".join(f"{devices}/{micro_batches}" for devices, micro_batches in TRIED)
    finish(runs.start(worker, str(folder / "given.npz"), str(folder / "found.npz"), pairs, devices=8))
    return dict(np.load(folder / "found.npz"))


def _params(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: value for path, value in arrays.items() if path not in ("inputs", "targets")}


@pytest.mark.parametrize("looped", [False, True])
def test_any_number_of_devices(arrays: dict[str, np.ndarray], found: dict[str, np.ndarray], looped: bool) -> None:
    of_loss = jax.jit(jax.value_and_grad(partial(loss, MODEL, looped=looped)))
    value, grads = of_loss(_params(arrays), arrays["inputs"], arrays["targets"])
    for devices, micro_batches in TRIED:
        name = f"{devices}/{micro_batches}/{looped}"
        assert found[f"{name}/loss"] == pytest.approx(float(value), rel=1e-6)
        for path, grad in grads.items():
            distance = np.linalg.norm(found[f"{name}/{path}"] - grad) / np.linalg.norm(grad)
            assert distance < 1e-5, (name, path)


def test_each_layer_is_one_reduction(arrays: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    params = _params(arrays)
    in_layer = [
        sum(4 * value.size for path, value in params.items() if path.startswith(f"blocks/{layer}/"))
        for layer in range(3)
    ]
    rest = sum(4 * value.size for path, value in params.items() if not path.startswith("blocks/"))
    for devices in (2, 3, 8):
        assert sorted(found[f"{devices}/1/reduced"]) == sorted([4, *in_layer, rest])  # the loss is one number


def test_several_micro_batches_are_exchanged_once(arrays: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    sizes = [4 * math.prod(value.shape) for value in _params(arrays).values()]
    assert sorted(found["2/4/reduced"]) == sorted([4, *sizes])


def test_layers_apart() -> None:
    paths = ["blocks/1/attn_scale", "blocks/10/attn_scale", "embed/embedding", "blocks/1/mlp_scale", "skip_weights"]
    parts = layers_apart({path: np.zeros(1) for path in paths})
    assert [sorted(part) for part in parts] == [[paths[0], paths[3]], [paths[1]], [paths[2], paths[4]]]


def test_xla_knows_the_options() -> None:
    lowered = jax.jit(lambda x: 2 * x).lower(1.0)
    assert lowered.compile(compiler_options=compiling.OVERLAP)(1.0) == 2.0
    with pytest.raises(Exception, match="xla_gpu_no_such_option"):
        lowered.compile(compiler_options={"xla_gpu_no_such_option": True})
