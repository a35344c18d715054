"""Losses and scores of the nano model on some devices: a process of test_layouts.py.

Arguments: the config, numbers of devices joined by commas, and for several processes their options' values.
"""

import json
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from jgolf import config as configs
from jgolf.data.shards import TokenStream, find_shards
from jgolf.evaluate.validation import Validation
from jgolf.train.distributed import joined
from jgolf.train.launch import find_launch
from jgolf.train.mesh import AXIS, BatchSource, CompiledStep, make_mesh, replicated
from jgolf.train.step import new_state


def measure(config: configs.Config, mesh: Mesh) -> dict:
    make_state = jax.jit(lambda key: new_state(config, key), out_shardings=replicated(mesh))
    state = make_state(jax.random.key(config.train.seed))
    validation = Validation.open(config)
    standard = validation.standard(state.params, mesh=mesh)
    sliding = validation.sliding(state.params, max_tokens=400, mesh=mesh)
    source = BatchSource(config, TokenStream(find_shards(config.data.dir, "train")), mesh)
    step = CompiledStep(config, mesh, state, source(0))
    reports = []
    for index in range(config.train.steps):
        state, report = step(state, source(index))
        reports.append(report)
    return {
        "losses": [float(report.metrics.loss) for report in reports],
        "late_qat": [int(report.metrics.late_qat) for report in reports],
        "standard": standard.val_bpb,
        "sliding": sliding.val_bpb,
    }


def main(config: str, sizes: str, coordinator: str | None = None, count: str = "1", index: str = "0") -> None:
    with joined(find_launch(coordinator, int(count), int(index), {}) if coordinator else None) as peers:
        for size in sizes.split(","):
            mesh = make_mesh()
            mesh = Mesh(np.array(mesh.devices[: int(size)]), (AXIS,))
            result = measure(configs.load(config), mesh)
            if peers.is_first:
                print("RESULT", json.dumps({"devices": int(size), **result}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
