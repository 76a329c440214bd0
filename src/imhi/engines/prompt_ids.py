"""From prompts to token ids and from new token ids to answers: the rules that engines with a tokenizer of ours share.

Whatever runs the model, it reads the same ids, may say as many new tokens, and stops at the same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from imhi.engines import Completion, Decoding, Prompt
from imhi.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "answer_room",
    "chat_turns",
    "cut_answer",
    "failure",
    "no_room",
    "prompt_token_ids",
    "raw_text",
    "require_chat_template",
]


def chat_turns(prompt: Prompt) -> list[dict[str, str]]:
    """The messages of a chat that ends with the prompt: `role` and `content`, an example a pair of turns."""
    pairs = [(("user", shot.query), ("assistant", shot.answer)) for shot in prompt.shots]
    turns = [turn for pair in pairs for turn in pair] + [("user", prompt.text)]
    return [{"role": role, "content": content} for role, content in turns]


def raw_text(prompt: Prompt) -> str:
    """The prompt without a template; an example and its answer stand in one paragraph, with an empty line after each."""
    # A prompt of the completion form ends in a space already.
    before = [f"{shot.query}{'' if shot.query.endswith(' ') else ' '}{shot.answer}\n\n" for shot in prompt.shots]
    return "".join(before) + prompt.text


def require_chat_template(tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
    """UserError where a chat template is asked for and the tokenizer has none."""
    if decoding.chat_template and not tokenizer.chat_template:
        raise UserError("--chat_template: this model's tokenizer has no chat template; leave the flag out")


def prompt_token_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, chat_template: bool, causal: bool = True
) -> list[int]:
    """Token ids of a prompt: raw text with the tokenizer's own special tokens, or its chat template.

    A doubled beginning-of-sequence token is dropped, and so is an end-of-sequence token that a causal model's
    tokenizer appends: the model would take the prompt for finished.
    """
    if chat_template:
        text = tokenizer.apply_chat_template(chat_turns(prompt), add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(raw_text(prompt))["input_ids"]
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if causal and not chat_template and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def answer_room(prompt_tokens: int, decoding: Decoding, context: int | None) -> int:
    """New tokens that a causal model may say behind a prompt of this length; below 1: none.

    `context` is the model's number of positions, for prompt and answer together; None: it has no limit.
    """
    limits = [limit - prompt_tokens for limit in (decoding.max_length, context) if limit is not None]
    return min(decoding.max_new_tokens, *limits) if limits else decoding.max_new_tokens


def no_room(prompt: Prompt, prompt_tokens: int, decoding: Decoding, context: int | None) -> Completion:
    """The completion of a prompt that alone fills the model or ``--max_length``."""
    limits = {"max_length": decoding.max_length, "context": context}
    stated = ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
    reason = f"the prompt's {prompt_tokens} tokens leave no room for an answer ({stated})"
    return Completion(prompt.id, "", prompt_tokens, 0, "no_room", error=reason)


def failure(prompt: Prompt, prompt_tokens: int, error: Exception) -> Completion:
    """The completion of a prompt on which the engine failed: the first line of the error, no answer."""
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return Completion(prompt.id, "", prompt_tokens, 0, "error", error=reason[:500])


def cut_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    prompt_tokens: int,
    new: Sequence[int],
    *,
    ends: Collection[int],
    prompt_truncated: bool = False,
) -> Completion:
    """The answer in the token ids `new`, up to and without the first of the tokens in `ends`."""
    end = next((at for at, token in enumerate(new) if token in ends), None)
    kept = list(new if end is None else new[:end])
    text = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
    reason = "length" if end is None else "stop"
    return Completion(prompt.id, text, prompt_tokens, len(kept), reason, prompt_truncated)
