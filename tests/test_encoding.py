"""Terminals and pipes whose encoding lacks characters."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jgolf.encoding import show_any_text

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"a-b... 1 x 2 +- 3 ? ? ? ?\n"),
        ("cp1252", b"a\x96b\x85 1 \xd7 2 \xb1 3 ? ? \xfc ?\n"),
        ("utf-8", "a–b… 1 × 2 ± 3 漢 😀 ü ?\n".encode()),
    ],
)
def test_what_cannot_be_shown_is_shown_as_something_like_it(encoding, shown, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, newline="\n") for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    show_any_text()
    for stream in streams:
        print("a–b… 1 × 2 ± 3 漢 😀 ü \udcff", file=stream, flush=True)  # the last is a byte of a file's name
        assert stream.buffer.getvalue() == shown


@pytest.mark.parametrize("words", [["--help"], ["report", "nothing–…漢"], ["train", "--naïve"]])
@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict"])
def test_commands_on_any_terminal(words, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "jgolf", *words], env=environment, capture_output=True, timeout=100)
    assert done.returncode == (0 if words == ["--help"] else 2)
    assert b"Traceback" not in done.stderr and done.stdout + done.stderr
