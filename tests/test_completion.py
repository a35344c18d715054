from __future__ import annotations

import shutil
import subprocess

import pytest

from jgolf.bench import cli as bench_cli
from jgolf.cli import VERBS, main
from jgolf.data import cli as data_cli

CASES = {
    ("d",): {"data", "decompress", "doctor"},
    ("data", "pa"): {"pack"},
    ("data", "pack", "--sp"): {"--split"},
    ("data", "pack", "--split", ""): {"train", "val"},
    ("train", "pr"): {"pr1855", "pr414", "pr592"},
    ("train", "demo", "--model.num-la"): {"--model.num-layers"},
    ("train", "demo", "--model.compute-dtype", ""): {"bfloat16", "float32"},
    ("sweep", "demo", "--se"): {"--seeds", "--set", "--seed"},
    ("export", "--av"): {"--average"},
    ("compare", "--score", "s"): {"sliding", "standard"},
    ("convert", "--ov"): {"--overwrite"},
    ("compress", "--s"): {"--streams"},
}
BASH = 'COMP_WORDS=(jgolf "$@"); COMP_CWORD=$#; _jgolf; printf "%s\\n" "${COMPREPLY[@]}"'
ZSH = """\
compadd() { shift; print -l -- ${(M)@:#$words[CURRENT]*} }
compdef() { }
_files() { }
source $1; shift
words=(jgolf "$@"); CURRENT=$#words; _jgolf
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The three scripts, by shell."""
    folder = tmp_path_factory.mktemp("completion")
    paths = {}
    for shell in ("bash", "zsh", "fish"):
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr("sys.stdout", file)
            assert main(["--print-completion", shell]) == 0
        paths[shell] = folder / shell
    return paths


def lines(command: list[str]) -> set[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split("\t")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize(("words", "expected"), CASES.items())
def test_bash(words, expected, scripts):
    assert lines(["bash", "-c", f"source {scripts['bash']}; {BASH}", "bash", *words]) == expected


@pytest.mark.parametrize(("words", "expected"), CASES.items())
def test_zsh(words, expected, scripts):
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh here")
    assert lines(["zsh", "-f", "-c", ZSH, "zsh", str(scripts["zsh"]), *words]) == expected


@pytest.mark.parametrize(("words", "expected"), CASES.items())
def test_fish(words, expected, scripts):
    if shutil.which("fish") is None:
        pytest.skip("there is no fish here")
    found = lines(["fish", "--no-config", "-c", f"source {scripts['fish']}; complete -C 'jgolf {' '.join(words)}'"])
    assert found >= expected and not any(word.startswith("-") for word in found - expected)


def test_every_verb_is_completed(scripts):
    assert lines(["bash", "-c", f"source {scripts['bash']}; {BASH}", "bash", ""]) == set(VERBS)
    commands = [(verb,) for verb in VERBS if verb not in ("data", "bench")]
    commands += [("data", verb) for verb in data_cli.VERBS] + [("bench", verb) for verb in bench_cli.VERBS]
    for command in commands:
        found = lines(["bash", "-c", f"source {scripts['bash']}; {BASH}", "bash", *command, "--"])
        assert "--help" in found, command


def test_an_unknown_shell(capsys):
    assert main(["--print-completion", "tcsh"]) == 2
    assert "expected one of bash, zsh, fish" in capsys.readouterr().err
    assert main(["--print-completion"]) == 2
