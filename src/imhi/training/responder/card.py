"""The model card of a responder: what it is, what it saw, how it was made, and what it is not for."""

from __future__ import annotations

from typing import Any

__all__ = ["responder_card"]


def responder_card(record: dict[str, Any]) -> str:
    """The text of ``README.md`` beside a trained responder, from what ``responder.json`` holds."""
    return "# TODO\n"
