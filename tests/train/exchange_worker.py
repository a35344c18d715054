"""Loss and gradients on meshes of several sizes: a process of test_exchange.py.

Arguments: an .npz file of parameters by path, and of `inputs` and `targets` [row, position]; where to write results,
without and with the loop; and what to try, DEVICES/MICRO-BATCHES joined by commas.
"""

import sys
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jgolf.bench.collectives import intended_collectives
from jgolf.train.mesh import AXIS
from jgolf.train.step import mean_loss_and_grads
from tests.train.test_exchange import MODEL


def main(given: str, results: str, tried: str) -> None:
    params = dict(np.load(given))
    inputs, targets = (params.pop(name) for name in ("inputs", "targets"))
    found = {}
    for size, micro_batches in (map(int, pair.split("/")) for pair in tried.split(",")):
        batch = [tokens.reshape(micro_batches, -1, tokens.shape[-1]) for tokens in (inputs, targets)]
        spread = jax.shard_map(
            partial(mean_loss_and_grads, MODEL, axis_name=AXIS),
            mesh=Mesh(np.array(jax.devices()[:size]), (AXIS,)),
            in_specs=(P(), P(None, AXIS), P(None, AXIS), P()),
            out_specs=P(),
            check_vma=False,
        )
        lowered, name = jax.jit(spread).lower(params, *batch, False), f"{size}/{micro_batches}"
        found[f"{name}/reduced"] = [one.num_bytes for one in intended_collectives(lowered.as_text())]
        program = lowered.compile()
        for looped in (False, True):
            loss, grads = program(params, *batch, looped)
            found |= {f"{name}/{looped}/{path}": value for path, value in {"loss": loss, **grads}.items()}
    np.savez(results, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
