"""`jgolf doctor [CONFIG]`: is everything here that a run needs, and what to do about what is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jgolf import config as configs
from jgolf.config import Config, ModelConfig
from jgolf.data.demo import demo_is_due
from jgolf.data.run_data import run_tokenizer, training_tokens
from jgolf.data.shards import TokenStream
from jgolf.data.tokenizer import Tokenizer
from jgolf.data.vocabulary import resolved_for
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, JgolfError, first_line
from jgolf.evaluate.validation import Validation
from jgolf.load import load_params
from jgolf.model import functional
from jgolf.model.functional import parameter_shapes
from jgolf.model.kernels import door
from jgolf.model.kernels.attention import attention_name, causal_attention, kernel_for
from jgolf.progress import counted, plain_console
from jgolf.train.memory import check_room, device_bytes, machine_bytes, state_bytes
from jgolf.train.mesh import device_batch_order
from jgolf.train.options import TrainOptions, read_command
from jgolf.train.requirements import CORE_PACKAGES
from jgolf.train.run import check_run_dir
from jgolf.train.writers import WriterName, require_writers

Verdict = Literal["ok", "optional", "warning", "missing"]
STYLES: dict[Verdict, str] = {"ok": "green", "optional": "dim", "warning": "yellow", "missing": "bold red"}
EXTRAS = {
    "download": ("huggingface_hub", "jgolf data download"),
    "entropy": ("constriction", "smaller artifacts: --codec range"),
    "parquet": ("pyarrow", "Parquet files in jgolf new and jgolf data split"),
    "report": ("matplotlib", "jgolf report"),
    "safetensors": ("safetensors", ".safetensors files"),
    "tensorboard": ("tensorboardX", "--writers tensorboard"),
    "torch": ("torch", "PyTorch checkpoints, jgolf convert and crosscheck"),
    "wandb": ("wandb", "--writers wandb"),
}
"""Extra → its module, and what needs it."""
DEFAULT_CONFIG = "pr592"
PURPOSE = (
    "Check this machine for a run of train.py with the same options: devices, attention, data, room, packages, and say "
    "what to do about each. The exit status is 1 if something that the run needs is missing."
)
ATTENTION_TOLERANCE = 0.05  # bfloat16 against float32, at values around 1


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
      name: what was looked at.
      verdict: "missing" is what a run cannot do without; a "warning" costs time or quality.
      found: what there is.
      advice: what to do about it; empty where there is nothing to do.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def doctor(argv: list[str], prog: str = "jgolf doctor") -> int:
    """Parses the command line, checks, and prints what was found; the exit code is 1 if something is missing."""
    options, run_dir = read_command(argv, prog, PURPOSE, DEFAULT_CONFIG)
    for option in ("coordinator", "num_processes", "process_id"):
        if getattr(options, option) is not None:
            raise JgolfError(f"--{option.replace('_', '-')}: the doctor checks this machine by itself; leave this out")
    console = plain_console()
    table = Table(box=box.SIMPLE, title=f"jgolf doctor for {options.config.name}")
    for column in ("check", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    missing = 0
    for check in run_checks(options, run_dir):
        missing += check.verdict == "missing"
        advice = f"\n→ {check.advice}" if check.advice else ""
        table.add_row(check.name, Text(check.verdict, style=STYLES[check.verdict]), check.found + advice)
    console.print(table)
    named = [] if configs.leading_name(argv)[0] or options.resume else [DEFAULT_CONFIG]
    command = shlex.join(["jgolf", "train", *named, *argv])
    print(f"{counted(missing, 'thing')} missing" if missing else f"ready to train: {command}")
    return EXIT_CHECK_FAILED if missing else EXIT_OK


doctor.parse_and_call = lambda prog, argv: doctor(argv, prog)


def run_checks(options: TrainOptions, run_dir: Path) -> Iterator[Check]:
    """All checks, in order."""
    config = options.config
    yield packages()
    config = _with_known_vocabulary(config)
    sense = settings(config)
    yield sense
    found = devices()
    yield found
    makes_sense = sense.verdict != "missing"
    is_known = makes_sense and config.model.vocab_size > 0  # else no network can be built, not even in outline
    if is_known and found.verdict != "missing":
        yield batch(config)
        yield attention(config)
        yield device_memory(config)
    if makes_sense:
        yield from data(config)
    yield run_folder(run_dir, options.resume)
    if is_known:
        yield disk(config, run_dir)
        yield host_memory(config)
        if options.init_from is not None:
            yield first_parameters(config.model, options.init_from)
    if options.writers:
        yield writers(options.writers)
    yield from extras()


def packages() -> Check:
    """Versions, and that JAX and jaxlib belong together."""
    versions = {name: importlib.metadata.version(name) for name in CORE_PACKAGES}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}; {listed}"
    if versions["jax"] != versions["jaxlib"]:
        return Check("versions", "warning", text, "jax and jaxlib differ: pip install --upgrade jax jaxlib")
    return Check("versions", "ok", text)


def settings(config: Config) -> Check:
    """That the settings make sense together."""
    try:
        configs.validate(config)
    except JgolfError as error:
        return Check("settings", "missing", str(error), "change them in the config's file or on the command line")
    if not config.model.vocab_size:
        found = f"{config.name}: a vocabulary of the tokenizer's size; the rest is told when there is a tokenizer"
        return Check("settings", "ok", found)
    count = sum(int(np.prod(shape)) for shape in parameter_shapes(config.model).values())
    return Check("settings", "ok", f"{config.name}: {count:,} parameters, {config.train.steps:,} steps at most")


def devices() -> Check:
    """What JAX computes on."""
    advice = "pip install 'jgolf[cuda13]', and look at what nvidia-smi says of the driver"
    try:
        found = jax.devices()
    except RuntimeError as error:
        return Check("devices", "missing", f"JAX finds none: {first_line(error)}", advice)
    text = f"{len(found)} × {found[0].device_kind} ({found[0].platform})"
    if found[0].platform == "cpu":
        if _has_nvidia_driver():
            return Check("devices", "warning", f"{text}, though this machine has an NVIDIA driver", advice)
        return Check("devices", "warning", text, "enough for the demo; the full recipes want NVIDIA GPUs")
    return Check("devices", "ok", text)


def batch(config: Config) -> Check:
    """That the devices can share a step's batch."""
    try:
        order = device_batch_order(config.train, jax.device_count())
    except JgolfError as error:
        return Check("batch", "missing", str(error))
    rows = order.micro_batch_rows // jax.device_count()
    text = f"{order.accumulation} micro-step(s) of {rows} sequences of {order.seq_len} tokens on each device"
    return Check("batch", "ok", text)


