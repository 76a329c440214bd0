"""What ran: versions, git commit, machine.  Recorded in every manifest and beside every score."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

__all__ = ["environment", "git_state", "library_versions", "now"]

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "bert-score", "rapidfuzz", "scikit-learn", "numpy")


def now() -> str:
    """The time in UTC, ISO 8601, whole seconds."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def library_versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions; a package that is not installed is left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, str | bool] | None:
    """Commit of the toolkit's checkout and whether files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


def environment() -> dict[str, object]:
    """Toolkit, Python, libraries, git and machine, for a manifest."""
    from imhi import __version__

    return {
        "imhi": __version__,
        "python": platform.python_version(),
        "libraries": library_versions(),
        "git": git_state(),
        "machine": {"platform": platform.platform(), "processor": platform.machine()},
        "command": sys.argv,
    }
