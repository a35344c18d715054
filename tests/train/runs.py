"""Starting `train.py` as a user does, and reading what a run leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jgolf import config as configs
from jgolf.cli import main
from jgolf.config import Config, DataConfig, EvaluateConfig
from tests.conftest import QUICK_COMPILATION, RECIPE, SHALLOW

LAUNCHERS = ("SLURM_", "OMPI_", "PMI_", "MPI_", "WORLD_SIZE", "RANK", "LOCAL_", "MASTER_", "TORCHELASTIC_")
"""How the variables begin that a launcher around the tests may have set."""
ROOT = Path(__file__).parents[2]


def nano_config(data_dir: Path, **train: float) -> Config:
    """Parameters of every kind, in one layer; late QAT and SWA begin before the end."""
    muon = dataclasses.replace(RECIPE.optim.muon, newton_schulz_dtype="float32", newton_schulz_steps=2)
    settings = {
        "steps": 20,
        "time_cap_s": 0.0,
        "warmdown_steps": 10,
        "batch_tokens": 512,
        "seq_len": 32,
        "num_ranks": 8,
        "validate_every": 10,
        "log_every": 1,
    }
    return dataclasses.replace(
        RECIPE,
        name="nano",
        model=SHALLOW,
        optim=dataclasses.replace(RECIPE.optim, muon=muon),
        train=dataclasses.replace(RECIPE.train, **(settings | train)),
        average=dataclasses.replace(RECIPE.average, swa_start=0.5, swa_every=2),
        data=DataConfig(dir=str(data_dir)),
        evaluate=EvaluateConfig(batch_tokens=512),
    )


@dataclass(frozen=True)
class Runs:
    """Starts processes of a run."""

    data_dir: Path

    def train(
        self, run_dir: Path, *options: str, devices: int = 1, streams: dict | None = None, **train: float
    ) -> subprocess.Popen:
        """`train.py` on simulated devices; see `start` for `streams`."""
        words = "train.py", str(self._config(run_dir, **train)), "--run-dir", str(run_dir), *options
        return self.start(*words, devices=devices, streams=streams)

    def train_here(self, run_dir: Path, *options: str, exit_code: int = 0, **train: float) -> str:
        """`train.py` in this process, which has imported JAX already; its output, once it has ended as expected."""
        config = self._config(run_dir, **train)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            found = main(["train", str(config), "--run-dir", str(run_dir), *options])
        assert found == exit_code, output.getvalue()
        return output.getvalue()

    def _config(self, run_dir: Path, **train: float) -> Path:
        """The file that the run is begun with."""
        path = run_dir.with_suffix(".json")
        if not path.exists():
            configs.write_json(nano_config(self.data_dir, **train), path)
        return path

    def start(
        self,
        script: str | Path,
        *arguments: str,
        devices: int = 1,
        cwd: Path = ROOT,
        streams: dict | None = None,
    ) -> subprocess.Popen:
        """A Python script of this project, or "-m".

        Standard output and error are one pipe of text lines, unless `streams`, arguments of Popen, has others.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILATION}",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",  # processes of a run compile the same
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=cwd,
            env=environment,
            text=True,
            **(streams or {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}),
        )


def several(count: int, process_id: int, port: int) -> list[str]:
    """The options of one of several processes."""
    return ["--coordinator", f"localhost:{port}", "--num-processes", str(count), "--process-id", str(process_id)]


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def finish(process: subprocess.Popen, exit_code: int = 0, within_s: float = 300) -> str:
    """The rest of a process's output, once it has ended as expected."""
    try:
        output, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == exit_code, output
    return output


def wait_for(process: subprocess.Popen, text: str) -> str:
    """Reads on until a line holds `text`; returns the lines up to there."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"ended without {text!r}:\n" + "".join(lines))


def metrics(run_dir: Path, name: str) -> dict[int, float]:
    """Step → value in metrics.jsonl; each step once."""
    objects = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    found = [(one["step"], one[name]) for one in objects if name in one]
    assert len(dict(found)) == len(found), f"a step is there twice: {found}"
    return dict(found)
