"""The files for cloud GPUs, as far as they go without a cloud: what they run, on a CPU and on a small recipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from jgolf import config as configs

ROOT = Path(__file__).parents[2]
CLOUD = ROOT / "examples" / "cloud"
SMALL = "--steps 3 --train.validate-every 0 --model.vocab-size 320"

pytestmark = pytest.mark.slow


def test_what_the_container_copies_is_all_that_an_installation_needs(tmp_path):
    pytest.importorskip("hatchling")
    lines = [line.split() for line in (CLOUD / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    assert [target for *_, target in lines] == ["/src/", "/src/jgolf", "/src/configs"]
    for _, *sources, target in lines:
        for source in sources:
            if target.endswith("/"):
                (tmp_path / "src").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "src")
            else:
                shutil.copytree(ROOT / source, tmp_path / target.lstrip("/"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, str(tmp_path / "src")], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("jgolf-*.whl"))) as wheel:
        assert {f"jgolf/configs/{name}.py" for name in configs.config_names()} < set(wheel.namelist())


def test_the_task_trains_each_seed_and_makes_a_submission(tmp_path, nano_data):
    task = yaml.safe_load((CLOUD / "sky.yaml").read_text())
    assert task["resources"]["accelerators"] == "H100:8" and task["resources"]["autostop"]["down"]
    assert set(task["envs"]) == {"AUTHOR", "NAME", "CONFIG", "TEXT", "SEEDS", "TRAIN", "EXPORT"}
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "jgolf"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jgolf "$@"\n')
    program.chmod(0o755)
    options = {"CONFIG": "demo", "SEEDS": "7 8", "TRAIN": f"--data {nano_data} {SMALL}", "EXPORT": ""}
    environment = {**os.environ, **options, "AUTHOR": "A. B.", "NAME": "a name"}
    environment |= {"HOME": str(tmp_path / "nobody"), "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "submission").iterdir()}
    assert {"train_gpt.py", "submission.json", "model.jgolf", "README.md"} < names
    assert yaml.safe_load((tmp_path / "submission" / "submission.json").read_text())["author"] == "A. B."
    seeds = [configs.read_json(tmp_path / "runs" / f"seed-{seed}" / "config.json").train.seed for seed in (7, 8)]
    assert seeds == [7, 8]
