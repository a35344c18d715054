"""Starting processes on some devices of this host, as one run or alone, and waiting for them no longer than allowed."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from jgolf.errors import JgolfError

LAUNCHER_ID = "jgolf-bench"
PROBE = (
    "import json, jax; found = jax.devices(); print(json.dumps([found[0].platform, found[0].device_kind, len(found)]))"
)
POLL_S = 0.05
OTHERS_END_WITHIN_S = 60.0
"""Once a process has failed."""
_SIMULATED = re.compile(r"--xla_force_host_platform_device_count=\S*")


@dataclass(frozen=True)
class Machine:
    """This host's devices, as JAX sees them.

    Attributes:
      platform: "gpu", "cpu", …
      kind: what JAX calls them.
      devices: how many are used.
      cache: folder of compiled programs, for all processes.
    """

    platform: str
    kind: str
    devices: int
    cache: Path

    @classmethod
    def found(cls, cache: Path, limit_s: float) -> Machine:
        """Asks a process of its own: one that has used the devices keeps some of their memory.

        Raises:
          JgolfError: JAX finds none.
        """
        with Processes([[sys.executable, "-c", PROBE]], [dict(os.environ)]) as probe:
            try:
                probe.wait(limit_s)
            except JgolfError as error:
                raise JgolfError(f"JAX cannot tell what devices there are: {error}; see `jgolf doctor`") from None
            platform, kind, devices = json.loads(probe.output(0).splitlines()[-1])
        return cls(platform, kind, devices, cache)

    @property
    def title(self) -> str:
        """For a table."""
        return f"{self.devices} × {self.kind}, JAX {jax.__version__}"

    def environment(self, devices: int) -> dict[str, str]:
        """The variables of a process that is to see so many devices, the first ones."""
        variables = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.cache)}
        if self.platform == "cpu":
            flags = _SIMULATED.sub("", os.environ.get("XLA_FLAGS", ""))
            return variables | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip()}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(index) for index in range(self.devices)]
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(names[:devices])}

    def environments(self) -> list[dict[str, str]]:
        """The variables of the processes of a run, one a device, as torchrun sets them."""
        with socket.create_server(("localhost", 0)) as server:
            port = server.getsockname()[1]
        own = self.environment(1 if self.platform == "cpu" else self.devices)
        own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": LAUNCHER_ID}
        sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(self.devices))
        return [own | sizes | dict.fromkeys(("RANK", "LOCAL_RANK"), str(index)) for index in range(self.devices)]


class Processes:
    """Commands that run side by side. As a context manager it leaves none of them behind."""

    def __init__(self, commands: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]):
        self.started_at = time.time()
        self._files = [tempfile.TemporaryFile("w+", errors="replace") for _ in commands]  # noqa: SIM115 – closed on leaving
        self.all = [
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
            for command, environment, file in zip(commands, environments, self._files, strict=True)
        ]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.all:
            process.kill()  # what has ended is left alone
        for process, file in zip(self.all, self._files, strict=True):
            process.wait()
            file.close()

    def output(self, index: int) -> str:
        """What a process has printed so far."""
        self._files[index].seek(0)
        return self._files[index].read()

    def wait(self, limit_s: float) -> None:
        """Waits for all to end well.

        Raises:
          JgolfError: one ended otherwise, or they take longer; says what the first one to fail said.
        """
        failed, until = None, time.monotonic() + limit_s
        while any(process.poll() is None for process in self.all) and time.monotonic() < until:
            if failed is None and (failed := self._failed()) is not None:
                until = min(until, time.monotonic() + OTHERS_END_WITHIN_S)
            time.sleep(POLL_S)
        failed = self._failed() if failed is None else failed
        if failed is not None:
            raise JgolfError(self.said_last(failed))
        if any(process.poll() is None for process in self.all):
            raise JgolfError(f"not done within {limit_s:.0f} s")

    def said_last(self, index: int) -> str:
        """How a process ended, and the reason that it gave."""
        lines = [line.strip() for line in self.output(index).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        reason = (errors or lines or ["it printed nothing"])[-1].removeprefix("error: ")
        which = f"process {index} of {len(self.all)}" if len(self.all) > 1 else "the process"
        return f"{which} ended with {self.all[index].poll()}: {reason}"

    def _failed(self) -> int | None:
        return next((index for index, process in enumerate(self.all) if process.poll()), None)
