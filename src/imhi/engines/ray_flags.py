"""Flags that say which Ray workers there are, for every command that spreads its work over them."""

from __future__ import annotations

from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from imhi.engines import positive
from imhi.errors import UserError

__all__ = ["absolute", "add_engine_arguments", "add_pool_arguments", "gpus_each", "pool_options"]


def add_pool_arguments(parser: Any) -> None:
    """Flags that say which workers there are; not there where they are not given."""
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        default=SUPPRESS,
        help="processes that each load the model; a GPU each with --cuda, else an equal share of the CPU cores",
    )
    parser.add_argument(
        "--ray_address",
        metavar="ADDR",
        default=SUPPRESS,
        help="HOST:PORT of a running Ray cluster, or auto for the one on this machine: texts are sent to its machines\n"
        "(default: workers on this machine alone)",
    )


def add_engine_arguments(parser: Any, what: str) -> None:
    """``--engine`` of a command whose models run in this process or in a pool, and the pool's flags."""
    parser.add_argument(
        "--engine",
        choices=["transformers", "ray"],
        default="transformers",
        help=f"what runs the {what}: this process (default), or Ray workers",
    )
    add_pool_arguments(parser.add_argument_group("--engine ray"))


def pool_options(arguments: Any) -> dict[str, Any]:
    """The given flags of `add_engine_arguments` by name; UserError on those without ``--engine ray``."""
    given = {name: getattr(arguments, name) for name in ("workers", "ray_address") if hasattr(arguments, name)}
    if given and arguments.engine != "ray":
        raise UserError(f"--{next(iter(given))} is a flag of --engine ray; add that, or leave it out")
    return given


def gpus_each(device: str) -> int:
    """GPUs that a worker needs for a device; UserError on one that a pool cannot give."""
    if device not in ("cpu", "cuda", "cuda:0"):
        raise UserError(f"--device {device}: Ray gives each worker its own GPU; give --cuda")
    return int(device != "cpu")


def absolute(path: str | None) -> str | None:
    """A path that exists, from the root, for workers run in other folders; other names as they are."""
    return str(Path(path).expanduser().resolve()) if path and Path(path).expanduser().exists() else path
