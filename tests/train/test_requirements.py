"""The versions that a run keeps of what it was made with."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

from jgolf.train import requirements

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def test_all_that_the_package_needs_is_pinned():
    """Of the extras, what an artifact or a step may need."""
    found = dict(line.split("==") for line in requirements.pinned().splitlines() if not line.startswith("#"))
    assert {name_of(needed) for needed in PROJECT["dependencies"]} <= found.keys()
    assert found["jax"] == metadata.version("jax") and found["jaxlib"] == metadata.version("jaxlib")
    extras = PROJECT["optional-dependencies"]
    assert {name_of(needed) for needed in (*extras["entropy"], *extras["hopper"])} <= {*requirements.PACKAGES}


def test_the_cuda_plugin_and_its_libraries_are_pinned_where_they_are(monkeypatch):
    installed = {"jax": "0.11.2", "jax-cuda13-plugin": "0.11.2", "jax-cuda13-pjrt": "0.11.2", "nvidia-cublas": "13.1"}
    needs = ["jax-cuda13-pjrt==0.11.2", 'nvidia-cublas>=13.0; extra == "with-cuda"', "nvidia-nccl-cu13>=2", "numpy"]
    monkeypatch.setattr(requirements, "_version", installed.get)
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    assert requirements.pinned().splitlines()[1:] == [
        "jax==0.11.2",
        "jax-cuda13-plugin==0.11.2",
        "jax-cuda13-pjrt==0.11.2",
        "nvidia-cublas==13.1",
    ]
