"""What lies where in a run's folder, and in a sweep's."""

from pathlib import Path

CONFIG_FILE = "config.json"
"""Every setting."""
LOG_FILE = "train.log"
"""The challenge's log lines."""
REQUIREMENTS_FILE = "requirements.txt"
"""The packages that it was trained with, and their versions."""
METRICS_FILE = "metrics.jsonl"
"""An object a step, and one a validation."""
ARTIFACT_FILE = Path("artifact") / "model.jgolf"
"""The exported model."""
RESULT_FILE = Path("artifact") / "result.json"
"""Its scores and sizes."""
RESULTS_FILE = "results.json"
"""What a sweep found; its runs' folders are named in it."""
