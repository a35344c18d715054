"""Progress as a person sees it: a bar on a terminal, lines elsewhere."""

import itertools
import re
from pathlib import Path

import pytest
from rich.table import Table

from jgolf import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by four seconds whenever it is read."""
    times = itertools.count(0, 4)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(times)))


def test_lines_now_and_then_without_a_terminal(clock, capsys):
    assert list(progress.progress_bar("scoring")(iter("abcdefg"), 7)) == list("abcdefg")
    # Steps end at 4, 8, 12, … s; a line is due ten seconds after the one before.
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 3 of 7 (43 %), 0:16 left",
        "scoring: 6 of 7 (86 %), 0:04 left",
    ]


def test_bytes_without_a_terminal(clock, capsys):
    with progress.byte_progress("packing", 4000) as advance:
        for _ in range(4):
            advance(1000)
    assert capsys.readouterr().err == "packing: 3,000 of 4,000 bytes (75 %), 0:04 left\n"


def test_a_count_and_how_it_goes_without_a_terminal(clock, capsys):
    with progress.counting("scoring", 4000, "tokens") as tell:
        for done in (1000, 2000, 3000, 4000):
            tell(done, f"{done / 1000:.1f} bits per byte")
    assert capsys.readouterr().err == "scoring: 3,000 of 4,000 tokens (75 %), 0:04 left, 3.0 bits per byte\n"


def test_nothing_where_work_is_short(capsys):
    assert list(progress.progress_bar("scoring")(range(3), 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_activity_says_what_it_is_doing(capsys):
    with progress.activity("choosing [steps]") as tell:
        tell("trial 2")
    assert capsys.readouterr().err == "choosing [steps]\nchoosing [steps]: trial 2\n"


@pytest.mark.parametrize("name", ["[/x]", "[red]a[/red]", ":smile:", "a[b]"])
def test_names_are_no_markup(name, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(progress.progress_bar(name)(range(2), 2)) == [0, 1]
    assert name in capsys.readouterr().err
    with progress.byte_progress(name, 10) as advance:
        advance(5)
    assert name in capsys.readouterr().err
    for work in (progress.activity(name), progress.counting(name, 2, name)):
        with work as tell:
            tell(*((1, name) if work.gen.__name__ == "counting" else (name,)))
        assert name in capsys.readouterr().err
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    for console in (progress.plain_console(), progress.table_console()):
        console.print(table)
        console.print(name)
        assert re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).count(name) == 4


def test_every_console_is_a_plain_one():
    """A console of rich's own would take names for markup."""
    package = Path(progress.__file__).parent
    made = [path.name for path in package.rglob("*.py") for _ in re.findall(r"\bConsole\(", path.read_text())]
    assert made == ["progress.py"]
    assert not [path for path in package.rglob("*.py") if "TextColumn(" in path.read_text() and path.name not in made]


def test_a_terminal_shows_a_bar_and_leaves_nothing(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    assert list(progress.progress_bar("scoring")(range(3), 3)) == [0, 1, 2]
    assert "scoring" in capsys.readouterr().err
