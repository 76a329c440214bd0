"""The command line: one file a command, each with DESCRIPTION, add_arguments(parser) and run(arguments).

Nothing heavy is imported at the top of these files, so that ``--help`` and argument errors are instant.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

from imhi.errors import run_main

__all__ = ["run_script"]


def run_script(command: str, argv: Sequence[str] | None = None) -> int:
    """Run one command as a script of its own (``src/IMHI.py`` and its siblings); returns the exit status."""
    module = import_module(f"imhi.commands.{command}")
    parser = argparse.ArgumentParser(description=module.DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter)
    module.add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_main(lambda: module.run(arguments))
