"""What a run was started with: the command, the code, the hardware, the date."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

import jgolf
from jgolf import files
from jgolf.run_dir import STARTS_FILE


def keep_start(run_dir: Path, devices: Sequence[jax.Device], first_step: int) -> None:
    """Adds this start to the run's starts.jsonl.

    Args:
      run_dir: the run's folder.
      devices: what it trains on.
      first_step: steps that are behind the run; 0 begins the file anew.

    Raises:
      JgolfError: the folder cannot be written to.
    """
    start = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).encode(errors="replace").decode(),
        "version": jgolf.__version__,
        "commit": commit(Path(jgolf.__file__).parent),
        "hardware": f"{len(devices)} × {devices[0].device_kind}",
        "first_step": first_step,
    }
    files.add_line(run_dir / STARTS_FILE, start, anew=not first_step)


def commit(package: Path) -> str | None:
    """The commit that a package's folder is checked out at, with "+" where files of it were changed since.

    None where it is no part of a git checkout, or git is not installed.
    """
    try:
        _git(package, "ls-files", "--error-unmatch", "__init__.py")
        head = _git(package, "rev-parse", "--short=12", "HEAD").strip()
        return head + "+" * bool(_git(package, "status", "--porcelain", "--untracked-files=no", "--", "."))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
