"""Commands whose output no one reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jgolf.output import outlives_its_readers


@pytest.fixture
def unread() -> int:
    """The end to write to of a pipe that no one reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def _jgolf(*words: object, shell: str = "", **streams: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jgolf", *map(str, words)]
    if shell:
        command = ["bash", "-c", f'"$0" "$@" {shell}', *command]
    return subprocess.run(command, text=True, timeout=120, **streams)


def test_the_work_goes_on_unread(unread: int, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from jgolf.output import outlives_its_readers\n"
        "with outlives_its_readers():\n"
        "    for line in range(20_000):\n"
        "        print('a line that no one reads', line)\n"
        "        print('another', file=sys.stderr, flush=True)\n"
        "    open(sys.argv[1], 'w').write('done')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "result")]
    assert subprocess.run(command, stdout=unread, stderr=unread, timeout=120).returncode == 0
    assert (tmp_path / "result").read_text() == "done"


def test_the_streams_are_given_back() -> None:
    before = sys.stdout, sys.stderr
    with outlives_its_readers():
        assert sys.stdout is not before[0]
    assert (sys.stdout, sys.stderr) == before


def test_the_exit_code_is_that_of_the_work(unread: int) -> None:
    assert _jgolf("--help", stdout=unread, stderr=subprocess.PIPE).returncode == 0
    refused = _jgolf("data", "inspect", "/nowhere", stdout=unread, stderr=unread)
    assert refused.returncode == 2


@pytest.mark.parametrize(("shell", "exit_code"), [(">&-", 0), ("> /dev/full", 2)])
def test_no_output_at_all(shell: str, exit_code: int) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    done = _jgolf("--help", shell=shell, stderr=subprocess.PIPE)
    assert done.returncode == exit_code
    assert done.stderr == ("error: No space left on device\n" if exit_code else "")
