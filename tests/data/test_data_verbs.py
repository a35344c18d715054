import importlib

import pytest
import tyro

from jgolf.data.cli import HELP, VERBS


def test_every_verb_has_a_help_line():
    assert VERBS.keys() == HELP.keys() == {"split", "pack", "fuse", "tokenizer", "download", "demo", "inspect"}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_become_command_lines(verb, capsys):
    module, function = VERBS[verb].split(":")
    with pytest.raises(SystemExit) as stopped:
        tyro.cli(getattr(importlib.import_module(module), function), args=["--help"])
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out
