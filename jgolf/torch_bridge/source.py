"""A training script's text, taken apart: its functions, and which names in them are its model and its settings."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType

SETTINGS_ARGUMENTS = ("args", "hparams", "hyperparameters", "config", "cfg", "h", "hp", "settings")
WRAPPERS = ("compile", "DDP", "DistributedDataParallel")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def casts_model_to_bfloat16(module: ModuleType) -> bool:
    """Whether the script sends its whole GPT through bfloat16: where it makes it, in GPT, or in a function given it.

    What follows such a cast does not bring back what it rounds.
    """
    given, own = given_by_calls(tree_of(module)), methods_of_model(module)
    for function in [*functions(module), *own]:
        models = _models_in(function, given) | ({"self"} if function in own else set())
        for call in (part for part in ast.walk(function) if isinstance(part, ast.Call)):
            if isinstance(call.func, ast.Attribute) and _casts_to_bfloat16(call) and _is_model(call.func.value, models):
                return True
    return False


def functions(module: ModuleType) -> Iterator[Function]:
    """The script's functions, `main` first, and then the methods of its classes but GPT."""
    return _functions_in(tree_of(module))


def _functions_in(tree: ast.Module) -> Iterator[Function]:
    own = [node for node in tree.body if isinstance(node, Function)]
    yield from sorted(own, key=lambda function: function.name != "main")
    for kind in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "GPT"):
        yield from (node for node in kind.body if isinstance(node, Function))


def tree_of(module: ModuleType) -> ast.Module:
    """The script's text, taken apart; nothing where it cannot be."""
    try:
        return _parsed(Path(module.__file__).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ast.Module([], [])


@lru_cache(maxsize=2)
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def methods_of_model(module: ModuleType) -> list[Function]:
    """GPT's own."""
    own = [node for node in tree_of(module).body if isinstance(node, ast.ClassDef) and node.name == "GPT"]
    return [node for kind in own for node in kind.body if isinstance(node, Function)]


Given = Mapping[tuple[str, int], Mapping[str, str]]
"""A function's name and line → which of its parameters are given the "model", which the "settings"."""


@lru_cache(maxsize=2)
def given_by_calls(tree: ast.Module) -> Given:
    """What a script's calls of its own functions and classes hand on, whatever the parameters are called."""
    takers: dict[str, tuple[Function, list[str]]] = {}
    for node in tree.body:
        if isinstance(node, Function):
            takers[node.name] = node, [argument.arg for argument in node.args.args]
        for part in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(part, Function) and part.name == "__init__":
                takers[node.name] = part, [argument.arg for argument in part.args.args[1:]]
    given: dict[tuple[str, int], dict[str, str]] = {}
    for _ in range(3):  # what is given may be handed on
        for function in _functions_in(tree):
            models = _models_in(function, given)
            settings = settings_names(function) | given_as(function, given, "settings") | {"Hyperparameters"}
            for call in (part for part in ast.walk(function) if isinstance(part, ast.Call)):
                taker, parameters = takers.get(getattr(call.func, "id", ""), (None, []))
                arguments = [*zip(parameters, call.args, strict=False)]
                arguments += [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg in parameters]
                for name, argument in arguments:
                    if _is_model(argument, models):
                        given.setdefault((taker.name, taker.lineno), {})[name] = "model"
                    elif ast.unparse(argument).removesuffix("()") in settings:
                        given.setdefault((taker.name, taker.lineno), {})[name] = "settings"
    return given


def given_as(function: Function, given: Given, what: str) -> set[str]:
    """A function's parameters that calls give the model, or the settings."""
    return {name for name, kind in given.get((function.name, function.lineno), {}).items() if kind == what}


def _models_in(function: Function, given: Given) -> set[str]:
    """Names and attributes that are a GPT in a function: made there, or given, or the same after compilation."""
    models = given_as(function, given, "model")
    for part in (part for part in ast.walk(function) if isinstance(part, ast.Assign)):
        wrapped = isinstance(part.value, ast.Call) and any(_is_model(argument, models) for argument in part.value.args)
        called = part.value.func if wrapped else None
        if calls(part.value, "GPT") or getattr(called, "attr", getattr(called, "id", None)) in WRAPPERS:
            models |= {ast.unparse(target) for target in part.targets}
    return models


def _is_model(expression: ast.expr, models: set[str]) -> bool:
    """Whether an expression is a GPT made on the spot or one of `models`, after any calls on it."""
    while isinstance(expression, ast.Call) and isinstance(expression.func, ast.Attribute):
        expression = expression.func.value
    made = isinstance(expression, ast.Call) and getattr(expression.func, "id", None) == "GPT"
    return made or ast.unparse(expression) in models


def _casts_to_bfloat16(call: ast.Call) -> bool:
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    named = any("bfloat16" in ast.unparse(argument) for argument in arguments)
    return call.func.attr == "bfloat16" or (call.func.attr in ("to", "type") and named)


def calls(node: ast.AST, name: str) -> list[ast.Call]:
    """Calls of something called `name`, whatever it is an attribute of."""
    found = [part for part in ast.walk(node) if isinstance(part, ast.Call)]
    return [call for call in found if name in (getattr(call.func, "id", None), getattr(call.func, "attr", None))]


def settings_names(function: Function) -> set[str]:
    """Names in a function that stand for the script's settings."""
    parameters = {argument.arg for argument in function.args.args if argument.arg in SETTINGS_ARGUMENTS}
    return parameters | assigned_from(function, "Hyperparameters")


def assigned_from(function: Function, name: str) -> set[str]:
    """Names that are assigned what a call of `name` gives, as it is or after further calls on it."""
    assignments = [part for part in ast.walk(function) if isinstance(part, (ast.Assign, ast.AnnAssign)) and part.value]
    targets = [
        target
        for part in assignments
        if calls(part.value, name)
        for target in (part.targets if isinstance(part, ast.Assign) else [part.target])
    ]
    return {target.id for target in targets if isinstance(target, ast.Name)}
