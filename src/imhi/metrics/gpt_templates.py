"""What stands around the two texts of a GPT-score, as data (``gpt_templates.json``, with the sources).

A template has ``{given}``, the text that is read, and at its end ``{scored}``, the text whose tokens count: the
``{ref/hypo}`` and ``{hypo/ref}`` of the GPTScore paper, filled as the direction says.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DEFAULT_TEMPLATE", "TEMPLATES", "Template"]

DEFAULT_TEMPLATE = "plain"


@dataclass(frozen=True)
class Template:
    """One way of asking: ``head + given + middle + scored``; `source` is where the words are from."""

    head: str
    middle: str
    source: str

    @classmethod
    def of(cls, text: str, source: str) -> Template:
        """Raises ValueError unless both places are there once, the scored text at the end."""
        head, given, rest = text.partition("{given}")
        middle, scored, end = rest.partition("{scored}")
        if not given or not scored or end or "{given}" in middle or "{scored}" in head:
            raise ValueError(f"a template needs {{given}} once, then {{scored}} at its end: {text!r}")
        return cls(head, middle, source)

    def before(self, given: str) -> str:
        """All that stands before the scored text."""
        return self.head + given + self.middle

    @property
    def digest(self) -> str:
        """8 hexadecimal digits that stand for the words."""
        return hashlib.sha256(self.before("{given}").encode()).hexdigest()[:8]


TEMPLATES = {
    name: Template.of(**described)
    for name, described in json.loads(
        Path(__file__).with_name("gpt_templates.json").read_text(encoding="utf-8")
    ).items()
}