def attention(config: Config) -> Check:
    """What attention runs in; a kernel is tried, forwards and backwards."""
    model, documents, by_plain = config.model, config.train.documents, "in ordinary JAX"
    if model.kernels == "plain" or door.gpu() is None:
        return Check("attention", "ok", f"{by_plain}; {functional.description(model, documents)}")
    _, _, reason = kernel_for(jnp.dtype(model.compute_dtype), model.head_dim, documents)
    if reason is not None:
        advice = "on a Hopper GPU: pip install 'jgolf[hopper]'" if documents else "--model.compute-dtype bfloat16"
        return Check("attention", "warning", f"{by_plain}, slower than a kernel: {reason}", advice)
    name = attention_name(model.compute_dtype, model.head_dim, documents)
    try:
        error = attention_error(model, documents)
    except Exception as error:  # whatever the library raises, it is the finding
        advice = "--model.kernels plain works everywhere, slower; pip install --upgrade nvidia-cudnn-cu13"
        return Check("attention", "missing", f"the kernel of {name} fails: {first_line(error)}", advice)
    if error > ATTENTION_TOLERANCE:
        return Check("attention", "missing", f"the kernel of {name} is off by {error:.3g}", "--model.kernels plain")
    return Check("attention", "ok", f"by {name}; a trial agrees with ordinary JAX within {error:.2g}")


def attention_error(model: ModelConfig, documents: bool) -> float:
    """Largest difference between the kernel and ordinary JAX in float32, in a gradient of a small trial."""
    segments = jnp.repeat(jnp.arange(4), 32)[None].repeat(2, axis=0) if documents else None
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    qkv = [jax.random.normal(key, (2, 128, n, model.head_dim)) for key, n in zip(keys, heads, strict=True)]

    def gradient(choice: door.Choice, dtype: str) -> jax.Array:
        def total(q, k, v):
            return jnp.mean(causal_attention(choice, q, k, v, segments, 32).astype(jnp.float32) ** 2)

        one = jax.jit(jax.grad(total))(*(part.astype(dtype) for part in qkv))
        return one.astype(jnp.float32)

    expected = gradient("plain", "float32")
    return float(jnp.max(jnp.abs(gradient("auto", "bfloat16") - expected)) / jnp.max(jnp.abs(expected)))


def device_memory(config: Config) -> Check:
    """Room for the state on each device; what activations need depends on the batch."""
    limit = device_bytes()
    if limit is None:
        return _found("device memory", lambda: f"the state takes {_gb(check_room(config))} of this machine's memory")
    need = state_bytes(config)
    text = f"JAX may use {_gb(limit)} of each device; the state takes {_gb(need)}, activations come on top"
    if limit < 2 * need:
        return Check("device memory", "missing", text, "end other programs on the GPU, or make the model smaller")
    return Check("device memory", "ok", text)


