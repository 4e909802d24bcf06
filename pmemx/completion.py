"""The script by which a shell completes the command line: verbs and options by shtab, names of blocks by asking the bank."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import shtab

_BLOCKS = ("reference", "references", "name", "names", "before", "after")
_FILES = ("card", "scores", "policy")
_FOLDERS = ("bank", "cold", "folder", "folders", "source", "target")

# Only names that a shell takes as they stand: it would run what another one holds, such as $(...).
_BLOCKS_IN_BASH = r"""
_pmemx_blocks() {
  local i name place=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    [[ ${COMP_WORDS[i]} == --bank ]] && place=(--bank "${COMP_WORDS[i + 1]}")
  done
  while IFS= read -r name; do
    [[ $name =~ ^[[:alnum:]][[:alnum:]_.+/-]*$ && $name == "$1"* ]] && printf '%s\n' "$name"
  done < <(pmemx bank names "${place[@]}" 2>/dev/null)
}"""
# compadd quotes what it inserts.
_BLOCKS_IN_ZSH = r"""
_pmemx_blocks() {
  local -a names place
  local i=${words[(I)--bank]}
  (( i )) && place=(--bank "${(Q)words[i + 1]}")
  names=("${(@f)$(pmemx bank names $place 2>/dev/null)}")
  compadd -a names
}"""
_PREAMBLES = {"bash": _BLOCKS_IN_BASH, "zsh": _BLOCKS_IN_ZSH}


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion of a parser for bash, zsh or tcsh; tcsh completes no names of blocks."""
    for action in _actions(parser):
        if action.dest in _FOLDERS:
            _complete(action, shtab.DIRECTORY)
        elif action.type is Path or (action.dest in _FILES and not action.option_strings):
            _complete(action, shtab.FILE)
        elif action.dest in _BLOCKS and not action.option_strings:
            _complete(action, {"bash": "_pmemx_blocks", "zsh": "_pmemx_blocks"})
    return shtab.complete(parser, shell=shell, preamble=_PREAMBLES.get(shell, ""))


def _complete(action: argparse.Action, how: Mapping[str, object]) -> None:
    # Where shtab looks for it; argparse's own class declares no such attribute.
    vars(action)["complete"] = how


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action
