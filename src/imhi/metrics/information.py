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
from typing import TYPE_CHECKING, ClassVar

from imhi.metrics.base import Metric, Signature, Statistics
from imhi.metrics.causal import CausalScorer, Tally

if TYPE_CHECKING:
    from imhi.checkpoints import Generator

__all__ = ["InformationGain"]

# Tokens kept of each text, as in BART-score; the longest IMHI query has 1,005 tokens.
MAX_TOKENS = 1024
# Between explanation and reference, in tokens of the model's own.
JOINT = "\n\n"


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
        self._scorer = CausalScorer(model, metric=self.name, device=device, dtype=dtype)
        self.batch_size = batch_size

    @property
    def signature(self) -> Signature:
        return Signature.of(
            self.name,
            {
                "model": self._scorer.model_name,
                "weights": self._scorer.digest,
                "value": "1-I(ref|gen)/I(ref)",
                "max_tokens": MAX_TOKENS,
                "dtype": self._scorer.precision,
            },
            ["torch", "transformers"],
        )

    @property
    def run_facts(self) -> dict[str, object]:
        return {"device": self._scorer.device, "batch_size": self.batch_size}

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return ("nats_alone", "nats_given", "tokens")

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        return {
            "info_gain": [1 - given / alone if alone else 0.0 for alone, given, _ in statistics],
            "info_loglik": [-given / tokens if tokens else 0.0 for _, given, tokens in statistics],
        }

    @property
    def _generator(self) -> Generator:
        return self._scorer.generator

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
        start = self._scorer.start
        sequences = [
            ([start, *([] if read is None else tokens[read] + tokens[JOINT])], tokens[told]) for read, told in wanted
        ]
        nats: dict[tuple[str | None, str], float] = {}
        tally = Tally({pair: ((None, pair[1]), pair) for pair in pairs}, advance)

        def keep(at: int, value: float) -> None:
            nats[wanted[at]] = value
            tally.finished(wanted[at])

        self._scorer.run(sequences, batch_size=self.batch_size, on_value=keep)
        return [(nats[None, told], nats[read, told], float(len(tokens[told]))) for read, told in pairs]
