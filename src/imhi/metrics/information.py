"""Information gain: how much better a causal language model foretells the reference once it has read the explanation.

Source: Egan, Vasilyev, Bohannon, "Play the Shannon Game with language models: a human-free approach to summary
evaluation", AAAI 2022.  There a summary is as good as the information about the document that it spares a reader:
I(D) - I(D | S), with I the negative log-likelihood under a language model.  Here the difference is divided by I(D), so
that long and short references compare (the paper divides by I(D) - I(D | D), which takes a third and longest pass).
With the post as reference the explanation stands for the summary, and no gold text is needed.

The mean log-probability per token of the reference, given the explanation, is reported beside it: BART-score's
formula (`imhi.metrics.bartscore`) with a causal model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from imhi.batching import padded, plan_token_batches, run_split
from imhi.checkpoints import EMBEDDED, load_generator, locate_generator
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.devices import pick_dtype
from imhi.errors import UserError
from imhi.metrics.base import Metric, Signature, Statistics, digest_of
from imhi.talk import say

if TYPE_CHECKING:
    from imhi.checkpoints import Generator

__all__ = ["InformationGain"]

# Tokens kept of each text, as in BART-score; the longest IMHI query has 1,005 tokens.
MAX_TOKENS = 1024
# Between explanation and reference, in tokens of the model's own.
JOINT = "\n\n"
# Padded tokens in a batch; the logits of all of them are held at once (49,152 float32 a token for SmolLM2).
CPU_TOKENS, GPU_TOKENS = 1024, 16384


class InformationGain(Metric):
    """The share of the reference's information that the explanation gives away; at most 1, higher is better.

    Row values are ``info_gain`` = 1 - I(reference | explanation) / I(reference), below 0 where the explanation
    misleads the model, and ``info_loglik`` = -I(reference | explanation) / tokens, natural logarithm, below 0.  The
    pairs are (explanation, reference); a reference without tokens scores 0 in both.

    Parameters
    ----------
    model : a causal model: folder, GGUF file, hub id or ``embedded:smollm2``.
    batch_size : sequences in a batch at most; None: no limit but padded tokens, as suits the device.
    device, dtype : where and in what the model runs; log-probabilities are taken in float32 and added in float64.

    Raises
    ------
    UserError
        No such model, not a causal one, one without a token that can start a text.
    """

    name = "info_gain"
    lowest = None
    highest = 1.0
    empty_rule: ClassVar[str] = "what the model gives for a reference behind a mere line break"

    def __init__(
        self,
        model: str = "embedded:smollm2",
        *,
        batch_size: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        self.spec = locate_generator(model)
        if self.spec.kind != "causal":
            raise UserError(f"{self.name}: {model} is an encoder-decoder; give a causal model, or use bart_score")
        self.model_name = model if model in EMBEDDED else self.spec.folder.name
        self.batch_size = batch_size
        self.device = device
        self.dtype = str(pick_dtype(dtype, device)).removeprefix("torch.")

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.spec.identity()["model_files"])[7:19]

    @property
    def signature(self) -> Signature:
        return Signature.of(
            self.name,
            {
                "model": self.model_name,
                "weights": self._digest,
                "value": "1-I(ref|gen)/I(ref)",
                "max_tokens": MAX_TOKENS,
                "dtype": self.dtype,
            },
            ["torch", "transformers"],
        )

    @property
    def run_facts(self) -> dict[str, object]:
        return {"device": self.device, "batch_size": self.batch_size}

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return ("nats_alone", "nats_given", "tokens")

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        return {
            "info_gain": [1 - given / alone if alone else 0.0 for alone, given, _ in statistics],
            "info_loglik": [-given / tokens if tokens else 0.0 for _, given, tokens in statistics],
        }

    @cached_property
    def _generator(self) -> Generator:
        generator = load_generator(self.spec, device=self.device, dtype=pick_dtype(self.dtype, self.device))
        if self.device == "cpu":
            keep_freed_memory()
            pack_linears(generator.model)
        return generator

    @cached_property
    def _start(self) -> int:
        """The token that begins a text."""
        tokenizer = self._generator.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if start is None:
            raise UserError(f"{self.name}: the tokenizer of {self.model_name} has no token that begins a text")
        return int(start)

    def _tokens(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Text → its token ids, none added."""
        distinct = list(dict.fromkeys(texts))
        room = min(MAX_TOKENS, (self._generator.context or 1 << 30) // 2 - 8)
        encoded = self._generator.tokenizer(distinct, add_special_tokens=False)["input_ids"]
        return {text: ids[:room] for text, ids in zip(distinct, encoded, strict=True)}

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        tokens = self._tokens([JOINT, *(text for pair in pairs for text in pair)])
        # None stands for "nothing read before": once per reference, however many explanations it has.
        wanted = list(dict.fromkeys(case for read, told in pairs for case in ((None, told), (read, told))))
        sequences = [
            ([self._start, *([] if read is None else tokens[read] + tokens[JOINT])], tokens[told])
            for read, told in wanted
        ]
        nats: dict[tuple[str | None, str], float] = {}
        lacking = {pair: {(None, pair[1]), pair} for pair in pairs}
        waiting: dict[tuple[str | None, str], list[tuple[str, str]]] = {}
        for pair, cases in lacking.items():
            for case in cases:
                waiting.setdefault(case, []).append(pair)

        def on_split(size: int) -> None:
            say(f"{self.name}: {size} sequences did not fit in memory; going on with {(size + 1) // 2}")

        budget = CPU_TOKENS if self.device == "cpu" else GPU_TOKENS
        lengths = [len(read) + len(told) for read, told in sequences]
        for batch in plan_token_batches(lengths, budget, self.batch_size):
            for part, found in run_split(batch, lambda at: self._nats([sequences[i] for i in at]), on_split=on_split):
                for at, value in zip(part, found, strict=True):
                    nats[wanted[at]] = value
                    for pair in waiting[wanted[at]]:
                        lacking[pair].discard(wanted[at])
                        advance(not lacking[pair])
        return [(nats[None, told], nats[read, told], float(len(tokens[told]))) for read, told in pairs]

    def _nats(self, sequences: Sequence[tuple[list[int], list[int]]]) -> list[float]:
        """-log P(told | read) of each (read, told), shape (sequences,)."""
        import torch

        pad: Any = self._generator.tokenizer.pad_token_id
        ids, mask = padded([[*read, *told] for read, told in sequences], pad)
        with torch.inference_mode():
            logits = self._generator.model(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), use_cache=False
            ).logits
            found = []
            for row, (read, told) in enumerate(sequences):
                # The logits of a position foretell the next one.
                chosen = logits[row, len(read) - 1 : len(read) - 1 + len(told)].float().log_softmax(dim=-1)
                target = torch.tensor(told, dtype=torch.long, device=chosen.device)[:, None]
                found.append(-chosen.gather(1, target).double().sum().item())
        return found
