"""How a script's GPT is called and switched: found by its signatures and by what it does, as names differ."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TARGETS = re.compile(r"target|label|^y$|next")
BOUNDS = re.compile(r"cu_?seq|seq_?lens?$|^cu|bound|offset|starts")
LONGEST = re.compile(r"max|longest")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class Call:
    """A method of GPT, which takes token ids [B, T] first.

    Attributes:
      method: its name.
      has_targets: whether target ids come second.
      needs_targets: whether they must.
      bounds: its parameter for the boundaries of packed documents, int32 [boundaries]; None where it has none.
      longest: that for the length of the longest of them; None where it has none.
    """

    method: str
    has_targets: bool
    needs_targets: bool
    bounds: str | None
    longest: str | None

    def __call__(
        self, model: nn.Module, tokens: Tensor, targets: Tensor | None, bounds: Tensor | None, longest: int
    ) -> Any:
        """What it gives; without `bounds`, rows are whole."""
        options = {} if bounds is None else {self.bounds: bounds, self.longest: longest}
        options.pop(None, None)
        function = model if self.method == "forward" else getattr(model, self.method)
        return function(tokens, *([] if targets is None else [targets]), **options)


def call_of(model: nn.Module, method: str) -> Call | None:
    """How a method is called; None where it wants what nobody knows."""
    parameters = [*inspect.signature(getattr(model, method)).parameters.values()]
    if not parameters or parameters[0].kind not in POSITIONAL:
        return None
    rest = [one for one in parameters[1:] if one.kind in (*POSITIONAL, inspect.Parameter.KEYWORD_ONLY)]
    second = rest[0] if rest and rest[0].kind in POSITIONAL else None
    has_targets = second is not None and (
        TARGETS.search(second.name) is not None
        or (method == "forward" and _needed(second) and not _names(second, BOUNDS))
    )
    needs_targets = has_targets and _needed(second)
    rest = rest[has_targets:]
    bounds = next((one for one in rest if _names(one, BOUNDS) and not _names(one, LONGEST)), None)
    longest = next((one for one in rest if _names(one, LONGEST) and one is not bounds), None)
    for one, following in zip(rest, rest[1:], strict=False):  # by their defaults, where the names say nothing
        if bounds is None and one.default is None and type(following.default) is int:
            bounds, longest = one, following
    if any(_needed(one) for one in rest if one not in (bounds, longest)):
        return None
    return Call(method, has_targets, needs_targets, *(None if one is None else one.name for one in (bounds, longest)))


def logits_methods(model: nn.Module) -> list[str]:
    """Methods that may give logits, the likeliest first, `forward` last."""
    own = [name for name in dir(type(model)) if "logits" in name and callable(getattr(type(model), name))]
    return sorted(own, key=lambda name: (name != "forward_logits", name.startswith("_"), name)) + ["forward"]


def tensor_in(value: Any, wanted: Callable[[Tensor], bool]) -> Tensor | None:
    """The first tensor in a result, or in a tuple of them, that is as wanted."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return next((one for one in values if isinstance(one, Tensor) and wanted(one)), None)


def _needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty


def _names(parameter: inspect.Parameter, pattern: re.Pattern) -> bool:
    return pattern.search(parameter.name.lower()) is not None


# --- the loop --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Switch:
    """What makes layers of a model run more than once, or once: an attribute, or a method that takes a truth.

    Attributes:
      name: its name on the model.
      off, on: names of the visits (see `jgolf.config.plan.Visit`) that the model then makes.
    """

    name: str
    off: frozenset[str]
    on: frozenset[str]


def set_switch(model: nn.Module, name: str, on: bool) -> None:
    """Turns the switch of this name."""
    value = getattr(model, name)
    if isinstance(value, Tensor):
        value.fill_(on)
    elif callable(value):
        value(on)
    else:
        setattr(model, name, on)


def find_switch(
    model: nn.Module, visits: Callable[[], Iterable[str]], off: frozenset[str], on: frozenset[str]
) -> Switch | None:
    """The attribute or method of a model that turns its loop off and on; None where there is none.

    Every truth that it keeps is tried, the likeliest first, and what layers then run is looked at. One that makes them
    run as jgolf has it goes before one that makes them run otherwise.

    Args:
      model: the script's GPT.
      visits: runs it, and returns the names of the visits that it makes.
      off, on: those that jgolf's network makes.
    """
    found = []
    for name in _truths(model):
        before = _value_of(model, name)
        try:
            seen = []
            for state in (False, True):
                set_switch(model, name, state)
                seen.append(frozenset(visits()))
        except Exception:  # it turns something else
            continue
        finally:
            set_switch(model, name, False if before is None else before)
        if seen[0] != seen[1]:
            found.append(Switch(name, *seen))
    return min(found, key=lambda switch: (switch.off, switch.on) != (off, on), default=None)


def _value_of(model: nn.Module, name: str) -> bool | None:
    value = getattr(model, name)
    return None if callable(value) and not isinstance(value, Tensor) else bool(value)


def _truths(model: nn.Module) -> Iterator[str]:
    """Attributes of a model that are a truth, and methods that are called after a loop and take one value."""
    own = [name for name in dir(model) if not (name.startswith("__") or hasattr(nn.Module, name) or name == "training")]
    for name in sorted(own, key=lambda name: ("loop" not in name.lower(), name)):
        value = getattr(model, name)
        if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool and value.ndim == 0):
            yield name
        elif "loop" in name.lower() and inspect.ismethod(value):
            needed = [one for one in inspect.signature(value).parameters.values() if _needed(one)]
            if len(inspect.signature(value).parameters) == 1 and len(needed) <= 1:
                yield name
