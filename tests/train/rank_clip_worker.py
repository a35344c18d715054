"""Means of clipped ranks on meshes of several sizes: a process of test_rank_clip.py.

Arguments: an .npz file of batches [micro-step, rank, row, position], what to write the results to, and what to
try, DEVICES/RANKS joined by commas.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jgolf.config import TrainConfig
from jgolf.train.mesh import AXIS, device_batch_order
from jgolf.train.rank_clip import mean_of_clipped_ranks

MAX_NORM = 2.0


def loss_and_grads(params, inputs, targets):
    """Of a line through the rows' tokens."""
    return jax.value_and_grad(lambda p: 0.5 * jnp.mean((inputs @ p["w"] - targets @ p["v"]) ** 2))(params)


def main(batches: str, results: str, tried: str) -> None:
    arrays = np.load(batches)
    params = {name: jnp.asarray(arrays[name]) for name in "wv"}
    found = {}
    for size, num_ranks in (map(int, pair.split("/")) for pair in tried.split(",")):
        mesh = Mesh(np.array(jax.devices()[:size]), (AXIS,))
        tokens = arrays["inputs"].size
        train = TrainConfig(
            batch_tokens=tokens, seq_len=arrays["inputs"].shape[-1], num_ranks=num_ranks, accumulation=3
        )
        order = device_batch_order(train, size)
        shape = (order.accumulation, order.micro_batch_rows, order.seq_len)
        run = partial(
            mean_of_clipped_ranks,
            loss_and_grads,
            max_norm=MAX_NORM,
            num_ranks=num_ranks,
            accumulation=train.accumulation,
            axis_name=AXIS,
        )
        spread = jax.shard_map(
            run, mesh=mesh, in_specs=(P(), P(None, AXIS), P(None, AXIS)), out_specs=P(), check_vma=False
        )
        loss, grads, norm = jax.jit(spread)(params, arrays["inputs"].reshape(shape), arrays["targets"].reshape(shape))
        found |= {f"{size}/{num_ranks}/{name}": value for name, value in grads.items()}
        found |= {f"{size}/{num_ranks}/loss": loss, f"{size}/{num_ranks}/norm": norm}
    np.savez(results, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
