"""An echoed prompt's log-probabilities, read out of the answer of an OpenAI-compatible ``/v1/completions``.

Which of the tokens belong to which part of the text is read from ``text_offset`` where it fits the tokens' texts.  It
often does not: servers count a token that begins a text, or each byte of a character, as if it stood in the text, or
leave ``text_offset`` out; then the tokens' texts are followed along the text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Echo", "Unusable", "token_spans"]

# What part of a character decodes to.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Unusable(Exception):
    """What is wrong with an answer, in words that hold nothing of the texts."""


@dataclass(frozen=True)
class Echo:
    """The tokens of an answer that belong to the text that was sent, in order.

    Attributes
    ----------
    spans : first character and the one after the last, in the text sent, shape (tokens, 2); a token that stands for
        a part of a character, or for none (a token that begins a text), may have no width.
    values : log-probability of each token after all before it, natural logarithm; None where there is none.
    tops : the tokens that were most probable at each place, with their log-probabilities; {} where not given.
    """

    tokens: list[str]
    spans: list[tuple[int, int]]
    values: list[float | None]
    tops: list[Mapping[str, float]]

    @classmethod
    def of(cls, answer: Any, sent: str, new: int = 0) -> Echo:
        """What an answer says of the text `sent`, behind which `new` tokens were made anew.  Raises Unusable."""
        choice, logprobs = choice_of(answer)
        text = choice.get("text")
        if not isinstance(text, str) or not text.startswith(sent):
            raise Unusable("it ignores echo: the text that was sent does not come back")
        count, spans = len(logprobs["tokens"]) - new, None
        offsets = logprobs.get("text_offset")
        if count < 1:
            raise Unusable("it echoes the text, but gives log-probabilities of new tokens only")
        # Some leave out a new token that ends the text.
        while spans is None and count <= len(logprobs["tokens"]):
            places = offsets[:count] if isinstance(offsets, list) else None
            spans = token_spans(logprobs["tokens"][:count], places, sent)
            count += 1
        if spans is None:
            raise Unusable("its tokens do not add up to the text that was sent")
        tops = logprobs.get("top_logprobs")
        if not isinstance(tops, list) or len(tops) < len(spans):
            tops = [None] * len(spans)
        # What stands for the end of a text is no part of it.
        kept = [at for at, (start, _) in enumerate(spans) if start < len(sent)]
        return cls(
            [logprobs["tokens"][at] for at in kept],
            [spans[at] for at in kept],
            [logprobs["token_logprobs"][at] for at in kept],
            [tops[at] if isinstance(tops[at], dict) else {} for at in kept],
        )

    def nats(self, boundary: int) -> tuple[float, int]:
        """-log P of what stands from character `boundary` on, and its number of tokens.

        A token that stands across the boundary counts.  The first token of all, which has no log-probability since
        nothing stands before it, does not.  Raises Unusable where another token has none.
        """
        scored = [at for at, (start, end) in enumerate(self.spans) if start >= boundary or end > boundary]
        found = []
        for at in scored:
            value = self.values[at]
            if value is None and at > 0:
                raise Unusable("it gives no log-probability for some tokens of the text that was sent")
            if value is not None:
                found.append(value)
        return -math.fsum(found), len(found)


def choice_of(answer: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The only choice of an answer and its log-probabilities, whose lists have one entry a token.  Raises Unusable."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unusable("its answer is not that of a /v1/completions")
    logprobs = choices[0].get("logprobs")
    if not isinstance(logprobs, dict):
        raise Unusable("it gives no log-probabilities (logprobs)")
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list) or len(tokens) != len(values):
        raise Unusable("it gives no log-probabilities (logprobs)")
    if not all(isinstance(token, str) for token in tokens) or not all(
        value is None or (isinstance(value, (int, float)) and math.isfinite(value)) for value in values
    ):
        raise Unusable("its log-probabilities are no numbers")
    return choices[0], logprobs


def token_spans(tokens: Sequence[str], offsets: Any, text: str) -> list[tuple[int, int]] | None:
    """First character and the one after the last of each token in `text`; None where they do not fit together."""
    found = _by_offsets(tokens, offsets, text) if isinstance(offsets, list) and len(offsets) == len(tokens) else None
    return found if found is not None else _by_texts(tokens, text)


def _is_part(token: str) -> bool:
    """Whether a token's text stands for bytes that are no whole characters (OpenAI writes ``bytes:\\xf0\\x9f``)."""
    return REPLACEMENT in token or (token.startswith("bytes:") and "\\x" in token)


def _by_offsets(tokens: Sequence[str], offsets: list[Any], text: str) -> list[tuple[int, int]] | None:
    """The spans by the server's offsets, if they fit what the tokens say themselves."""
    if not all(isinstance(at, int) for at in offsets):
        return None
    spans = []
    for token, start, following in zip(tokens, offsets, [*offsets[1:], len(text)], strict=True):
        whole = text.startswith(token, start)
        end = start + len(token) if whole else following
        if not 0 <= start <= end <= following or (not whole and not _is_part(token)) or (whole and end != following):
            return None
        spans.append((start, end))
    return spans


def _by_texts(tokens: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """The spans by following the tokens' texts along `text`."""
    spans: list[tuple[int, int]] = []
    at = 0
    while len(spans) < len(tokens):
        token = tokens[len(spans)]
        bare = token.lstrip()
        if text.startswith(token, at):
            spans.append((at, at + len(token)))
        elif _is_part(token):
            found = _parts(tokens[len(spans) :], text, at)
            if found is None:
                return None
            spans += found
        elif bare and text.startswith(bare, _past_space(text, at)):
            # White space that the server lost (SentencePiece pieces decoded one by one), or put before a text.
            spans.append((at, _past_space(text, at) + len(bare)))
        elif not bare or at in (0, len(text)):
            # A token that stands for no text: it begins or ends one.
            spans.append((at, at))
        else:
            return None
        at = spans[-1][1]
    return spans if at == len(text) else None


def _parts(tokens: Sequence[str], text: str, at: int) -> list[tuple[int, int]] | None:
    """The spans of the parts of characters that `tokens` begin with, up to the next token that is whole.

    How many parts each of several characters has cannot be known; they are taken to have equally many.
    """
    count = next((n for n, token in enumerate(tokens) if token and not _is_part(token)), len(tokens))
    ascii_text = _ascii("".join(token.partition("\\x")[0].removeprefix("bytes:") for token in tokens[:count]))
    following = tokens[count] if count < len(tokens) else ""
    bare = following.lstrip()
    for end in range(at + 1, len(text) + 1):
        stretch = text[at:end]
        if len(_ascii(stretch)) > len(ascii_text):
            return None
        if _ascii(stretch) != ascii_text or len(stretch.encode()) < count or stretch.isascii():
            continue
        if (
            end == len(text)
            or (following and text.startswith(following, end))
            or (bare and text.startswith(bare, _past_space(text, end)))
        ):
            characters = [at + n for n, character in enumerate(stretch) if not character.isascii()]
            places = [characters[part * len(characters) // count] for part in range(count)]
            return [(at if not part else place, place + 1) for part, place in enumerate(places)]
    return None


def _ascii(text: str) -> str:
    """The ASCII characters of a text but white space."""
    return "".join(character for character in text if character.isascii() and not character.isspace())


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
