"""Files that are replaced, whole or not at all, whenever the process is killed."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jgolf import files
from jgolf.data.shards import find_shards, open_shard, write_shard
from jgolf.errors import DataError, JgolfError

KILLED_AT_RENAME = """
import os, signal, sys
from pathlib import Path
from jgolf import files
folder, killed_at = Path(sys.argv[1]), int(sys.argv[2])
calls, rename = 0, os.replace
def replace(source, target):
    global calls
    calls += 1
    if calls == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
os.replace = replace
with files.all_or_nothing(folder, "set", gone=["old", "a"]) as new:
    for name in "abc":
        files.write_text(new / name, "new " + name)
"""
OLD = {"a": "old a", "b": "old b", "old": "old", "else": "not of the set"}
NEW = {"a": "new a", "b": "new b", "c": "new c", "else": "not of the set"}
RENAMES_BEFORE_THE_JOURNAL = 3  # of a, b and c to their names in the new folder; the fourth is the journal's


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("killed_at", range(1, 9))
def test_killed_at_any_rename_all_or_nothing_is_there(tmp_path: Path, killed_at: int) -> None:
    for name, text in OLD.items():
        files.write_text(tmp_path / name, text)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", KILLED_AT_RENAME, str(tmp_path), str(killed_at)]
    killed = subprocess.run(command, env=environment).returncode < 0
    assert killed == (killed_at <= 7)  # seven renames in all
    committed = killed_at > RENAMES_BEFORE_THE_JOURNAL + 1
    assert files.settle(tmp_path) == (killed and committed)
    assert contents(tmp_path) == (NEW if committed else OLD)
    assert not files.settle(tmp_path)
    with files.all_or_nothing(tmp_path, "set") as new:  # what the killed one left is no hindrance
        files.write_text(new / "d", "d")
    assert contents(tmp_path) == (NEW if committed else OLD) | {"d": "d"}
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "old")
    with pytest.raises(DataError), files.all_or_nothing(tmp_path, "set", gone=["a"]) as new:
        files.write_text(new / "a", "new")
        raise DataError("of the input")
    assert contents(tmp_path) == {"a": "old"} and len(list(tmp_path.iterdir())) == 1


def interrupted(folder: Path, journal: object) -> Path:
    """What a process leaves that is killed after the journal and before the renames."""
    staging = folder / ".replacing-train"
    files.write_text(staging / "complete.json", json.dumps(journal))
    return staging


def test_half_a_set_of_shards_is_not_believed(tmp_path: Path) -> None:
    old, kept = (tmp_path / f"x_train_{name}.bin" for name in ("old", "000001"))
    for path in (old, kept):
        write_shard(path, [1, 2])
    staging = interrupted(tmp_path, {"files": ["x_train_000000.bin"], "gone": [old.name]})
    write_shard(staging / "x_train_000000.bin", [3])
    with pytest.raises(DataError, match="interrupted.*run the command again"):
        open_shard(kept)  # named by itself: it may be one of the old ones
    assert find_shards(tmp_path, "train") == [tmp_path / "x_train_000000.bin", kept]
    assert open_shard(kept).tolist() == [1, 2]


JOURNALS_OF_OTHERS = [
    *({"files": [name], "gone": []} for name in ("../a", "..", "", "a\0", 1)),
    *({"files": ["new"], "gone": [name]} for name in ("/a", "..", "\0")),
    *({}, [[]], 3),
]


@pytest.mark.parametrize("journal", JOURNALS_OF_OTHERS)
def test_a_journal_that_is_not_ours_moves_and_removes_nothing(tmp_path: Path, journal: object) -> None:
    files.write_text(tmp_path / "a", "a")
    interrupted(tmp_path / "data", journal)
    with pytest.raises(JgolfError, match="complete.json: not a list of files"):
        files.settle(tmp_path / "data")
    assert contents(tmp_path) == {"a": "a"}


def test_the_first_error_is_told(tmp_path: Path) -> None:
    class Full:
        """A file on a disk that is full when it is closed."""

        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def close(self):
            self._file.close()
            raise OSError(28, "No space left on device")

    opened = open
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("builtins.open", lambda *arguments: Full(opened(*arguments)))
        with files.atomic_write(tmp_path / "a"):
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """A device, for one: who may do all could replace /dev/null by a file."""
    (tmp_path / "pipe").symlink_to(tmp_path / "there")
    os.mkfifo(tmp_path / "there")
    for name in ("pipe", "there"):
        with pytest.raises(JgolfError, match=f"{name}: not a file, so none can be put in its place"):
            files.write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).is_fifo()


HARMLESS = (
    "demo",
    "a=b",
    "1e-3",
    "-0.5",
    "+3",
    "-.5E+9",
    -0.5,
    3,
    True,
    "[-2, -1]",
    " =1",
    "",
    np.float32(-0.25),
    -1e9,
)
RUN = (
    "=1+1",
    "+1+1",
    "-2 -1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    "-",
    "--lr",
    "-1_0",
    "-inf",
    "+٣",
    Path("=x"),
)


def test_csv_that_no_spreadsheet_runs() -> None:
    """Text that it would run has an apostrophe before it; numbers, and text that spells one, are as they are."""
    text = files.csv_text(["=head", "head"], zip(RUN, HARMLESS, strict=True))
    heads, *rows = csv.reader(io.StringIO(text, newline=""))
    assert heads == ["'=head", "head"]
    assert rows == [[f"'{run}", str(harmless)] for run, harmless in zip(RUN, HARMLESS, strict=True)]
    assert files.csv_text(["a"], [[None], [float("-inf")], ["\udcff,"]]) == 'a\n\n-inf\n"?,"\n'


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_of_a_report_writes_the_same_csv() -> None:
    script = Path(files.__file__).with_name("report").joinpath("assets", "curves.js").read_text(encoding="utf-8")
    function = script[script.index("function csvCell") :].partition("\n}\n")[0] + "\n}\n"
    values = [value for value in (*map(str, RUN), *HARMLESS) if isinstance(value, str | int)]
    values = [value for value in values if not isinstance(value, bool)]
    shown = f"process.stdout.write({json.dumps(values)}.map(csvCell).join('\\n') + '\\n')"
    done = subprocess.run(["node", "-e", function + shown], capture_output=True, check=True)
    assert done.stdout.decode() == files.csv_text(["x"], [[value] for value in values])[2:]
