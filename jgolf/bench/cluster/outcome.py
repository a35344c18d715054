"""What `jgolf bench cluster` found: its table, and the files that it is written to."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass, field
from pathlib import Path

import jax

from jgolf import config as configs
from jgolf import files
from jgolf.bench.cluster.findings import CHALLENGE_S, LOSS_BOUND, Findings
from jgolf.bench.cluster.processes import Machine
from jgolf.bench.report import Figure, number

JSON_FILE, MARKDOWN_FILE = "cluster.json", "cluster.md"
CAPTION = (
    f"Medians (10–90 %). Losses in bfloat16 are expected to differ by at most {LOSS_BOUND:g} nats. Steps within the "
    f"time cap, {CHALLENGE_S:g} s where the config has none, follow from the steps' times and the part of the time "
    "with the loop; those of the record are published. Programs are compiled anew before the first step, unless "
    "JAX_COMPILATION_CACHE_DIR names a folder that holds them."
)


@dataclass
class Outcome:
    """All that the command found; see `write`."""

    machine: Machine
    command: str
    findings: list[Findings]
    tokens: list[str]
    notes: list[str] = field(default_factory=list)
    """What was said, what was not measured, and why."""
    failed: bool = False
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    @property
    def title(self) -> str:
        """Devices, date, and what each config was run on."""
        subjects = [
            f"{one.config.name} on {tokens}, {one.config.train.batch_tokens:,} a step, {one.config.model.compute_dtype}"
            for one, tokens in zip(self.findings, self.tokens, strict=True)
        ]
        return "; ".join([f"{self.machine.title}, {self.date}", *subjects])

    def rows(self) -> list[list[str]]:
        """A line for every figure: its name, and a cell for every config."""
        columns = [{figure.name: figure for figure in one.figures()} for one in self.findings]
        longest = max(columns, key=len)
        names = [*longest, *(name for column in columns for name in column if name not in longest)]
        return [[name, *(_cell(column.get(name)) for column in columns)] for name in dict.fromkeys(names)]

    def markdown(self) -> str:
        """The table below what measures it, and the notes."""
        header = ["", *(one.config.name for one in self.findings)]
        lines = [header, ["---", *["---:"] * len(self.findings)], *self.rows()]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        notes = "".join(f"\n- {note}" for note in self.notes)
        return f"{self.title}:\n\n```sh\n{self.command}\n```\n\n{table}\n\n{CAPTION}\n{notes and notes + chr(10)}"

    def json(self) -> str:
        """The same as one object, with every loss."""
        found = [
            {
                "config": configs.to_dict(one.config),
                "tokens": tokens,
                "figures": [dataclasses.asdict(figure) for figure in one.figures()],
                "losses": {name: getattr(one, name).losses for name in ("together", "apart", "whole")},
            }
            for one, tokens in zip(self.findings, self.tokens, strict=True)
        ]
        content = {
            "devices": self.machine.devices,
            "device": self.machine.kind,
            "jax_version": jax.__version__,
            "date": self.date,
            "command": self.command,
            "findings": found,
            "notes": self.notes,
        }
        return files.json_text(content, indent=1)

    def write(self, folder: Path) -> None:
        """Writes both forms; what was there is replaced."""
        files.write_text(folder / JSON_FILE, self.json() + "\n")
        files.write_text(folder / MARKDOWN_FILE, self.markdown())


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    spread = "" if figure.low is None else f" ({number(figure.low)}–{number(figure.high)})"
    return f"{number(figure.value)}{spread} {figure.unit}".rstrip()
