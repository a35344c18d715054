"""`jgolf sample`: a model continues a text."""

from __future__ import annotations

from pathlib import Path

import tyro

from jgolf import files
from jgolf.config import Average
from jgolf.errors import JgolfError
from jgolf.evaluate.sample import check_sampling, continuations, continued_text
from jgolf.load import load_model
from jgolf.lock import in_turn
from jgolf.options import PathText
from jgolf.run_dir import CONFIG_FILE, SAMPLES_FILE
from jgolf.verbs.scoring import tokenizer_of


def sample(
    model: tyro.conf.Positional[PathText],
    prompt: str = "",
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    tokenizer: Path | None = None,
    config: PathText | None = None,
    average: Average | None = None,
    keep: bool = False,
) -> None:
    """Let a model continue a text.

    Example: jgolf sample runs/demo --prompt "The function" --tokens 100

    Args:
      model: A run directory, a .jgolf artifact, .safetensors, or a PyTorch checkpoint (.pt) or artifact (.ptz).
      prompt: The text to continue; empty starts a new document.
      tokens: Tokens to write at most; a new document ends the text.
      temperature: Below 1 prefers likely tokens; 0 always takes the likeliest.
      top_k: Choose among this many likeliest tokens; 0 for all.
      top_p: Choose among the fewest likeliest tokens that have this probability together; 1 for all.
      seed: Seed of the choices.
      tokenizer: Its file; the run's own by default, also of a run's artifact.
      config: For PyTorch files, what their tensors do not tell.
      average: For a run, the weights to use; those that it exports by default.
      keep: Add the text to the run's samples.jsonl, which `jgolf report` shows.
    """
    check_sampling(tokens, temperature, top_k, top_p, seed)
    if keep and not Path(model, CONFIG_FILE).is_file():
        raise JgolfError(f"--keep: {model} is no run directory, in which the text could be kept; leave --keep out")
    prompt = prompt.encode(errors="replace").decode()  # bytes of the command line that are no UTF-8
    loaded = load_model(model, config, average)
    pieces = tokenizer_of(loaded, tokenizer)
    ids = [pieces.bos_id, *pieces.encode(prompt)]
    shown = pieces.decode(ids)
    print(shown, end="", flush=True)
    train, how = loaded.config.train, (temperature, top_k, seed, top_p)
    generated = continuations(
        loaded.config.model, loaded.params, ids, tokens, train.seq_len, *how, documents=train.documents
    )
    for text in continued_text(pieces, ids, generated):
        print(text, end="", flush=True)
        shown += text
    print()
    if keep:
        settings = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        with in_turn(model):
            files.add_line(Path(model, SAMPLES_FILE), {"prompt": prompt, "text": shown, **settings})
