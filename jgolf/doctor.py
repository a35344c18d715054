"""`jgolf doctor [CONFIG]`: is everything here that a run needs, and what to do about what is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich import box
from rich.table import Table
from rich.text import Text

from jgolf import config as configs
from jgolf.config import Config
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.errors import EXIT_CHECK_FAILED, EXIT_OK, JgolfError
from jgolf.model.attention import attention_kernel, causal_attention
from jgolf.model.functional import parameter_shapes
from jgolf.progress import counted, plain_console
from jgolf.train.mesh import device_batch_order
from jgolf.train.step import init_state

Verdict = Literal["ok", "optional", "warning", "missing"]
STYLES: dict[Verdict, str] = {"ok": "green", "optional": "dim", "warning": "yellow", "missing": "bold red"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece", "zstandard")
EXTRAS = {
    "download": ("huggingface_hub", "jgolf data download"),
    "entropy": ("constriction", "smaller artifacts: --codec range"),
    "report": ("matplotlib", "jgolf report"),
    "tensorboard": ("tensorboardX", "--writers tensorboard"),
    "torch": ("torch", "PyTorch checkpoints, jgolf convert and crosscheck"),
    "wandb": ("wandb", "--writers wandb"),
}
"""Extra → its module, and what needs it."""
DEFAULT_CONFIG = "pr592"
CUDNN_TOLERANCE = 0.05  # bfloat16 against float32, at values around 1


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
    name, rest = configs.leading_name(argv)
    settings = tyro.cli(
        Config,
        default=configs.load(name or DEFAULT_CONFIG),
        prog=f"{prog} [CONFIG]",
        args=rest,
        config=(tyro.conf.FlagConversionOff,),
        description=(
            "Check this machine: devices, attention, data, room, packages, and say what to do about each. CONFIG is "
            f"the run to check for ({DEFAULT_CONFIG} by default), with any setting as train.py takes it, such as "
            f"{prog} pr592 --data data/mine. The exit status is 1 if something that it needs is missing."
        ),
    )
    console = plain_console()
    table = Table(box=box.SIMPLE, title=f"jgolf doctor for {settings.name}")
    for column in ("check", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("found, and what to do", overflow="fold")
    missing = 0
    for check in run_checks(settings):
        missing += check.verdict == "missing"
        advice = f"\n→ {check.advice}" if check.advice else ""
        table.add_row(check.name, Text(check.verdict, style=STYLES[check.verdict]), check.found + advice)
    console.print(table)
    command = shlex.join(["python", "train.py", name or DEFAULT_CONFIG, *rest])
    print(f"{counted(missing, 'thing')} missing" if missing else f"ready to train: {command}")
    return EXIT_CHECK_FAILED if missing else EXIT_OK


doctor.parse_and_call = lambda prog, argv: doctor(argv, prog)


def run_checks(config: Config) -> Iterator[Check]:
    """All checks, in order."""
    yield packages()
    sense = settings(config)
    yield sense
    found = devices()
    yield found
    makes_sense = sense.verdict != "missing"
    if makes_sense and found.verdict != "missing":
        yield batch(config)
        yield attention(config)
        yield device_memory(config)
    yield tokenizer(config)
    yield from (shards(config, split) for split in ("train", "val"))
    if makes_sense:
        yield disk(config)
        yield host_memory(config)
    yield from extras()


def packages() -> Check:
    """Versions, and that JAX and jaxlib belong together."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
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
    count = sum(int(np.prod(shape)) for shape in parameter_shapes(config.model).values())
    return Check("settings", "ok", f"{config.name}: {count:,} parameters, {config.train.steps:,} steps at most")


def devices() -> Check:
    """What JAX computes on."""
    advice = "pip install 'jgolf[cuda13]', and look at what nvidia-smi says of the driver"
    try:
        found = jax.devices()
    except RuntimeError as error:
        return Check("devices", "missing", f"JAX finds none: {_first_line(error)}", advice)
    text = f"{len(found)} × {found[0].device_kind} ({found[0].platform})"
    if found[0].platform == "cpu":
        if _has_nvidia_driver():
            return Check("devices", "warning", f"{text}, though this machine has an NVIDIA driver", advice)
        return Check("devices", "warning", text, "enough for the demo; the full recipes want NVIDIA GPUs")
    return Check("devices", "ok", text)


def batch(config: Config) -> Check:
    """That the devices can share a step's batch."""
    try:
        order = device_batch_order(config, jax.device_count())
    except JgolfError as error:
        return Check("batch", "missing", str(error))
    rows = order.micro_batch_rows // jax.device_count()
    text = f"{order.accumulation} micro-step(s) of {rows} sequences of {order.seq_len} tokens on each device"
    return Check("batch", "ok", text)


