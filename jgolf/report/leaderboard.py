"""Scores of the challenge's pull requests on FineWeb's validation split, as far as they are known here.

The data file's columns: number of the pull request, bits per byte, over how many seeds, whether the challenge's list
has it, date, the author's title; empty where that is not known. A new record is a new line.
"""

from __future__ import annotations

import csv
from importlib import resources
from typing import NamedTuple


class Record(NamedTuple):
    """A pull request of the challenge; "" where something is not known."""

    pull_request: int
    val_bpb: float
    seeds: str
    listed: str
    date: str
    title: str


def leaderboard() -> list[Record]:
    """The pull requests, the best first."""
    text = resources.files("jgolf.report").joinpath("leaderboard.csv").read_text(encoding="utf-8")
    return [
        Record(**{**row, "pull_request": int(row["pull_request"]), "val_bpb": float(row["val_bpb"])})
        for row in csv.DictReader(text.splitlines())
    ]
