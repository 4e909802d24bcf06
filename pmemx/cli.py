"""The command line: pmemx run | list | report | bank | completion. Imports no torch before a command needs it."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pmemx import cli_run
from pmemx.cli_bank import add_bank
from pmemx.cli_bank.opening import DEFAULT
from pmemx.cli_bank.printing import visible
from pmemx.core.errors import PmemxError
from pmemx.exit_codes import DONE, HELP, exit_code

DESCRIPTION = "Distil knowledge into LoRA experts, keep them in a bank, compose them with a gate, and measure it."
EPILOG = f"""examples:
  pmemx run experiments=quickstart            one whole run, minutes on 2 cores
  pmemx run experiments=quickstart gate=linear seed=1
  pmemx run -m experiments=quickstart seed=0,1,2
  pmemx run experiments=quickstart --cfg job  the composed config, without running it
  pmemx list gate                             the choices of an axis
  pmemx report outputs/quickstart/<time>      write the report of a finished run again
  pmemx bank list                             the blocks of {DEFAULT}
  pmemx completion bash > ~/.local/share/bash-completion/completions/pmemx

{HELP}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("PMEMX_ROOT", str(config_root()))
    running = arguments[:1] == ["run"] and not {"-h", "--help"} & set(arguments)
    try:
        code = cli_run.run(arguments[1:], config_root(), _complain) if running else _command(arguments)
        # Here, and not when the interpreter ends, so that a pipe that was closed early is noticed below.
        sys.stdout.flush()
        return code
    except PmemxError as error:
        _complain(error)
        return exit_code(error)
    except BrokenPipeError:  # the reader, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def config_root() -> Path:
    """The folder that holds conf/ and experiments/: PMEMX_ROOT, else the checkout, else the installed package."""
    if root := os.environ.get("PMEMX_ROOT"):
        return Path(root).resolve()
    package = Path(__file__).resolve().parent
    return package if (package / "conf").is_dir() else package.parent


@cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "pmemx", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    # Only its help is used: everything after `run` is Hydra's to parse.
    commands.add_parser(
        "run",
        help="run an experiment (Hydra overrides, -m sweeps, --cfg job)",
        usage=cli_run.USAGE,
        description=cli_run.DESCRIPTION,
        epilog=cli_run.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    ).add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    listing = commands.add_parser("list", help="axes, or the choices of one axis")
    listing.add_argument("axis", nargs="?", help="a folder of conf/, or experiments")
    listing.set_defaults(command=_list)

    report = commands.add_parser("report", help="write the report of a finished run again from its records")
    report.add_argument("run", type=Path, help="a run folder")
    report.set_defaults(command=_report)

    add_bank(commands)

    parser.add_argument("--version", action="version", version=f"pmemx {_version()}")

    completing = commands.add_parser("completion", help="print what makes a shell complete commands, options and names")
    completing.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    completing.set_defaults(command=_completion)
    return parser


def _version() -> str:
    """That of the installed package; what runs without being installed has none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pmemx")
    except PackageNotFoundError:
        return "(not installed)"


def _command(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    return options.command(options)


def _complain(error: PmemxError) -> None:
    # Line by line: what a message quotes from a card may hold escapes, but its own lines are meant.
    lines = f"{type(error).__name__}: {error}".split("\n")
    print("\n".join(visible(line) for line in lines), file=sys.stderr)


def _list(options: argparse.Namespace) -> int:
    from pmemx.choices import axes, choices

    root = config_root()
    if options.axis is None:
        rows = [(axis, f"{len(choices(root, axis))} choices") for axis in axes(root)]
    else:
        rows = list(choices(root, options.axis).items())
    width = max((len(name) for name, _ in rows), default=0)
    for name, sentence in rows:
        print(f"{name:<{width}}  {sentence}".rstrip())
    return DONE


def _report(options: argparse.Namespace) -> int:
    from pmemx.report import write_report

    print(write_report(options.run))
    return DONE


def _completion(options: argparse.Namespace) -> int:
    from pmemx.completion import script

    print(script(_parser(), options.shell))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
