"""The verbs of `jgolf bench`."""

from __future__ import annotations

VERBS: dict[str, str] = {
    "all": "jgolf.bench.goals:bench_all",
    "step": "jgolf.bench.step:step",
    "evaluate": "jgolf.bench.evaluate:evaluate",
    "attention": "jgolf.bench.attention:attention",
    "optimizer": "jgolf.bench.optimizer:optimizer",
    "input": "jgolf.bench.input:bench_input",
    "export": "jgolf.bench.export:export",
    "communication": "jgolf.bench.communication:communication",
    "cluster": "jgolf.bench.cluster.command:cluster",
}
"""Verb → "module:function"."""

HELP: dict[str, str] = {
    "all": "measure the table of goals: start, step, input and evaluation",
    "step": "time the training step: whole, in parts, with late QAT; memory, utilization, kernels",
    "evaluate": "time scoring: sliding windows and whole rows",
    "attention": "time every attention kernel that runs here",
    "optimizer": "time an optimizer step and its parts",
    "input": "time the step on batches from disk beside a resident one",
    "export": "time quantizing, packing and unpacking a model of full size",
    "communication": "count what the devices exchange in a training step",
    "cluster": "measure several devices: speed, scaling, losses, what they exchange, a process that is lost",
}
"""Verb → what it does, in a line."""
