"""What a command prints as JSON is JSON: it has no NaN and no infinity."""

import ast
import json
import math
from pathlib import Path

import pytest

import jgolf
from jgolf import files
from jgolf.bench.report import Figure, Report, publish

PACKAGE = Path(jgolf.__file__).parent


def strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_json_lacks_is_null():
    value = {"a": math.nan, "b": [1.5, -math.inf, (math.inf, "NaN", None, True)], "c": {"d": 2}}
    assert strict(files.json_text(value)) == {"a": None, "b": [1.5, None, [None, "NaN", None, True]], "c": {"d": 2}}
    assert files.json_text({"a": [1]}, indent=1) == json.dumps({"a": [1]}, indent=1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_report_of_the_benchmarks(capsys, value):
    publish(Report("step", "a setup", "jgolf bench step", [Figure("step", value, "ms")]), json=True)
    assert strict(capsys.readouterr().out)["figures"][0]["value"] is None


def test_commands_print_json_in_this_way_alone():
    """A `print` of `json.dumps`, or of a name for it, would let NaN through."""
    for path in PACKAGE.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if getattr(call.func, "id", None) == "print":
                assert "dumps" not in ast.unparse(call), f"{path}:{call.lineno}"
