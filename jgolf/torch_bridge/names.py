"""Names and layouts of a PyTorch checkpoint, by the rules in `jgolf.rules`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from jgolf import rules
from jgolf.errors import ArtifactError

Value = TypeVar("Value")
Shape = tuple[int, ...]

MAX_LISTED = 10
"""Tensors that one message names; how many more there are is said."""
MAX_LINE = 200  # characters of what is said of one tensor: names are whatever a file says
WRAPPER_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile
UNSCORED = {
    r"mtp_heads\..+": "heads for further tokens take no part in the scored model",
    r"(?:.+\.)?rotary\.(?:inv_freq|cos_cached|sin_cached)": "rotary tables are computed",
}


def canonical(state: Mapping[str, Value]) -> tuple[dict[str, Value], list[str]]:
    """`state` by the plain names of the scored model, and a notice for each tensor left out.

    Prefixes that wrappers put before every name go; heads for multi-token prediction and stored
    rotary tables, which the scored model does not use, are left out.
    """
    kept: dict[str, Value] = {}
    notices = []
    for name, value in state.items():
        name = WRAPPER_PREFIX.sub("", name)
        reason = next((reason for pattern, reason in UNSCORED.items() if re.fullmatch(pattern, name)), None)
        if reason:
            notices.append(f"{name} is left out: {reason}")
        else:
            kept[name] = value
    return kept, notices


def to_torch_shape(path: str, shape: Shape) -> Shape:
    """Shape in a PyTorch checkpoint of the parameter called `path`."""
    return shape[::-1] if rules.rule_of(path).transposed else shape


def by_torch_name(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Path → shape as PyTorch name → shape there."""
    return {rules.torch_name(path): to_torch_shape(path, shape) for path, shape in shapes.items()}


def check(found: Mapping[str, Shape], wanted: Mapping[str, Shape], source: str, advice: str = "") -> None:
    """Compares the shapes of tensors, by PyTorch name, with those that a model wants.

    Args:
      found, wanted: name → shape.
      source: where the tensors are, for the message.
      advice: what to do where all of them have names that jgolf knows.

    Raises:
      ArtifactError: names missing, extra and misshapen tensors with the shapes found and expected.
    """
    problems = [f"{name}: missing, expected {list(shape)}" for name, shape in wanted.items() if name not in found]
    for name, shape in found.items():
        if name not in wanted:
            problems.append(f"{name}: unexpected, found {list(shape)}; the model has no parameter of that name")
        elif tuple(shape) != tuple(wanted[name]):
            problems.append(f"{name}: found {list(shape)}, expected {list(wanted[name])}")
    if problems:
        foreign = foreign_names(found)
        ending = another_architecture(foreign) if foreign else advice
        text = f"{source}: tensors that do not fit the model ({len(problems)}):\n{listed(problems)}"
        raise ArtifactError(f"{text}\n{ending}" if ending else text)


def foreign_names(names: Iterable[str]) -> list[str]:
    """Those names that no parameter of jgolf's network has."""
    return [name for name in names if rules.path_of_torch_name(name) is None]


def another_architecture(foreign: Sequence[str]) -> str:
    """What to say of a file that holds tensors of these names."""
    return (
        f"{foreign[0]} and {len(foreign) - 1} more names" if len(foreign) > 1 else foreign[0]
    ) + ": no setting gives jgolf's network such parameters; this is a model of another architecture"


def listed(problems: Sequence[str], limit: int = MAX_LISTED) -> str:
    """The first of `problems`, a line each, and how many more there are."""
    lines = [f"  {problem}" if len(problem) <= MAX_LINE else f"  {problem[:MAX_LINE]}…" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  … and {len(problems) - limit} more")
    return "\n".join(lines)


def to_params(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Shape]]:
    """The parameters, path → float32, in a state dict, and the shapes of its tensors of unknown name.

    Tensors without values, such as the skip weights of a network of one block, are no parameters here.
    """
    params: dict[str, np.ndarray] = {}
    unknown: dict[str, Shape] = {}
    for name, array in state.items():
        path = rules.path_of_torch_name(name)
        if path is None:
            unknown[name] = array.shape
        elif array.size:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, for the reader to refuse
                params[path] = to_layout(path, np.asarray(array, np.float32))
    return params, unknown


def from_params(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of a model's parameters: PyTorch name → float32 in PyTorch's layout."""
    return {rules.torch_name(path): to_layout(path, np.asarray(array, np.float32)) for path, array in params.items()}


def to_layout(path: str, array: np.ndarray) -> np.ndarray:
    """Changes the array of the parameter `path` between the two layouts, either way."""
    return np.ascontiguousarray(array.T) if rules.rule_of(path).transposed else array
