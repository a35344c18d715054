"""Progress as a person sees it: a bar on a terminal, lines elsewhere."""

import itertools

import pytest

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


def test_nothing_where_work_is_short(capsys):
    assert list(progress.progress_bar("scoring")(range(3), 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_activity_says_what_it_is_doing(capsys):
    with progress.activity("choosing [steps]") as tell:
        tell("trial 2")
    assert capsys.readouterr().err == "choosing [steps]\nchoosing [steps]: trial 2\n"


def test_a_terminal_shows_a_bar_and_leaves_nothing(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stderr for a terminal
    assert list(progress.progress_bar("scoring")(range(3), 3)) == [0, 1, 2]
    assert "scoring" in capsys.readouterr().err
