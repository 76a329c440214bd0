"""``imhi``: every command of the toolkit as a subcommand; the three scripts are three of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from imhi import __version__
from imhi.errors import run_main

__all__ = ["main"]

COMMANDS = (
    "run",
    "generate",
    "label",
    "score",
    "report",
    "compare",
    "check",
    "keep",
    "humans",
    "ask",
    "data",
    "export",
    "train",
    "demo",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``imhi``; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="imhi",
        description="Evaluate how well language models analyse mental health in posts, and explain themselves.\n"
        "For research; not for clinical use.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"imhi {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        module = import_module(f"imhi.commands.{command}")
        subparser = subparsers.add_parser(
            command,
            help=module.DESCRIPTION,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)

    def run() -> int:
        arguments = parser.parse_args(argv)
        return arguments.run(arguments)

    return run_main(run)


if __name__ == "__main__":
    raise SystemExit(main())
