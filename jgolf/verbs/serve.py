"""`jgolf serve`: a page on which a model goes on with what is typed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import tyro

from jgolf.config import Average
from jgolf.errors import JgolfError
from jgolf.evaluate.sample import check_sampling, continuations, continued_text
from jgolf.load import load_model
from jgolf.options import PathText
from jgolf.serve.server import Asked, PageServer
from jgolf.verbs.scoring import tokenizer_of

MOST_TOKENS = 10_000
"""That one request may ask for."""


def serve(
    model: tyro.conf.Positional[PathText],
    port: int = 8000,
    tokenizer: Path | None = None,
    config: PathText | None = None,
    average: Average | None = None,
) -> None:
    """Open a page in which a model goes on with what you type; this machine alone can reach it.

    Ctrl-C ends it. Example: jgolf serve runs/demo

    Args:
      model: A run directory, a .jgolf artifact, .safetensors, or a PyTorch checkpoint (.pt) or artifact (.ptz).
      port: Where it listens, on 127.0.0.1; 0 for any that is free.
      tokenizer: Its file; the run's own by default, also of a run's artifact.
      config: For PyTorch files, what their tensors do not tell.
      average: For a run, the weights to use; those that it exports by default.
    """
    if not 0 <= port < 1 << 16:
        raise JgolfError(f"--port {port}: expected from 0 to 65535")
    loaded = load_model(model, config, average)
    pieces = tokenizer_of(loaded, tokenizer)
    network, train = loaded.config.model, loaded.config.train
    params = jax.device_put(loaded.params)

    def go_on(asked: Asked) -> Iterator[str]:
        check_sampling(asked.tokens, asked.temperature, 0, asked.top_p, asked.seed)
        if asked.tokens > MOST_TOKENS:
            raise JgolfError(f"--tokens {asked.tokens}: expected at most {MOST_TOKENS:,}")
        ids = [pieces.bos_id, *pieces.encode(asked.prompt)][-train.seq_len :]
        how = (asked.temperature, 0, asked.seed, asked.top_p)
        new = continuations(network, params, ids, asked.tokens, train.seq_len, *how, documents=train.documents)
        return continued_text(pieces, ids, new)

    count = sum(values.size for values in loaded.params.values())
    about = f"{model}: {count:,} parameters, {train.seq_len:,} tokens of context, {pieces.vocab_size:,} pieces"
    with PageServer(port, about, go_on) as server:
        print(f"{about}\nhttp://127.0.0.1:{server.port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
