"""Tab completion: `jgolf --print-completion bash|zsh|fish`.

What can be completed is what `--help` shows, so it cannot fall behind the commands.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jgolf.errors import JgolfError

Shell = Literal["bash", "zsh", "fish"]
HELP_COLUMNS = 100  # one column of options, with room for the longest list of choices
_OPTION = re.compile(r"--[a-z][\w.-]*")
_CHOICES = re.compile(r"\{([^}]*)\}")

BASH = """\
# jgolf, completed by bash: source this file, or put it into ~/.local/share/bash-completion/completions/jgolf
_jgolf() {
  local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
  local words= place=2
  if (( COMP_CWORD == 1 )); then
    words="<first>"
  else
    case "$command" in
      <groups>) place=3; (( COMP_CWORD > 2 )) && command+=" ${COMP_WORDS[2]}" ;;
    esac
    case "$command" in
      <second>
    esac
    if [[ $current == -* ]]; then
      case "$command" in
        <options>
      esac
    elif (( COMP_CWORD == place )); then
      case "$command" in
        <positional>
      esac
    fi
    case "$command $before" in
      <choices>
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _jgolf jgolf
"""

ZSH = """\
#compdef jgolf
# jgolf, completed by zsh: put this file, called _jgolf, into a folder of $fpath, or source it after compinit
_jgolf() {
  local command=$words[2] before=$words[CURRENT-1] place=3
  if (( CURRENT == 2 )); then
    compadd -- <first>
    return
  fi
  case "$command" in
    <groups>) place=4; (( CURRENT > 3 )) && command+=" $words[3]" ;;
  esac
  case "$command $before" in
    <choices>
  esac
  case "$command" in
    <second>
  esac
  if [[ $words[CURRENT] == -* ]]; then
    case "$command" in
      <options>
    esac
    return
  fi
  if (( CURRENT == place )); then
    case "$command" in
      <positional>
    esac
  fi
  _files
}
if [[ $funcstack[1] == _jgolf ]]; then _jgolf "$@"; else compdef _jgolf jgolf; fi
"""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
      words: how it is called after `jgolf`, one or two verbs.
      text: what it does, in a line.
      positional: words that its first argument may be, besides files.
      options: option → the words it may take; empty where it takes others, or none.
    """

    words: tuple[str, ...]
    text: str
    positional: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]


def options_in_help(run: Callable[[], object]) -> dict[str, tuple[str, ...]]:
    """Options, and their choices, in the help that `run` prints."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(HELP_COLUMNS)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            run()
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    options: dict[str, tuple[str, ...]] = {}
    for line in printed.getvalue().splitlines():
        if line.startswith(("│ -", "  -")):  # with a frame where the output can show one
            invocation = re.split(r"\s{2,}", line.strip("│ "))[0]
            found = _CHOICES.search(invocation)
            choices = tuple(word for word in found[1].split(",") if word != "None") if found else ()
            options |= {option: choices for option in _OPTION.findall(invocation)}
    return options


def script(shell: str, commands: Sequence[Command], groups: Mapping[str, str]) -> str:
    """The completion script of a shell.

    Args:
      shell: bash, zsh or fish.
      commands: all commands.
      groups: first verbs of the commands that have two, and what each is about.

    Raises:
      JgolfError: there is no script for this shell.
    """
    if shell not in get_args(Shell):
        raise JgolfError(f"--print-completion {shell}: expected one of {', '.join(get_args(Shell))}")
    if shell == "fish":
        return _fish(commands, groups)
    return _bash(commands, groups) if shell == "bash" else _zsh(commands, groups)


def _bash(commands: Sequence[Command], groups: Mapping[str, str]) -> str:
    return _filled(
        BASH,
        first=" ".join(_first_words(commands, groups)),
        groups="|".join(groups),
        second=[f'"{group}") words="{" ".join(_second_words(commands, group))}" ;;' for group in groups],
        options=[f'"{" ".join(one.words)}") words="{" ".join(one.options)}" ;;' for one in commands],
        choices=_choice_cases(commands, 'words="{}" ;;'),
        positional=_positional_cases(commands, 'words="{}" ;;'),
    )


def _zsh(commands: Sequence[Command], groups: Mapping[str, str]) -> str:
    return _filled(
        ZSH,
        first=" ".join(_first_words(commands, groups)),
        groups="|".join(groups),
        second=[f"{group}) compadd -- {' '.join(_second_words(commands, group))}; return ;;" for group in groups],
        options=[f'"{" ".join(one.words)}") compadd -- {" ".join(one.options)} ;;' for one in commands],
        choices=_choice_cases(commands, "compadd -- {}; return ;;"),
        positional=_positional_cases(commands, "compadd -- {} ;;"),
    )


def _fish(commands: Sequence[Command], groups: Mapping[str, str]) -> str:
    lines = ["# jgolf, completed by fish: put this file, called jgolf.fish, into ~/.config/fish/completions"]
    texts = dict(groups) | {one.words[0]: one.text for one in commands if len(one.words) == 1}
    for word, text in texts.items():
        lines.append(f"complete -c jgolf -n __fish_use_subcommand -f -a {word} -d {_quoted(text)}")
    for one in commands:
        if len(one.words) == 2:
            group, verb = one.words
            others = " ".join(_second_words(commands, group))
            condition = f"__fish_seen_subcommand_from {group}; and not __fish_seen_subcommand_from {others}"
            lines.append(f"complete -c jgolf -n '{condition}' -f -a {verb} -d {_quoted(one.text)}")
        condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in one.words)
        if one.positional:
            lines.append(f"complete -c jgolf -n '{condition}' -a '{' '.join(one.positional)}'")
        for option, choices in one.options.items():
            values = f" -x -a '{' '.join(choices)}'" if choices else ""
            lines.append(f"complete -c jgolf -n '{condition}' -l {option.removeprefix('--')}{values}")
    return "\n".join(lines) + "\n"


def _first_words(commands: Sequence[Command], groups: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys([*(one.words[0] for one in commands), *groups]))


def _second_words(commands: Sequence[Command], group: str) -> list[str]:
    return [one.words[1] for one in commands if len(one.words) == 2 and one.words[0] == group]


def _choice_cases(commands: Sequence[Command], action: str) -> list[str]:
    """One shell case for each list of choices, of all the options that take it."""
    by_choices: dict[tuple[str, ...], list[str]] = {}
    for one in commands:
        for option, choices in one.options.items():
            if choices:
                by_choices.setdefault(choices, []).append(f'"{" ".join(one.words)} {option}"')
    return [f"{'|'.join(cases)}) {action.format(' '.join(choices))}" for choices, cases in by_choices.items()]


def _positional_cases(commands: Sequence[Command], action: str) -> list[str]:
    return [f'"{" ".join(one.words)}") {action.format(" ".join(one.positional))}' for one in commands if one.positional]


def _filled(template: str, **parts: str | Sequence[str]) -> str:
    """The template with each <name> replaced; a list fills lines, indented as the first."""
    for name, part in parts.items():
        if isinstance(part, str):
            template = template.replace(f"<{name}>", part)
        else:
            template = re.sub(
                rf"( *)<{name}>", lambda found, part=part: "\n".join(found[1] + line for line in part), template
            )
    return template


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
