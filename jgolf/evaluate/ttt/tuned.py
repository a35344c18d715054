"""Scores sliding windows, and trains all weights on each part of the text once it has been scored.

The first form of test-time training in the challenge (pull requests #549, #1413, #1493): nothing for single documents,
no additions. Targets are cut into chunks; a window goes with the chunk that its first scored target is in, so all of a
chunk's targets are scored before the weights see them, and those of the last chunk teach nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jgolf.config import EvaluateConfig, ModelConfig, SGDConfig, resolved
from jgolf.data.text import Text
from jgolf.evaluate.nats import local_mesh, scoring_model, window_nats
from jgolf.evaluate.score import Scored
from jgolf.evaluate.ttt.kept import Kept, fingerprint
from jgolf.evaluate.ttt.sgd import Sgd, zeros_like
from jgolf.evaluate.ttt.tally import Tally
from jgolf.evaluate.windows import document_windows, mean_context, sliding_windows
from jgolf.model.functional import Params
from jgolf.watch import Observer, Tell, unobserved, untold


def tuned(
    config: ModelConfig,
    params: Params,
    text: Text,
    seq_len: int,
    stride: int,
    settings: SGDConfig = EvaluateConfig().tuned,  # noqa: B008
    *,
    within_documents: bool = False,
    mesh: Mesh | None = None,
    batch_tokens: int = 65_536,
    tell: Tell = untold,
    resume_file: Path | None = None,
    looped: bool = True,
    observe: Observer = unobserved,
    lessons: float = math.inf,
) -> Scored:
    """Scores every target with up to `seq_len` tokens of context, with weights trained on those before; see the module.

    Args:
      config: the network.
      params: its parameters, which stay as they are.
      text: what to score.
      seq_len: longest context, and the length of the rows that are trained on where `settings.row_length` is 0.
      stride: tokens between two windows.
      settings: how to train.
      within_documents: no window reaches into the document before, and rows are trained on documents apart.
      mesh: devices; all of this process's by default.
      batch_tokens: tokens scored at once on each device.
      tell: is told of the targets scored so far.
      resume_file: what an interrupted evaluation goes on from, to the same scores; it is written after a chunk, every
        minute at most, and removed at the end. Its size is twice that of the weights, and 4 bytes a target.
      looped: see `jgolf.model.functional`.
      observe: see `jgolf.evaluate.score`; the number is that of the chunk.
      lessons: learn from the first so many chunks only, to see what the others' lessons change.

    Raises:
      DataError: there is nothing to score, or the stride is longer than the window.
      JgolfError: the resume file cannot be used.
    """
    num_tokens = len(text.tokens)
    if within_documents:
        windows = document_windows(text.starts, num_tokens, seq_len, stride)
    else:
        windows = sliding_windows(num_tokens, seq_len, stride)
    settings = dataclasses.replace(settings, row_length=settings.row_length or seq_len)
    mesh = mesh or local_mesh()
    config, whole = scoring_model(resolved(config)), NamedSharding(mesh, P())
    own = fingerprint(params, text, config, settings, looped, seq_len, stride, within_documents) if resume_file else ""
    kept, tally = Kept(resume_file, own), Tally(text, tell)
    sgd = Sgd(config, settings, mesh, within_documents, looped)
    params = jax.tree.map(jnp.copy, jax.device_put(params, whole))
    momentum, first, earlier_s, began_s = zeros_like(params, whole), 0, 0.0, time.perf_counter()
    if found := kept.load(tally.nats.nbytes + 2 * sum(value.nbytes for value in params.values())):
        arrays, numbers = found
        tally.restore(arrays["nats"])
        params, momentum = (
            jax.device_put({path: arrays[f"{what}/{path}"] for path in params}, whole)
            for what in ("params", "momentum")
        )
        first, earlier_s = int(numbers["chunk"]), numbers["seconds"]
    chunk_of = (windows.start + windows.first_scored) // settings.chunk_tokens
    num_chunks = sgd.num_chunks(num_tokens - 1)
    batch_tokens = min(batch_tokens, -(-int(np.bincount(chunk_of).max()) // mesh.size) * seq_len)
    for chunk in range(first, num_chunks):
        batch = windows[chunk_of == chunk]
        how = {"batch_tokens": batch_tokens, "mesh": mesh, "looped": looped, "full_batches": True}
        how["observe"] = lambda what, _, value, chunk=chunk: observe(what, chunk, value)
        for part in window_nats(config, params, text.tokens, batch, seq_len, **how):
            tally.add(part.targets, part.nats)
            observe("scored", chunk, part)
        if chunk == num_chunks - 1:
            break
        if chunk >= lessons:
            continue
        params, momentum, _ = sgd.train(params, momentum, text.tokens, chunk, num_chunks)
        if kept.is_due:
            arrays = {f"params/{path}": np.asarray(value) for path, value in params.items()}
            arrays |= {f"momentum/{path}": np.asarray(value) for path, value in momentum.items()}
            seconds = earlier_s + time.perf_counter() - began_s
            kept.save({"nats": tally.nats, **arrays}, chunk=chunk + 1, seconds=seconds)
    kept.remove()
    return Scored(tally.nats, mean_context(windows), earlier_s=earlier_s)
