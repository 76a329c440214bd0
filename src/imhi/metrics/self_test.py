"""The test that a server of log-probabilities is put to before it gets a text to score.

Servers that answer such requests wrongly exist in two kinds: those that ignore ``echo`` (llama.cpp's own server), and
those that give each token the log-probability of the place beside it (llama-cpp-python, for models without a token
that begins a text).  Both give numbers that look like scores.  So tokens that the server itself chooses, with their
log-probabilities, are sent back to it and compared: one after each of several texts, several after one text; and the
beginning of a text, where nothing stands before, is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imhi.errors import UserError
from imhi.metrics.echoed import REPLACEMENT, Echo, Unusable, choice_of
from imhi.metrics.server_logprobs import CompletionServer, Unanswered

__all__ = ["PROBES", "TOLERANCE", "self_test"]

# Nats between a token's log-probability when it was chosen and when it is echoed: a step of bfloat16 between two batch
# shapes, 0.125 where logits are 16 or more, stays below it; another token's value seldom does, and twice hardly ever.
TOLERANCE = 0.2
# The same for each of several tokens: of so many, one may lie two steps of bfloat16 off where logits are large.
TOLERANCE_EACH = 0.25

# Made up for the test; different endings, so that one of them is followed by a token that stays whole.
PROBES = (
    "The poster writes that they cannot sleep and feel",
    "My sister called me yesterday. She",
    "One, two, three, four,",
    "Question: What is the stress cause of this post?\nAnswer:",
    "They moved to another town and have not made any",
    "I wrote a long letter to my friend because",
    "Work has been hard since",
    "On Monday the doctor said:",
    "There is nothing left to say\n",
    "The rent, the car (",
    "no no no",
    "A B C D",
)
PROBES_NEEDED = 2
# Tokens chosen one after another, and the probes tried until two of them at least can be compared.
SEVERAL, SEVERAL_TRIED = 8, 4


def self_test(server: CompletionServer) -> None:
    """Compare log-probabilities of greedy tokens with those of the same tokens echoed.

    Raises UserError, which names the fault, unless they agree to `TOLERANCE` on `PROBES_NEEDED` prompts, all of
    several in a row agree to `TOLERANCE_EACH`, and the beginning of a text has no impossible value.
    """
    agreed = 0
    try:
        for probe in PROBES:
            agreed += _agrees_on(server, probe)
            if agreed == PROBES_NEEDED:
                next((probe for probe in PROBES[:SEVERAL_TRIED] if _several_agree(server, probe)), None)
                _beginning_agrees(server)
                return
    except (Unusable, Unanswered) as error:
        raise UserError(
            f"--gpt_api_base: {server.name} cannot score texts: {error}; GPT-score needs /v1/completions that echoes "
            "a prompt with its log-probabilities (vLLM does), or a model of this machine's (--gpt_model)",
            code=1,
        ) from None
    raise UserError(
        f"--gpt_api_base: {server.name} could not be tested: of {len(PROBES)} made-up prompts, {agreed} came back "
        f"split into tokens as they were answered, and {PROBES_NEEDED} are needed; score with --gpt_model",
        code=1,
    )


def _agrees_on(server: CompletionServer, probe: str) -> bool:
    """Whether the token that follows `probe` has the same value chosen and echoed; False where it cannot be told.

    Raises Unusable where it has another.
    """
    choice, logprobs = choice_of(server.complete(probe, max_tokens=1, echo=False))
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    if not tokens:
        return False
    token, value = tokens[0], values[0]
    if value is None:
        raise Unusable("it gives no log-probabilities (logprobs)")
    if not _is_whole(token, choice):
        return False
    sent = probe + token
    echo, span = server.echo(sent), (len(probe), len(sent))
    if not echo.spans or echo.spans[-1] != span:
        return False  # In one text, the token was joined to what stands before it.
    found = echo.values[-1]
    if found is None:
        raise Unusable("it gives no log-probabilities of the text that was sent, for all that it echoes it")
    if abs(found - value) <= TOLERANCE:
        return True
    # With more behind it: the value may stand one place on.
    if _stands_beside(echo, span, token, value) or _stands_beside(server.echo(sent + " ."), span, token, value):
        raise Unusable(
            "its log-probabilities of an echoed text are shifted by one token: each stands beside its token, or is "
            "that of the token coming once more"
        )
    raise Unusable(
        f"a token's log-probability is {value:.3f} when it is chosen and {found:.3f} when it is echoed "
        f"(more than {TOLERANCE} apart)"
    )


def _is_whole(token: str, choice: Mapping[str, Any]) -> bool:
    """Whether the one token chosen is text by itself, and all of the answer."""
    return bool(token.strip()) and token.strip() == str(choice.get("text", "")).strip() and token.isprintable()


def _stands_beside(echo: Echo, span: tuple[int, int], token: str, value: float) -> bool:
    """Whether the token at `span` has its value one place off, among the values or the most probable tokens there."""
    places = [at for at, found in enumerate(echo.spans) if found == span]
    near = [at + step for at in places for step in (-1, 1) if 0 <= at + step < len(echo.spans)]
    given = [found for at in near for found in (echo.values[at], echo.tops[at].get(token))]
    return any(found is not None and abs(found - value) <= TOLERANCE for found in given)


def _several_agree(server: CompletionServer, probe: str) -> bool:
    """Whether tokens chosen one after another have the same values echoed at once; False where fewer than two can be told.

    Raises Unusable where one has another.
    """
    choice, logprobs = choice_of(server.complete(probe, max_tokens=SEVERAL, echo=False))
    text, end, chosen = str(choice.get("text", "")), 0, []
    for token, value in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True):
        bare = token.strip()
        start = end + len(text[end:]) - len(text[end:].lstrip())
        # Pieces of characters look alike, and come back as other ones.
        whole = bare and token.isprintable() and REPLACEMENT not in token and "\\x" not in token
        if not whole or value is None or not text.startswith(bare, start):
            break
        end = start + len(bare)
        chosen.append((bare, value))
    if len(chosen) < 2:
        return False
    echo = server.echo(probe + text[:end])
    first = next((at for at, (start, end) in enumerate(echo.spans) if start == len(probe) < end), len(echo.spans))
    compared = 0
    for (token, value), echoed, found in zip(chosen, echo.tokens[first:], echo.values[first:], strict=False):
        if echoed.strip() != token:
            break  # From here on, one text is split otherwise.
        compared += 1
        if found is None or abs(found - value) > TOLERANCE_EACH:
            there = "missing" if found is None else f"{found:.3f}"
            raise Unusable(
                f"of several tokens in a row, the log-probability of number {compared} is {value:.3f} when it is chosen "
                f"and {there} when all are echoed"
            )
    return compared > 1


def _beginning_agrees(server: CompletionServer) -> None:
    """Raise Unusable where the beginning of a text has values that cannot be.

    No token that begins a text may count as one of it; and the first of the text's own, where it has a value at all, is
    not more probable than the one that the server itself would begin with.
    """
    echo = server.echo(PROBES[0])
    first = next(at for at, (start, end) in enumerate(echo.spans) if start < end)
    if any(value is not None for value in echo.values[:first]):
        raise Unusable(
            "the token that its model puts before a text has a log-probability of its own, and would count as one of "
            "the text's"
        )
    value = echo.values[first]
    if value is None:
        return
    if value > -TOLERANCE:
        raise Unusable(
            f"the first token of a text has the log-probability {value:.3f}: no text begins with that certainty"
        )
    try:
        _, logprobs = choice_of(server.complete("", max_tokens=1, echo=False))
    except (Unanswered, Unusable):
        return  # Many take no empty prompt.
    if not logprobs["tokens"] or logprobs["token_logprobs"][0] is None:
        return
    token, chosen = logprobs["tokens"][0], logprobs["token_logprobs"][0]
    top = echo.tops[first].get(token, chosen)
    if value > chosen + TOLERANCE_EACH or abs(top - chosen) > TOLERANCE_EACH:
        raise Unusable(
            f"the first token of an echoed text has the log-probability {value:.3f}, the most probable one there "
            f"{top:.3f}, and the one that is chosen to begin a text {chosen:.3f}"
        )
