"""Names and layouts of PyTorch checkpoints, of every family of scripts.

A name is that of one parameter, whatever the family: no two families call different parameters the same. Some keep
several parameters in one tensor, a bank; their own names are then those that messages and artifacts use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import TypeVar

import numpy as np

from jgolf import rules
from jgolf.errors import ArtifactError
from jgolf.torch_bridge.families import pr592, pr1855
from jgolf.torch_bridge.families.common import Bank, Family, template_of

Value = TypeVar("Value")
Shape = tuple[int, ...]

FAMILIES = (pr592.FAMILY, pr1855.FAMILY)
NAMES = {path: name for family in FAMILIES for path, name in family.names.items()}
PATTERNS = {re.compile(re.escape(name).replace(r"\{\}", r"(\d+)")): path for path, name in NAMES.items()}
BANKS = {bank.name: bank for family in FAMILIES for bank in family.banks}

MAX_LISTED = 10
"""Tensors that one message names; how many more there are is said."""
MAX_LINE = 200  # characters of what is said of one tensor: names are whatever a file says
WRAPPER_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.)+")  # DistributedDataParallel, torch.compile
UNSCORED = {
    r"mtp_heads\..+": "heads for further tokens take no part in the scored model",
    r"(?:.+\.)?rotary\.(?:inv_freq|cos_cached|sin_cached)": "rotary tables are computed",
}


def torch_name(path: str) -> str:
    """The name of a parameter in PyTorch.

    Raises:
      ArtifactError: no family of scripts has such a parameter.
    """
    name = NAMES.get(template_of(path))
    if name is None:
        raise ArtifactError(f"no PyTorch script that jgolf knows has a parameter {path!r}")
    return name.format(*re.findall(r"\d+", path))


def path_of_torch_name(name: str) -> str | None:
    """The inverse of `torch_name`; None for a name that no parameter has, such as a bank's."""
    for pattern, path in PATTERNS.items():
        if match := pattern.fullmatch(name):
            return path.format(*match.groups())
    return None


def paths_in(name: str, shape: Shape) -> dict[str, int | EllipsisType]:
    """The parameters that a tensor holds, path → index in it; none for a tensor that jgolf does not know."""
    if name in BANKS:
        paths = BANKS[name].matrices(shape[0]) if len(shape) == 3 else None
        return {path: index for index, path in enumerate(paths or ())}
    path = path_of_torch_name(name)
    return {} if path is None else {path: ...}


def group_of(name: str) -> rules.Group:
    """The optimizer group of a tensor that jgolf knows: the same for all that a bank holds."""
    return rules.rule_of(BANKS[name].parts[0].format(0) if name in BANKS else path_of_torch_name(name)).group


def family_of(names: Iterable[str]) -> Family:
    """The family of scripts whose tensors these are: the one that knows most of them, the older where both do."""
    paths = {name: path_of_torch_name(name) for name in names}

    def known(family: Family) -> int:
        parameters = [path for path in paths.values() if path is not None]
        return len(parameters) - len(family.lacks(parameters)) + sum(bank.name in paths for bank in family.banks)

    return max(FAMILIES, key=known)


def family_with(paths: Sequence[str]) -> Family:
    """The family of scripts that has all of these parameters, the older where both do.

    Raises:
      ArtifactError: none has.
    """
    for family in FAMILIES:
        if not family.lacks(paths):
            return family
    lacking = "; ".join(f"those of {family.recipe} have no {family.lacks(paths)[0]}" for family in FAMILIES)
    raise ArtifactError(
        f"no family of PyTorch scripts has all parameters of this model: {lacking}. Write a .jgolf artifact, or train "
        "a model with the parts of one family"
    )


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


def by_torch_name(shapes: Mapping[str, Shape], banks: bool = False) -> dict[str, Shape]:
    """Path → shape as PyTorch name → shape there, of a model whose matrices may be in banks."""
    found = {}
    for name, paths in _tensors(shapes, BANKS.values() if banks else ()).items():
        shape = to_torch_shape(paths[0], shapes[paths[0]])
        found[name] = (len(paths), *shape) if name in BANKS else shape
    return found


def _tensors(paths: Iterable[str], banks: Iterable[Bank]) -> dict[str, list[str]]:
    """The tensors that hold a model's parameters, and which each holds, in its order."""
    tensors: dict[str, list[str]] = {}
    bank_of = {part: bank for bank in banks for part in bank.parts}
    for path in paths:
        bank = bank_of.get(template_of(path))
        tensors.setdefault(bank.name if bank else torch_name(path), []).append(path)
    return {name: BANKS[name].matrices(len(held)) if name in BANKS else held for name, held in tensors.items()}


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
    """Those names that no parameter of jgolf's network has, nor a bank of them."""
    return [name for name in names if path_of_torch_name(name) is None and name not in BANKS]


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


def by_path(tensors: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """Path → shape of the parameters in tensors of these shapes, and the shapes of the tensors that hold none."""
    found: dict[str, Shape] = {}
    unknown: dict[str, Shape] = {}
    for name, shape in tensors.items():
        paths = paths_in(name, shape)
        for path in paths:
            found[path] = to_torch_shape(path, shape[1:] if name in BANKS else shape)
        if not paths:
            unknown[name] = shape
    return found, unknown


def to_params(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Shape]]:
    """The parameters, path → float32, in a state dict, and the shapes of its tensors that hold none.

    Tensors without values, such as the skip weights of a network of one block, are no parameters here.
    """
    params: dict[str, np.ndarray] = {}
    unknown: dict[str, Shape] = {}
    for name, array in state.items():
        paths = paths_in(name, array.shape)
        if not paths:
            unknown[name] = array.shape
        elif array.size:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, for the reader to refuse
                array = np.asarray(array, np.float32)
            params |= {path: to_layout(path, array[index]) for path, index in paths.items()}
    return params, unknown


def from_params(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of a model's parameters: PyTorch name → float32 in the layout of its family of scripts.

    Raises:
      ArtifactError: no family has all of the parameters.
    """
    state = {}
    for name, paths in _tensors(params, family_with([*params]).banks).items():
        parts = [to_layout(path, np.asarray(params[path], np.float32)) for path in paths]
        state[name] = np.stack(parts) if name in BANKS else parts[0]
    return state


def to_layout(path: str, array: np.ndarray) -> np.ndarray:
    """Changes the array of the parameter `path` between the two layouts, either way."""
    return np.ascontiguousarray(array.T) if rules.rule_of(path).transposed else array
