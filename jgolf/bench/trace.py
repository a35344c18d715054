"""Where the device's time goes: kernels of a profiler's trace, by kind."""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

Execution = tuple[str, float, float]
"""Name of a kernel, and the nanoseconds of a clock at which one execution of it began and ended."""
COLLECTIVES = "collectives"
KINDS = (
    (COLLECTIVES, r"nccl|all[-_]?(reduce|gather|to_?all)|reduce[-_]?scatter|collective"),
    ("attention backward", r"(flash|sdpa|fmha|attention).*(bprop|bwd|backward)|dot_do_o|convert_dq|fmha_reduce"),
    ("attention forward", r"flash|sdpa|fmha|attention"),
    ("matrix products", r"nvjet|cutlass|gemm|gemv|cublas|xmma|splitk|(^|_)dot([._]|$)"),
    ("sorts", r"sort|(^|::)cub"),
    ("copies", r"memcpy|memset|^(loop_|input_|wrapped_)*(copy|transpose|concatenate|slice|bitcast)"),
    ("other fusions", r"fusion|^wrapped_|^(loop|input)_|reduce"),
)
"""Kind of a kernel and the names that tell it, in the order in which they are tried."""
OTHER = "other kernels"
MOSAIC = "_mosaic_gpu_kernel"
"""What JAX puts behind the name of a kernel that is written for Mosaic GPU."""
_CONTROL = re.compile(r"(while|call|conditional|async-\w+)\b")  # on the CPU: what they hold is there by itself
_OWN = re.compile(r"__gpu\$xla\.gpu\.triton\".*[{ ]name = \"(\w+)\"")


@dataclass(frozen=True)
class Kernel:
    """A kernel's share of one call.

    Attributes:
      name: without the number that tells its uses apart.
      kind: one of `KINDS`, or its own name where it is written in this project.
      ms: device time in one call, all uses together.
      count: uses in one call.
    """

    name: str
    kind: str
    ms: float
    count: float


@dataclass(frozen=True)
class Profile:
    """All kernels of one call, the longest first."""

    kernels: tuple[Kernel, ...]

    @property
    def device_ms(self) -> float:
        """Sum of the kernels' durations: the device's time, but for gaps, and for what runs side by side."""
        return sum(kernel.ms for kernel in self.kernels)

    def by_kind(self) -> list[Kernel]:
        """The kernels of each kind as one, the longest first."""
        ms, count = Counter(), Counter()
        for kernel in self.kernels:
            ms[kernel.kind] += kernel.ms
            count[kernel.kind] += kernel.count
        return [Kernel(kind, kind, total, count[kind]) for kind, total in ms.most_common()]


def own_kernels(hlo: str) -> frozenset[str]:
    """Names of the Pallas kernels in a compiled program's text (`jax.stages.Compiled.as_text`)."""
    return frozenset(map(base_name, _OWN.findall(hlo)))


def base_name(name: str) -> str:
    """A kernel's name without the number that the compiler puts behind it."""
    return re.sub(r"([._]+\d+)+$", "", name)


def kind_of(name: str, own: Set[str] = frozenset()) -> str:
    """The kind of a kernel, by its name; those called in `own` are a kind each."""
    if base_name(name) in own or name.endswith(MOSAIC):
        return f"own: {base_name(name).removesuffix(MOSAIC)}"
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def summed(events: Iterable[tuple[str, float]], calls: int, own: Set[str] = frozenset()) -> Profile:
    """Kernels from (name, nanoseconds) of every execution in `calls` calls."""
    times: dict[str, list[float]] = defaultdict(list)
    for name, duration_ns in events:
        times[base_name(name)].append(duration_ns)
    kernels = [
        Kernel(name, kind_of(name, own), sum(each) / calls / 1e6, len(each) / calls) for name, each in times.items()
    ]
    return Profile(tuple(sorted(kernels, key=lambda kernel: -kernel.ms)))


@dataclass(frozen=True)
class CollectiveTime:
    """Milliseconds of a call that a device spends in collectives, the mean of all devices of this process.

    Attributes:
      whole_ms: while at least one collective runs, waiting for other devices included.
      exposed_ms: of it, while nothing else runs.
      least_whole_ms: `whole_ms` of the device that has the least, as it comes last and does not wait.
    """

    whole_ms: float
    exposed_ms: float
    least_whole_ms: float


def profile(run: Callable[[], Any], calls: int = 3, own: Set[str] = frozenset()) -> Profile:
    """Traces `calls` calls of `run`, which returns arrays to wait for, and sums up their kernels on one device."""
    first = next(iter(_traced(run, calls)), [])
    return summed(((name, end_ns - start_ns) for name, start_ns, end_ns in first), calls, own)


def collective_time(run: Callable[[], Any], calls: int = 3) -> CollectiveTime:
    """Traces `calls` calls of `run`, and tells how long the devices exchange data, and how much of it is not hidden.

    On the CPU the simulated devices share their processor, and count as one.
    """
    devices = [of_collectives(executions) for executions in _traced(run, calls)]
    whole, exposed = ([each[index] / calls / 1e6 for each in devices] for index in (0, 1))
    return CollectiveTime(sum(whole) / len(whole), sum(exposed) / len(exposed), min(whole))


def of_collectives(executions: Iterable[Execution]) -> tuple[float, float]:
    """Nanoseconds in which a collective runs, and those of them in which nothing else does."""
    intervals: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for name, start_ns, end_ns in executions:
        intervals[kind_of(name) == COLLECTIVES].append((start_ns, end_ns))
    either, others = covered(intervals[True] + intervals[False]), covered(intervals[False])
    return covered(intervals[True]), either - others


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _traced(run: Callable[[], Any], calls: int) -> list[list[Execution]]:
    """What every device of this process executed in `calls` calls, after one that is not traced."""
    jax.block_until_ready(run())
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(calls):
                result = run()
            jax.block_until_ready(result)
        (path,) = Path(folder).rglob("*.xplane.pb")
        return _executions(ProfileData.from_file(str(path)))


def _executions(data: ProfileData) -> list[list[Execution]]:
    """Every kernel, by device; on the CPU, every operation, of all simulated devices together."""
    planes = sorted((plane for plane in data.planes if plane.name.startswith("/device:")), key=lambda one: one.name)
    by_device = [
        [_execution(event) for line in plane.lines if line.name.startswith("Stream") for event in line.events]
        for plane in planes
    ]
    if planes:
        return [executions for executions in by_device if executions] or by_device[:1]
    events = (event for plane in data.planes for line in plane.lines for event in line.events)
    return [
        [
            _execution(event)
            for event in events
            if any(name == "hlo_op" for name, _ in event.stats) and not _CONTROL.match(event.name)
        ]
    ]


def _execution(event: Any) -> Execution:
    return event.name, event.start_ns, event.start_ns + event.duration_ns
