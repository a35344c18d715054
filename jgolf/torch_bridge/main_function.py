"""What a training script's own code, in `main` mostly, says about its model and its optimizers.

`main` itself is not run: it needs data, a GPU and hours. Single expressions and statements of it are, with the
script's module as their surroundings: the arguments of a call, and what the optimizers are made by.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from jgolf.torch_bridge import source


def hyperparameters(module: ModuleType, overrides: Mapping[str, Any] | None = None) -> Any:
    """An object of the script's Hyperparameters, with some values replaced; None where there is no such class."""
    kind = getattr(module, "Hyperparameters", None)
    if kind is None:
        return None
    try:
        values = kind()
    except Exception:  # of a class that wants arguments, its own attributes are the settings
        values = SimpleNamespace(**{name: value for name, value in vars(kind).items() if not name.startswith("_")})
    for name, value in (overrides or {}).items():
        setattr(values, name, value)
    return values


def settings_parameter(module: ModuleType) -> str | None:
    """The parameter of GPT that takes an object with all settings; None where it takes them one by one.

    It is told by its name, its type or what the script gives it, or it is the only one that is needed.
    """
    if getattr(module, "Hyperparameters", None) is None:
        return None
    inits = [function for function in source.methods_of_model(module) if function.name == "__init__"]
    given = source.given_by_calls(source.tree_of(module))
    by_call = {name for function in inits for name in source.given_as(function, given, "settings")}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = [one for one in inspect.signature(module.GPT).parameters.values() if one.kind in kinds]
    for parameter in parameters:
        annotation = getattr(parameter.annotation, "__name__", parameter.annotation)
        if parameter.name in {*source.SETTINGS_ARGUMENTS, *by_call} or annotation == "Hyperparameters":
            return parameter.name
    needed = [one.name for one in parameters if one.default is one.empty]
    return needed[0] if len(needed) == 1 and not hasattr(module.Hyperparameters, needed[0]) else None


def arguments_of_model(module: ModuleType) -> dict[str, Any] | None:
    """What the script's GPT gets, by the names of its parameters, defaults among them, as far as that can be told.

    None where no function of the script calls GPT.
    """
    values = hyperparameters(module)
    parameters = inspect.signature(module.GPT).parameters
    for function in source.functions(module):
        for call in source.calls(function, "GPT"):
            surroundings = _Locals(module, function, values)
            expressions = dict(zip(parameters, call.args, strict=False))
            expressions |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            given = {name: surroundings.evaluate(expression) for name, expression in expressions.items()}
            for keyword in (keyword for keyword in call.keywords if keyword.arg is None):
                more = surroundings.evaluate(keyword.value)
                given = (more if isinstance(more, Mapping) else dict.fromkeys(parameters, _UNKNOWN)) | given
            defaults = {one.name: one.default for one in parameters.values() if one.default is not one.empty}
            return {name: value for name, value in (defaults | given).items() if value is not _UNKNOWN}
    return None


def muon_class(module: ModuleType) -> type[torch.optim.Optimizer] | None:
    """The script's Muon: the class of that name, else the only optimizer of its own, or the only one named after it."""
    if isinstance(kind := getattr(module, "Muon", None), type):
        return kind
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value.__module__ == module.__name__
    ]
    named = [kind for kind in own if "muon" in kind.__name__.lower()]
    return next((kinds[0] for kinds in (named, own) if len(kinds) == 1), None)


def gradient_clip(module: ModuleType) -> float | None:
    """The norm at which the script clips gradients, 0 for none; None where that cannot be worked out."""
    values = hyperparameters(module)
    for function in source.functions(module):
        for call in source.calls(function, "clip_grad_norm_"):
            norms = [keyword.value for keyword in call.keywords if keyword.arg == "max_norm"] or call.args[1:2]
            norm = _Locals(module, function, values).evaluate(norms[0]) if norms else _UNKNOWN
            return float(norm) if isinstance(norm, (int, float)) else None
    return 0.0


def optimizers(
    module: ModuleType, model: torch.nn.Module, overrides: Mapping[str, Any]
) -> list[torch.optim.Optimizer] | None:
    """The optimizers that the script makes for `model`, by its own statements.

    Of the function that makes Muon and others before it trains, those statements are run that make an optimizer,
    and those that what they use depends on.

    Args:
      module: the script.
      model: its GPT.
      overrides: values that Hyperparameters is to have: the settings of this model.

    Returns:
      None where no function makes any, or its statements cannot be run by themselves.
    """
    given, values = source.given_by_calls(source.tree_of(module)), hyperparameters(module, overrides)
    for function in source.functions(module):
        body = _before_training(function)
        making = [index for index, statement in enumerate(body) if _makes_optimizer(module, statement)]
        if not making:
            continue
        known = _known_names(function, model, values, given)
        chosen = _slice(module, body[: making[-1] + 1], set(making), set(known))
        namespace = {**vars(module), **known}
        try:
            exec(compile(ast.Module(chosen, []), str(module.__file__), "exec"), namespace)
            own = [namespace[name] for name in known]
            own += [value for name, value in namespace.items() if name not in known]
        except (Exception, SystemExit):  # it needs more than what is here: the whole, if that only makes optimizers
            own = [_made_by(module, function, model, known)]
        found = {id(one): one for value in own for one in _optimizers_in(value)}
        if any(isinstance(one, muon_class(module)) for one in found.values()):  # others are for adapting while scoring
            return list(found.values())
    return None


