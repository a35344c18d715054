"""What lies where in a run's folder."""

from pathlib import Path

CONFIG_FILE = "config.json"
"""Every setting."""
LOG_FILE = "train.log"
"""The challenge's log lines."""
METRICS_FILE = "metrics.jsonl"
"""An object a step, and one a validation."""
ARTIFACT_FILE = Path("artifact") / "model.jgolf"
"""The exported model."""
RESULT_FILE = Path("artifact") / "result.json"
"""Its scores and sizes."""