def attention(config: Config) -> Check:
    """The attention kernel; cuDNN's is tried, forwards and backwards."""
    try:
        kernel = attention_kernel(config.model)
    except JgolfError as error:
        return Check("attention", "missing", str(error))
    if kernel != "cudnn":
        advice = "" if jax.default_backend() == "cpu" else "fused attention wants --model.compute-dtype bfloat16"
        return Check("attention", "warning" if advice else "ok", f"by {kernel}; cuDNN does not apply here", advice)
    try:
        error = cudnn_error(config)
    except Exception as error:  # whatever the library raises, it is the finding
        advice = "--model.attention xla works everywhere, slower; pip install --upgrade nvidia-cudnn-cu13"
        return Check("attention", "missing", f"cuDNN's kernel fails: {_first_line(error)}", advice)
    if error > CUDNN_TOLERANCE:
        return Check("attention", "missing", f"cuDNN's kernel is off by {error:.3g}", "--model.attention xla")
    return Check("attention", "ok", f"by cuDNN; a trial agrees with XLA within {error:.2g}")


def cudnn_error(config: Config) -> float:
    """Largest difference between cuDNN's attention and XLA's in float32, in a gradient of a small trial."""
    model = config.model
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
    qkv = [jax.random.normal(key, (2, 128, n, model.head_dim)) for key, n in zip(keys, heads, strict=True)]

    def gradient(kernel: str, dtype: str) -> jax.Array:
        def total(q, k, v):
            return jnp.mean(causal_attention(q, k, v, kernel).astype(jnp.float32) ** 2)

        one = jax.jit(jax.grad(total))(*(part.astype(dtype) for part in qkv))
        return one.astype(jnp.float32)

    expected = gradient("xla", "float32")
    return float(jnp.max(jnp.abs(gradient("cudnn", "bfloat16") - expected)) / jnp.max(jnp.abs(expected)))


def device_memory(config: Config) -> Check:
    """Room for the state on each device; what activations need depends on the batch."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    need = state_bytes(config)
    if limit is None:
        return Check("device memory", "ok", f"the state takes {_gb(need)} of this machine's memory")
    text = f"JAX may use {_gb(limit)} of each device; the state takes {_gb(need)}, activations come on top"
    if limit < 2 * need:
        return Check("device memory", "missing", text, "end other programs on the GPU, or make the model smaller")
    return Check("device memory", "ok", text)


def tokenizer(config: Config) -> Check:
    """The tokenizer of the config's data."""
    if _demo_to_be_built(config):
        return Check("tokenizer", "ok", f"{config.data.dir} will be built when it is needed")
    try:
        found = load_tokenizer(find_tokenizer(config.data.dir, config.data.tokenizer), config.model.vocab_size)
    except JgolfError as error:
        return Check("tokenizer", "missing", str(error))
    return Check("tokenizer", "ok", f"{found.path}: {found.vocab_size:,} pieces")


def shards(config: Config, split: str) -> Check:
    """The tokens of one split."""
    name = f"{split} tokens"
    if _demo_to_be_built(config):
        return Check(name, "ok", f"{config.data.dir} will be built when it is needed")
    try:
        paths = find_shards(config.data.dir, split)
        count = len(TokenStream(paths))
    except JgolfError as error:
        return Check(name, "missing", str(error))
    text = f"{config.data.dir}: {count:,} in {len(paths)} shard(s)"
    if split == "train":
        passes = config.train.steps * config.train.batch_tokens / max(count, 1)
        text += f"; {config.train.steps:,} steps pass over them {passes:.2g} times"
    return Check(name, "ok", text)


def disk(config: Config) -> Check:
    """Room for checkpoints where runs go."""
    folder = next(parent for parent in (Path("runs").absolute(), *Path("runs").absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    need = (config.train.keep_checkpoints + 1) * state_bytes(config)
    text = f"{folder}: {_gb(free)} free; {config.train.keep_checkpoints + 1} checkpoints take {_gb(need)}"
    if free < need:
        return Check("disk", "missing", text, "make room, choose another --run-dir, or lower --train.keep-checkpoints")
    if not os.access(folder, os.W_OK):
        return Check("disk", "missing", f"{folder}: cannot be written to", "choose another --run-dir")
    return Check("disk", "ok", text)


def host_memory(config: Config) -> Check:
    """Memory of the machine; a checkpoint is copied there before it is written."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
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


def state_bytes(config: Config) -> int:
    """Bytes of a run's state: parameters, optimizer and averages."""
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in parameter_shapes(config.model).items()}
    state = jax.eval_shape(lambda params: init_state(config, params), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _demo_to_be_built(config: Config) -> bool:
    return config.data.build_demo and not Path(config.data.dir).exists()


def _has_nvidia_driver() -> bool:
    return sys.platform == "linux" and Path("/proc/driver/nvidia/version").exists()


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
