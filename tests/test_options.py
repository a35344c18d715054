"""Options whose values are paths."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import tyro

from jgolf import options
from jgolf.cli import main
from jgolf.config import load, write_json
from jgolf.data.shards import write_shard


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@dataclasses.dataclass(frozen=True)
class Options:
    first: tyro.conf.Positional[options.PathText]
    folder: Path
    files: tuple[Path, ...] = ()
    texts: tuple[options.PathText, ...] = ()
    maybe: Path | None = None
    perhaps: options.PathText | None = None
    text: str = ""


def test_the_home_folder_is_found_in_paths_alone(home):
    several = ["--files", "~/c", "d", "--texts", "e", "~/f"]
    with options.PATHS:
        one_by_one = ["--maybe", "~", "--perhaps", "~/g/~", "--text", "~/h"]
        found = tyro.cli(Options, args=["~/a", "--folder=~/b", *several, *one_by_one])
        kept = tyro.cli(Options, args=["./a/", "--folder", ".", "--perhaps", "x~", "--texts", "", "../~/x"])
    assert found == Options(
        f"{home}/a", home / "b", (home / "c", Path("d")), ("e", f"{home}/f"), home, f"{home}/g/~", "~/h"
    )
    assert kept == Options("./a/", Path(), texts=("", "../~/x"), perhaps="x~")


def test_commands_find_the_home_folder(home, capsys):
    write_shard(home / "data" / "x_val_000000.bin", [1, 2])
    assert main(["data", "inspect", "~/data"]) == 0
    write_json(load("demo"), home / "mine.json")
    assert main(["doctor", "~/mine.json", "--data=~/data", "--run-dir", "~/run", "--init-from=~/x"]) == 1
    told = capsys.readouterr().out
    assert f"{home}/run: free" in told and f"{home}/x: cannot be read" in told
    write_json(load("demo"), home / "run" / "config.json")
    assert main(["train", "~/mine.json", "--data=~/data", "--run-dir", "~/run"]) == 2
    assert f"{home}/run: already holds a run" in capsys.readouterr().err
    runs = ["~/new", "~/new2", "--", "~/old", "~/old2"]
    for words in (["export", "~/new"], ["evaluate", "~/new"], ["compare", *runs]):
        assert main(words) == 2
        assert f"error: {home}/new: " in capsys.readouterr().err
    assert not (Path.cwd() / "~").exists()
