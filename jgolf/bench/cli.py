"""The verbs of `jgolf bench`."""

from __future__ import annotations

VERBS: dict[str, str] = {
    "step": "jgolf.bench.step:step",
    "optimizer": "jgolf.bench.optimizer:optimizer",
    "communication": "jgolf.bench.communication:communication",
}
"""Verb → "module:function"."""

HELP: dict[str, str] = {
    "step": "time the training step: whole, in parts, with late QAT; memory, utilization, kernels",
    "optimizer": "time an optimizer step and its parts",
    "communication": "count what the devices exchange in a training step",
}
"""Verb → what it does, in a line."""
