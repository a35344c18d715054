from __future__ import annotations

import io

from rich.console import Console

from jgolf.train import display
from jgolf.train.display import LiveDisplay, live_display


def shown(steps: int, time_cap_s: float, metrics: list[dict], width: int = 90) -> str:
    """The last line of the display after these metrics."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    live = LiveDisplay(console, steps, time_cap_s, tokens_per_step=1000, first_step=0)
    for values in metrics:
        live.write(values)
    console.file.truncate(0)
    live._progress.refresh()
    text = console.file.getvalue()
    live.close()
    return text


def training(last: int, step_s: float) -> list[dict]:
    return [{"step": n, "train_loss": 7 - n / 100, "train_time_s": n * step_s} for n in range(1, last + 1)]


def test_a_run_by_steps(monkeypatch):
    monkeypatch.setattr(display, "memory_bytes", lambda: 23_900_000_000)
    validation = {"step": 100, "val_loss": 6.0, "val_bpb": 3.4567, "train_time_s": 50.0}
    text = shown(300, 0.0, [*training(100, 0.5), validation])
    for part in ("100/300", "loss 6.0000", "bpb 3.4567", "2,000 tok/s", "1:40 to end", "23.9 GB"):
        assert part in text


def test_the_cap_is_what_is_waited_for_where_it_comes_first():
    assert "0:10 to cap" in shown(300, 60.0, training(100, 0.5))
    assert "1:40 to end" in shown(300, 600.0, training(100, 0.5))


def test_the_speed_is_that_of_the_last_steps():
    slow, fast = training(50, 10.0), [{"step": 50 + n, "train_loss": 1, "train_time_s": 500 + n} for n in range(1, 51)]
    assert "1,000 tok/s" in shown(300, 0.0, [*slow, *fast])


def test_a_validation_shows_how_far_it_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=90, color_system=None)
    live = LiveDisplay(console, 300, 0.0, tokens_per_step=1000, first_step=0)
    live.write({"step": 100, "val_loss": 6.0, "val_bpb": 3.4567, "train_time_s": 50.0})
    seen = []
    for batch in live.validation("abcd", 4):
        console.file.truncate(0)
        live._progress.refresh()
        seen.append((batch, console.file.getvalue()))
    live._progress.refresh()
    assert [batch for batch, _ in seen] == list("abcd")
    assert all(f"val {percent} %" in text for (_, text), percent in zip(seen, (0, 25, 50, 75), strict=True))
    assert "bpb 3.4567" in console.file.getvalue()
    live.close()


def test_a_resumed_run_shows_its_last_score():
    console = Console(file=io.StringIO(), force_terminal=True, width=90, color_system=None)
    live = LiveDisplay(console, 300, 0.0, tokens_per_step=1000, first_step=100, last_bpb=3.4567)
    live._progress.refresh()
    assert "100/300" in console.file.getvalue() and "bpb 3.4567" in console.file.getvalue()
    live.close()


def test_it_fits_a_terminal_of_eighty_columns(monkeypatch):
    monkeypatch.setattr(display, "memory_bytes", lambda: 123_900_000_000)
    metrics = [{"step": 19_999, "train_loss": 2.0, "train_time_s": 599.0 + n} for n in (0, 1)]
    metrics[0]["step"] -= 1
    text = shown(20_000, 600.0, [{"step": 0, "val_bpb": 1.1476, "train_time_s": 0.0}, *metrics], width=80)
    assert "123.9 GB" in text and "to cap" in text


def test_elsewhere_there_is_none(capsys):
    assert live_display(10, 0.0, 1, 0) == []
    assert capsys.readouterr().out == ""
