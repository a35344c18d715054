"""Starting `train.py` as a user does, and reading what a run leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from jgolf import config as configs
from jgolf.config import Config, DataConfig, EvaluateConfig
from tests.conftest import NANO, QUICK_COMPILATION, RECIPE

ROOT = Path(__file__).parents[2]


def nano_config(data_dir: Path, **train: float) -> Config:
    """Every part of the recipe, very small; late QAT and SWA begin before the end."""
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
        model=NANO,
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

    def train(self, run_dir: Path, *options: str, devices: int = 1, **train: float) -> subprocess.Popen:
        """`train.py` on simulated devices; standard output and error are one pipe of text lines."""
        config = run_dir.with_suffix(".json")
        if not config.exists():
            configs.write_json(nano_config(self.data_dir, **train), config)
        return self.start("train.py", str(config), "--run-dir", str(run_dir), *options, devices=devices)

    def start(self, script: str | Path, *arguments: str, devices: int = 1) -> subprocess.Popen:
        """A Python script of this project."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_"))}
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILATION}",
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def several(count: int, process_id: int, port: int) -> list[str]:
    """The options of one of several processes."""
    return ["--coordinator", f"localhost:{port}", "--num-processes", str(count), "--process-id", str(process_id)]


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def finish(process: subprocess.Popen, exit_code: int = 0) -> str:
    """The rest of a process's output, once it has ended as expected."""
    try:
        output, _ = process.communicate(timeout=300)
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
