"""The verbs of `jgolf bench`."""

from __future__ import annotations

VERBS: dict[str, str] = {
    "communication": "jgolf.bench.communication:communication",
}
"""Verb → "module:function"."""

HELP: dict[str, str] = {
    "communication": "count what the devices exchange in a training step",
}
"""Verb → what it does, in a line."""
