"""What the devices of a run exchange in a step, counted in the compiled program: `jgolf bench communication`."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from math import prod
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.table import Table

from jgolf import config as configs
from jgolf import files
from jgolf.bench.collectives import Collective, compiled_collectives, intended_collectives
from jgolf.config import Config
from jgolf.data.batches import Batch
from jgolf.errors import ConfigError
from jgolf.model.functional import parameter_shapes
from jgolf.progress import plain_console
from jgolf.rules import rule_of
from jgolf.train.mesh import AXIS, device_batch_order, lower_step, make_mesh, replicated
from jgolf.train.step import abstract_state

GRADIENT_BYTES = 4
MAX_GRADIENT_RATIO = 1.5


@dataclass(frozen=True)
class Exchange:
    """Collectives of one kind and type in a step."""

    kind: str
    dtype: str
    count: int
    num_bytes: int


@dataclass(frozen=True)
class Communication:
    """What each device of a run takes part in during a step."""

    config: str
    devices: int
    compiled: list[Exchange]
    intended: list[Exchange]
    """Before compilation: a processor without arithmetic in bfloat16 exchanges float32 in its place."""
    total_bytes: int
    """By the intended types."""
    gradient_bytes: int
    muon_bytes: int
    """Of Muon's updates, once, in the type in which they are computed."""

    @property
    def allowed_bytes(self) -> float:
        """1.5 × the gradients, and Muon's updates once."""
        return MAX_GRADIENT_RATIO * self.gradient_bytes + self.muon_bytes


def communication(
    config: str = "pr592",
    devices: int = 8,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Count what the devices exchange in a training step.

    Compiles the step for simulated devices, on the CPU and without running it, and reads its collective
    operations off the compiled program.

    Args:
      config: One of the configs, a .py file, or a run's config.json.
      devices: Number of simulated devices.
      json: Print JSON instead of a table.
    """
    found = count(configs.validate(configs.load(config)), simulated_mesh(devices))
    if json:
        print(files.json_text(asdict(found) | {"allowed_bytes": found.allowed_bytes}, indent=1))
    else:
        show(found)


def simulated_mesh(devices: int) -> Mesh:
    """A mesh of CPU devices, to be made before JAX is used for anything else.

    Raises:
      ConfigError: JAX has been used, with another number of devices.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError as error:
        raise ConfigError(f"--devices {devices}: {error}") from error
    mesh = make_mesh()
    if mesh.size != devices:
        raise ConfigError(f"--devices is {devices}, but XLA_FLAGS sets {mesh.size}: leave --xla_force… out of it")
    return mesh


def count(config: Config, mesh: Mesh) -> Communication:
    """Compiles a config's step for a mesh and counts what its devices exchange."""
    order = device_batch_order(config.train, mesh.size)
    shape = (order.accumulation, order.micro_batch_rows, order.seq_len)
    tokens = jax.ShapeDtypeStruct(shape, jnp.uint16, sharding=NamedSharding(mesh, P(None, AXIS)))
    lowered = lower_step(config, mesh, abstract_state(config, replicated(mesh)), Batch(tokens, tokens))
    intended = _summed(intended_collectives(lowered.as_text()))
    sizes = {path: prod(shape) for path, shape in parameter_shapes(config.model).items()}
    muon_size = sum(size for path, size in sizes.items() if rule_of(path).group == "muon")
    return Communication(
        config=config.name,
        devices=mesh.size,
        compiled=compiled_exchanges(lowered.compile().as_text()),
        intended=intended,
        total_bytes=sum(exchange.num_bytes for exchange in intended),
        gradient_bytes=GRADIENT_BYTES * sum(sizes.values()),
        muon_bytes=jnp.dtype(config.optim.muon.newton_schulz_dtype).itemsize * muon_size,
    )


def compiled_exchanges(hlo: str) -> list[Exchange]:
    """What a compiled program (`jax.stages.Compiled.as_text`) has the devices exchange."""
    return _summed(compiled_collectives(hlo))


def _summed(collectives: list[Collective]) -> list[Exchange]:
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for one in collectives:
        counts[one.kind, one.dtype][0] += one.times
        counts[one.kind, one.dtype][1] += one.times * one.num_bytes
    return [Exchange(*key, *sums) for key, sums in sorted(counts.items())]


def show(found: Communication) -> None:
    """Prints the counts as a table."""
    table = Table(title=f"{found.config}: collectives of one step on {found.devices} devices")
    for column in ("program", "collective", "type"):
        table.add_column(column)
    for column in ("count", "MB a step", "of the gradients"):
        table.add_column(column, justify="right")

    def row(program: str, kind: str, dtype: str, count: str, num_bytes: float) -> None:
        table.add_row(program, kind, dtype, count, f"{num_bytes / 1e6:.3f}", f"{num_bytes / found.gradient_bytes:.3f}")

    for program, exchanges in (("compiled", found.compiled), ("as written", found.intended)):
        for one in exchanges:
            row(program, one.kind, one.dtype, str(one.count), one.num_bytes)
        row(program, "all", "", "", sum(one.num_bytes for one in exchanges))
        table.add_section()
    row("", "gradients", "f32", "", found.gradient_bytes)
    row("", "Muon's updates", "", "", found.muon_bytes)
    row("", "allowed: 1.5 × gradients + Muon's updates", "", "", found.allowed_bytes)
    plain_console().print(table)