def _made_by(module: ModuleType, function: source.Function, model: torch.nn.Module, known: Mapping[str, Any]) -> Any:
    """What a function, or a class whose constructor it is, makes of the model; None where it does more or fails."""
    classes = [
        node.name for node in source.tree_of(module).body if isinstance(node, ast.ClassDef) and function in node.body
    ]
    parameters = [argument.arg for argument in function.args.args if argument.arg != "self"]
    needed = parameters[: len(parameters) - len(function.args.defaults)]
    if source.calls(function, "backward") or all(known.get(name) is not model for name in needed):
        return None
    try:
        made = getattr(module, *classes or (function.name,))(**{name: known[name] for name in needed})
    except (Exception, SystemExit):
        return None
    return SimpleNamespace(**vars(made)) if classes else made


_UNKNOWN = object()


class _Locals(dict):
    """The local variables of a function, each worked out from its assignment when it is first read."""

    def __init__(self, module: ModuleType, function: source.Function, values: Any):
        super().__init__({name: values for name in source.settings_names(function)})
        self._globals = dict(vars(module))
        self._assigned = {
            statement.targets[0].id: statement.value
            for statement in function.body
            if isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id not in self
        }

    def __missing__(self, name: str) -> Any:
        if name not in self._assigned:
            raise KeyError(name)
        self[name] = self._evaluated(self._assigned.pop(name))
        return self[name]

    def evaluate(self, expression: ast.expr) -> Any:
        """Its value, or `_UNKNOWN`."""
        try:
            return self._evaluated(expression)
        except Exception:  # whatever it needs is not there without running `main`
            return _UNKNOWN

    def _evaluated(self, expression: ast.expr) -> Any:
        return eval(compile(ast.Expression(expression), "main", "eval"), self._globals, self)


def _known_names(function: source.Function, model: torch.nn.Module, values: Any, given: source.Given) -> dict[str, Any]:
    """What the names in a function stand for that need not be worked out: settings, the model, the object itself."""
    known: dict[str, Any] = dict.fromkeys(source.settings_names(function), values)
    known |= dict.fromkeys(source.assigned_from(function, "GPT"), model)
    known |= dict.fromkeys(source.given_as(function, given, "settings"), values)
    models = source.given_as(function, given, "model")
    for argument in function.args.args:
        if argument.arg == "self":
            known[argument.arg] = SimpleNamespace()
        elif "model" in argument.arg or argument.arg in models:
            known[argument.arg] = model
    return known


def _before_training(function: source.Function) -> list[ast.stmt]:
    """The statements of a function, those in `try` and `with` too, up to the first that computes gradients."""
    body = [*_flat(function.body)]
    training = (index for index, part in enumerate(body) if not _defines(part) and source.calls(part, "backward"))
    return body[: next(training, len(body))]


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, (ast.Try, ast.With)):
            yield from _flat(statement.body)
        else:
            yield statement


def _defines(statement: ast.stmt) -> bool:
    return isinstance(statement, (source.Function, ast.ClassDef))


def _makes_optimizer(module: ModuleType, statement: ast.stmt) -> bool:
    for call in (part for part in ast.walk(statement) if isinstance(part, ast.Call)):
        try:
            kind = eval(compile(ast.Expression(call.func), "main", "eval"), dict(vars(module)))
        except Exception:
            continue
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            return True
    return False


def _slice(module: ModuleType, body: list[ast.stmt], making: set[int], known: set[str]) -> list[ast.stmt]:
    """The statements of `body` that those at `making` depend on, and these, in their order."""
    given = known | vars(module).keys() | vars(builtins).keys()
    needed: set[str] = set()
    chosen = []
    for index in reversed(range(len(body))):
        changed = _changed_names(body[index])
        if index in making or changed & needed:
            if changed & known:
                continue  # the model and the settings are those that are given
            chosen.append(body[index])
            read = {part.id for part in ast.walk(body[index]) if isinstance(part, ast.Name)}
            needed |= read - given - _own_names(body[index])
    return chosen[::-1]


def _own_names(statement: ast.stmt) -> set[str]:
    """Names that only the comprehensions in a statement know."""
    targets = [part.target for part in ast.walk(statement) if isinstance(part, ast.comprehension)]
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def _changed_names(statement: ast.stmt) -> set[str]:
    """Names that a statement binds, or calls a method of, as `names.append(…)` does."""
    changed = {statement.name} if _defines(statement) else set()
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        changed |= {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    for part in ast.walk(statement):
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            changed.add(part.id)
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            called = part.value.func
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                changed.add(called.value.id)
    return changed


def _optimizers_in(value: Any) -> list[torch.optim.Optimizer]:
    if isinstance(value, torch.optim.Optimizer):
        return [value]
    if isinstance(value, SimpleNamespace):
        return [one for part in vars(value).values() for one in _optimizers_in(part)]
    return [one for one in value if isinstance(one, torch.optim.Optimizer)] if isinstance(value, (list, tuple)) else []
