"""The one exception a user sees: a sentence that names the file, the row and the remedy."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

__all__ = ["UserError", "run_main"]


class UserError(Exception):
    """A mistake the user can mend.  Its text is shown alone, without a stack trace.

    `code` is the exit status: 2 for bad arguments or input, 1 for work that ended incomplete.
    """

    def __init__(self, message: str, *, code: int = 2):
        super().__init__(message)
        self.code = code


def run_main(main: Callable[[], int | None]) -> int:
    """Run a script's main function and turn a `UserError` or Ctrl-C into one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a character gets its escape, not a stack trace.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return main() or 0
        finally:
            sys.stdout.flush()  # here, and not when the interpreter ends, a reader that went away can be told
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted: what was finished is saved; the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our stdout (`| head`) went away: nothing is wrong, nothing more can be said there, and what is
        # still buffered must not be tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # A full disk, a folder that may not be written: what was finished is on disk already.
        what = f"{error.filename}: " if error.filename else ""
        print(f"error: {what}{error.strerror or error}", file=sys.stderr)
        return 1
