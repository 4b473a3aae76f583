# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``seqrec-fast``: finds the command, runs it, turns errors into one line.

Exit codes: 0 done; 1 training could not go on; 2 what the user gave cannot be used; 130 stopped by
Ctrl-C; 141 the reader of the output has gone.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, Protocol, cast

from seqrec_fast.cli.console import error_line
from seqrec_fast.errors import InputError, SeqrecError, TrainingError

__all__ = ["COMMANDS", "main", "run"]

#: Command -> what it does, in the order of the help. The module of the same name holds it.
COMMANDS = {
    "demo": "the whole way on built-in data, in about two minutes",
    "train": "clean a log, train a model on it, write a bundle",
    "evaluate": "full-ranking metrics of a bundle on a log, popularity beside it",
    "index": "the quickest index that finds enough, by measurement, into a bundle",
    "recommend": "items for a history of raw ids",
    "serve": "a bundle behind HTTP, with health, metrics and a page to try it",
    "batch": "items for every user of a file, into another file",
    "items": "add items to a bundle or remove them, without training",
    "info": "what this installation can do, or what a bundle holds",
    "bench": "speed of the kernels here, beside other libraries",
}

_DESCRIPTION = """\
Sequential recommendation: from a log of user behaviour to recommendations.

Run 'seqrec-fast COMMAND --help' for the options and examples of a command."""


class _Parser(ArgumentParser):
    """A parser whose complaint is an :class:`InputError` instead of usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')} (see '{self.prog} --help')")


class _Namespace(Protocol):
    command: str | None


class _Command(Protocol):
    EPILOG: str

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Adds the options of the command."""

    def run(self, args: _Namespace) -> int:
        """Carries the command out and returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; those of the process if ``None``.

    Returns:
        The exit code. Errors that a user can act on are one line on stderr, never a traceback.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    flags: dict[str, str] = {}
    try:
        code = _dispatch(given, flags)
        sys.stdout.flush()
        return code
    except TrainingError as error:
        print(error_line(error, flags), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error, but nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (SeqrecError, OSError, MemoryError) as error:
        print(error_line(error, flags), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("seqrec-fast: interrupted", file=sys.stderr)
        return 130


def run() -> NoReturn:
    """Console script.

    torch's OpenMP workers spin between two parallel regions, which on cores shared with other work
    costs several times the work itself; a process of our own asks them to sleep after a moment.
    Sleeping at once (``OMP_WAIT_POLICY=PASSIVE``) makes training on free cores a third slower.
    Whoever has set how workers wait keeps it, and benchmarks leave other libraries as they come.
    """
    if "OMP_WAIT_POLICY" not in os.environ and "bench" not in sys.argv[1:2]:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    sys.exit(main())


def _dispatch(argv: list[str], flags: dict[str, str]) -> int:
    """Parses and runs; fills ``flags`` with the options of the command by argument name."""
    # Only the chosen command is imported, so that the others' options cost nothing.
    chosen = next((word for word in argv if not word.startswith("-")), None)
    parser = _Parser(
        prog="seqrec-fast",
        description=_DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from seqrec_fast import __version__

    parser.add_argument("--version", action="version", version=f"seqrec-fast {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", parser_class=_Parser
    )
    module: _Command | None = None
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == chosen:
            module = cast(_Command, import_module(f"seqrec_fast.cli.{name}"))
            command.epilog = module.EPILOG
            module.add_arguments(command)
            for action in command._actions:
                if action.option_strings:
                    flags[action.dest] = action.option_strings[0]
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help and --version have printed what was asked
        return int(stop.code or 0)
    if module is None:
        parser.print_help()
        return 0
    return module.run(cast(_Namespace, args))


if __name__ == "__main__":
    run()
