"""Coverage: how much of what the reference says comes back in the explanation, word by word and by meaning.

The recall half of BERTScore (Zhang et al., ICLR 2020, section 3: every token of the reference by its best cosine among
the explanation's tokens, in the encoder's own layer), averaged over the reference's *content words* alone.  Function
words find a match in any English text: they add length, not information (the importance weighting of section 3,
with weights of 0 and 1 in place of idf, which a single pair cannot estimate).

With the post as reference it needs no gold text: an explanation is good as far as it takes up what the post says.
References longer than the encoder reads are embedded in windows, not cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from imhi.errors import UserError
from imhi.metrics.base import Signature, Statistics
from imhi.metrics.bertscore import FLAG, BertScore, Embedded

if TYPE_CHECKING:
    import torch

__all__ = ["FUNCTION_WORDS", "Coverage"]

# Pairs whose embeddings are held at once: some hundred megabytes with MiniLM.
PAIRS_AT_ONCE = 256

# The closed classes of English: articles, pronouns, auxiliaries, prepositions, conjunctions, particles and the adverbs
# among them.  Common lists of stop words go further and drop "alone", "cry", "empty", "interest" or "nothing", which
# are what a post about depression is made of.
_CLOSED_CLASSES = """
a an the this that these those
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves one ones who whom whose which what
am is are was were be been being do does did doing done have has had having will would shall should can could may might
must ought
im ive youre youve hes shes theyre theyve dont doesnt didnt isnt arent wasnt werent wont wouldnt cant couldnt shouldnt
havent hasnt hadnt
of in on at to for from with by about into onto over under up down out off through during before after between against
as than like via per
and or but nor so yet if because while although though unless until since whether
when where why how then there here also just too very not no
"""
FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True)
class _Window:
    """A part of a text that the encoder reads at once.

    Attributes
    ----------
    ids : token ids with the special ones.
    counted : per token, whether it is of a word (not special, not punctuation) and of a content word.
    """

    ids: list[int]
    is_word: list[bool]
    is_content: list[bool]


class Coverage(BertScore):
    """Mean best cosine of the reference's content words among the explanation's words; at most 1, higher is better.

    The pairs are (explanation, reference).  An explanation or a reference without words scores 0; a reference of
    nothing but function words is averaged over those.  Parameters and errors are those of `BertScore`, without
    rescaling; the encoder's tokenizer must be a fast one, which knows where in the text a token stands.
    """

    name = "coverage"
    empty_rule: ClassVar[str] = "0"

    def __init__(
        self,
        model: str = "embedded:minilm",
        *,
        num_layers: int | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        super().__init__(model, num_layers=num_layers, batch_size=batch_size, device=device, dtype=dtype)
        self.note = ""

    @property
    def signature(self) -> Signature:
        return Signature.of(
            self.name,
            {
                "model": self.model_name,
                "weights": self._digest,
                "layer": self.num_layers,
                "words": f"content-{len(FUNCTION_WORDS)}",
                "prefix_space": "yes" if self.prefix_space else "no",
                "dtype": self.dtype,
            },
            ["torch", "transformers"],
        )

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return ("coverage",)

    def _windows(self, text: str) -> list[_Window]:
        """The text in parts of at most the encoder's length; [] without a word."""
        written = f" {text.strip()}" if self.prefix_space else text.strip()
        kinds = [0] * len(written)
        for word in _WORD.finditer(written):
            kind = 1 if _is_function_word(word.group()) else 2
            kinds[word.start() : word.end()] = [kind] * len(word.group())
        if not any(kinds):
            return []
        encoded = self._tokenizer(
            written,
            truncation=self._max_tokens is not None,
            max_length=self._max_tokens,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows = []
        for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            # Special tokens stand nowhere in the text: their offsets are (0, 0).
            of_token = [max(kinds[start:end], default=0) for start, end in offsets]
            windows.append(_Window(list(ids), [kind > 0 for kind in of_token], [kind > 1 for kind in of_token]))
        return windows

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        import torch

        # Loaded before the first batch: a model that does not fit is no reason to split batches.
        _ = self._encoder
        if not self._tokenizer.is_fast:
            raise UserError(
                f"{FLAG}: the tokenizer of {self.model_name} does not tell where in the text its tokens stand; "
                f"{self.name} needs a model with a tokenizer.json"
            )
        rows: Statistics = []
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            part = pairs[start : start + PAIRS_AT_ONCE]
            windows = {text: self._windows(text) for text in dict.fromkeys(text for pair in part for text in pair)}
            keys = {(text, at): f"{at} {text}" for text, found in windows.items() for at in range(len(found))}
            embedded: dict[str, Embedded] = {}
            for batch in self._embed({keys[text, at]: windows[text][at].ids for text, at in keys}):
                embedded.update(batch)
            with torch.inference_mode():
                for explanation, reference in part:
                    sides = [
                        [(embedded[keys[text, at]].states, window) for at, window in enumerate(windows[text])]
                        for text in (explanation, reference)
                    ]
                    rows.append((_covered(*sides) if all(sides) else 0.0,))
                    advance(1)
        return rows


def _is_function_word(word: str) -> bool:
    """Whether a word is of a closed class; "I'll" and "don't" are, "mother's" is not."""
    plain = word.casefold().replace("’", "'")
    return plain.partition("'")[0] in FUNCTION_WORDS or plain.endswith("n't")


def _covered(
    explanation: Sequence[tuple[torch.Tensor, _Window]], reference: Sequence[tuple[torch.Tensor, _Window]]
) -> float:
    """Mean best cosine of the reference's content tokens among the explanation's word tokens."""
    import torch

    told = torch.cat([states[torch.tensor(window.is_word)] for states, window in explanation])
    if not len(told):
        return 0.0  # words of which the tokenizer keeps nothing
    found, content = [], []
    for states, window in reference:
        is_word = torch.tensor(window.is_word)
        found.append((states[is_word] @ told.T).amax(dim=1))
        content.append(torch.tensor(window.is_content)[is_word])
    best, counted = torch.cat(found), torch.cat(content)
    if not len(best):
        return 0.0
    return best[counted].mean().item() if counted.any() else best.mean().item()
