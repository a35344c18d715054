"""Which rows of a batch of documents are run together: the shapes of programs, and calls of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from jgolf.config import AdaptedConfig
from jgolf.evaluate.ttt.order import Rows

WIDTH_MULTIPLE = 128
"""What padded widths are a multiple of, unless they are smaller."""
SMALLER = (4, 16)
"""Parts of the rows of the longest windows that have programs of their own, for documents that outlive the others."""


class Shape(NamedTuple):
    """A program's rows on each device, and their width."""

    rows: int
    width: int


class Call(NamedTuple):
    """Rows that are run at once, [devices · rows] each; device d has the d-th part."""

    shape: Shape
    trains: bool
    """Whether any of them does."""
    rows: Rows
    is_row: np.ndarray
    """Whether there is one; the rest fills up."""


def padded_widths(settings: AdaptedConfig, context: int) -> tuple[int, ...]:
    """The widths that windows are padded to, rising; the last one holds the context."""
    eighths = [-(-context * part // 8) for part in (1, 2, 4, 6)]
    widths = [min(width, context) for width in settings.widths] or eighths
    return tuple(sorted({_rounded_up(width) for width in (*widths, context)}))


def _rounded_up(width: int) -> int:
    return width if width < WIDTH_MULTIPLE else -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE


def program_shapes(widths: tuple[int, ...], rows_of: Callable[[int], int]) -> list[Shape]:
    """The shapes that there are programs for: as many rows as are allowed, and fewer ones of the widest."""
    shapes = {Shape(rows_of(width), width) for width in widths}
    most = rows_of(widths[-1])
    return sorted(shapes | {Shape(max(1, most // part), widths[-1]) for part in SMALLER})


def shapes_worth_having(shapes: list[Shape], cost: Callable[[list[Shape]], int], least: int) -> list[Shape]:
    """The shapes without those that spare no more than `least` of the cost, each beside the others that stay.

    Args:
      shapes: all of them.
      cost: of doing everything with some of them, among which is one of the widest: only these hold every row.
      least: see above.
    """
    widest, found = max(shape.width for shape in shapes), cost(shapes)
    while True:
        without_one = ([shape for shape in shapes if shape != one] for one in shapes)
        fewer = [some for some in without_one if any(shape.width == widest for shape in some)]
        costs = [cost(some) for some in fewer]
        if not costs or min(costs) - found > least:
            return shapes
        found = min(costs)
        shapes = fewer[costs.index(found)]


def calls_of(rows: Rows, shapes: list[Shape], num_devices: int) -> Iterator[Call]:
    """A chunk's rows as calls of programs; rows that adapt come first, so that most calls without them are spared."""
    return (_call(shape, by_device) for shape, by_device in _shares(rows, shapes, num_devices))


def kinds_of_calls(rows: Rows, shapes: list[Shape], num_devices: int) -> Iterator[tuple[Shape, bool]]:
    """Of the same calls the shape, and whether any row adapts."""
    for shape, by_device in _shares(rows, shapes, num_devices):
        yield shape, any(part.trains.any() for part in by_device)


def _shares(rows: Rows, shapes: list[Shape], num_devices: int) -> Iterator[tuple[Shape, list[Rows]]]:
    """The shape of each call, and every device's rows in it."""
    widths = np.array(sorted({shape.width for shape in shapes}))
    needed = widths[np.searchsorted(widths, rows.length)]
    for width in np.unique(needed):
        own = rows[needed == width]
        own = own[np.argsort(~own.trains, kind="stable")]
        by_device = [own[own.place % num_devices == device] for device in range(num_devices)]
        sizes = tuple(shape.rows for shape in shapes if shape.width == width)
        first = 0
        for size in _sizes(max(len(part.place) for part in by_device), sizes):
            yield Shape(size, int(width)), [part[first : first + size] for part in by_device]
            first += size


def _call(shape: Shape, by_device: list[Rows]) -> Call:
    """The rows of all devices in one call, filled up with rows that do nothing."""
    filled = [[np.pad(field, (0, shape.rows - len(field))) for field in part] for part in by_device]
    rows = Rows(*(np.concatenate(fields) for fields in zip(*filled, strict=True)))
    is_row = np.concatenate([np.arange(shape.rows) < len(part.place) for part in by_device])
    return Call(shape, bool(rows.trains.any()), rows, is_row)


@cache
def _sizes(count: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The cheapest sizes that together hold `count` rows: a call costs its rows, and an eighth of the largest size."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for number in range(1, count + 1):
        ways = (
            (cost + size + max(sizes) / 8, (*taken, size))
            for size in sizes
            for cost, taken in [best[max(0, number - size)]]
        )
        best.append(min(ways))
    return tuple(sorted(best[count][1], reverse=True))