def data(config: Config) -> Iterator[Check]:
    """The tokenizer and the tokens of both splits, opened as a run opens them."""
    try:
        if demo_is_due(config):
            yield _demo_to_be_built(Path(config.data.dir))
            return
    except JgolfError as error:
        yield Check("data", "missing", str(error))
        return
    tokenizer = _found("tokenizer", lambda: _tokenizer_text(run_tokenizer(config)))
    yield tokenizer
    if not config.model.vocab_size:
        return  # it is the tokenizer's, which is missing, and tokens cannot be told from damage without it
    yield _found("train tokens", lambda: _training_text(config, training_tokens(config)))
    if tokenizer.verdict == "ok":
        yield _found("val tokens", lambda: _validation_text(config, Validation.open(config)))


def _found(name: str, find: Callable[[], str]) -> Check:
    """The check that finds what `find` tells; missing where it raises instead."""
    try:
        return Check(name, "ok", find())
    except JgolfError as error:
        return Check(name, "missing", str(error))


def _demo_to_be_built(folder: Path) -> Check:
    parent = _nearest_folder(folder)
    if not os.access(parent, os.W_OK):
        return Check("data", "missing", f"{parent}: cannot be written to, and the demo is to be built in {folder}")
    return Check("data", "ok", f"{folder} will be built when it is needed")


def _tokenizer_text(found: Tokenizer) -> str:
    return f"{found.path}: {found.vocab_size:,} pieces"


def _training_text(config: Config, tokens: TokenStream) -> str:
    passes = config.train.steps * config.train.batch_tokens / len(tokens)
    return (
        f"{config.data.dir}: {len(tokens):,} in {counted(len(tokens.paths), 'shard')}; {config.train.steps:,} steps "
        f"pass over them {passes:.2g} times"
    )


def _validation_text(config: Config, validation: Validation) -> str:
    text = validation.text
    told = (
        f"{config.data.dir}: {len(text.tokens):,}, {text.target_bytes.sum(dtype=int):,} bytes as the challenge counts"
    )
    if text.original is None:
        return f"{told}; how many of the original text is not known"
    return f"{told}, {text.target_original.sum(dtype=int):,} of the original text"


def run_folder(run_dir: Path, resume: bool) -> Check:
    """That a run can begin, or go on, where it is to be."""

    def text() -> str:
        check_run_dir(run_dir, resume)
        return f"{run_dir}: {'holds the run' if resume else 'free'}"

    return _found("run folder", text)


def disk(config: Config, run_dir: Path) -> Check:
    """Room for checkpoints in the run's folder."""
    folder = _nearest_folder(run_dir)
    free = shutil.disk_usage(folder).free
    need = (config.train.keep_checkpoints + 1) * state_bytes(config)
    text = f"{folder}: {_gb(free)} free; {config.train.keep_checkpoints + 1} checkpoints take {_gb(need)}"
    if free < need:
        return Check("disk", "missing", text, "make room, choose another --run-dir, or lower --train.keep-checkpoints")
    if not os.access(folder, os.W_OK):
        return Check("disk", "missing", f"{folder}: cannot be written to", "choose another --run-dir")
    return Check("disk", "ok", text)


def first_parameters(model: ModelConfig, init_from: str) -> Check:
    """That the parameters to begin with can be read, and are those of the network."""
    return _found("--init-from", lambda: f"{init_from}: {counted(len(load_params(init_from, model)), 'array')}")


def writers(names: Sequence[WriterName]) -> Check:
    """That what is to take the metrics is installed."""

    def text() -> str:
        require_writers(names)
        return ", ".join(names)

    return _found("--writers", text)


def host_memory(config: Config) -> Check:
    """Memory of the machine; a checkpoint is copied there before it is written."""
    total = machine_bytes()
    need = 2 * state_bytes(config)
    text = f"{_gb(total)}; checkpoints and export take about {_gb(need)}"
    if total < need:
        return Check("memory", "warning", text, "a run may be killed when it writes a checkpoint")
    return Check("memory", "ok", text)


def extras() -> Iterator[Check]:
    """Optional packages."""
    for extra, (module, purpose) in EXTRAS.items():
        if _is_installed(module):
            yield Check(f"extra {extra}", "ok", f"{module}, for {purpose}")
        else:
            yield Check(f"extra {extra}", "optional", f"not installed: {purpose}", f"pip install 'jgolf[{extra}]'")


def _with_known_vocabulary(config: Config) -> Config:
    """The config with the size of the tokenizer's vocabulary where it takes that, as far as there is a tokenizer."""
    try:
        return configs.replace(config, "model", resolved_for(config.data, config.model))
    except JgolfError:  # `tokenizer` says what is wrong with it
        return config


def _nearest_folder(path: Path) -> Path:
    """The folder that is there already in which `path` is, or would be made."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def _has_nvidia_driver() -> bool:
    return sys.platform == "linux" and Path("/proc/driver/nvidia/version").exists()


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
