"""Collective operations in the text of a program: which, how often, how many bytes.

Of a conditional the first branch counts: a step runs one, and in whichever it is, devices exchange the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d+(?:e\d+m\d+\w*)?|pred)\[([\d,]*)\]")
_TENSOR = re.compile(r"tensor<((?:\d+x)*)([a-z]\w*)>")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(body|condition|calls|to_apply|true_computation|branch_computations)=\{?%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')


@dataclass(frozen=True)
class Collective:
    """One collective operation of a step, as each device takes part in it."""

    kind: str
    dtype: str
    num_bytes: int
    """Of its result, whole: what a ring all-reduce sends twice, and a ring all-gather once, but for the own share."""
    times: int
    """How often a step executes it."""


def compiled_collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program (`jax.stages.Compiled.as_text`), those in loops as often as they run.

    An operation with several operands counts once, with the bytes of all.
    """
    operations: list[tuple[str, Collective]] = []
    callers: dict[str, list[tuple[str, int]]] = {}
    computation = entry = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
            entry = computation if line.startswith("ENTRY") else entry
            continue
        trips = int(found[1]) if (found := _TRIP_COUNT.search(line)) else 1
        for role, name in _CALLED.findall(line):
            callers.setdefault(name, []).append((computation, trips if role == "body" else 1))
        if operation := _OPERATION.search(line):
            arrays = _ARRAY.findall(operation[1])
            # A start operation's result: its operands, then its results; in older XLA, of a reduction these alone.
            if operation[3] and (operation[2] != "all-reduce" or operation[1].startswith("((")):
                arrays = arrays[len(arrays) // 2 :]
            operations.append((computation, _collective(operation[2], arrays)))

    def times(name: str) -> int:
        return 1 if name == entry else sum(trips * times(caller) for caller, trips in callers.get(name, []))

    found = [Collective(one.kind, one.dtype, one.num_bytes, times(where)) for where, one in operations]
    return [one for one in found if one.times]


def intended_collectives(stablehlo: str) -> list[Collective]:
    """The same for a program before compilation (`jax.stages.Lowered.as_text`): the types as they were meant.

    Loops are not multiplied out.
    """
    found = []
    lines = list(_first_branches(stablehlo.splitlines()))
    for index, line in enumerate(lines):
        operation = re.search(r"stablehlo\.(\w+)\"?\(", line)
        kind = operation[1].replace("_", "-") if operation else ""
        if kind not in KINDS:
            continue
        while "->" not in lines[index]:  # an operation with a body has its type behind it
            index += 1
        results = _TENSOR.findall(lines[index].rpartition("-> ")[2])
        arrays = [(dtype, dims.replace("x", ",")) for dims, dtype in results]
        found.append(_collective(kind, arrays))
    return found


def _first_branches(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a program before compilation but for those of further branches."""
    branches_of = None  # indentation of the operation whose further branches these are
    for line in lines:
        text = line.lstrip()
        indentation = len(line) - len(text)
        if branches_of is None and text.startswith("}, {"):
            branches_of = indentation
        elif branches_of == indentation and text.startswith("})"):
            branches_of = None
        if branches_of is None:
            yield line


def _collective(kind: str, arrays: list[tuple[str, str]]) -> Collective:
    num_bytes = 0
    sizes: Counter[str] = Counter()
    for dtype, dims in arrays:
        size = _bits(dtype) // 8
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        sizes[dtype] += size
        num_bytes += size
    return Collective(kind, "+".join(sorted(sizes)), num_bytes, 1)


def _bits(dtype: str) -> int:
    return 8 if dtype in ("pred", "i1") else int(re.search(r"\d+", dtype)[0])
