"""GPT-score: the mean log-probability per token that a causal language model gives one text of a pair after the other.

Definition: Fu, Ng, Jiang, Liu, "GPTScore: Evaluate as You Desire", NAACL 2024, with uniform weights, and its directions
and instructions (`imhi.metrics.gpt_templates`).  By default log P(gold | generated), as BART-score has it here.  The
code that the published IMHI figures are from (MentalLLaMA's ``score.py`` with GPTScore's ``gpt_inference.py``) has the
other direction, log P(response | post), on the annotated rows; sends both texts with nothing between them, which is
the template "plain"; counts the last token before the scored text as one of it, and leaves the text's last token out.
Here every token of the scored text counts, and no other.

Both texts are tokenised in one go, as the model would read them.  Whether a token belongs to the scored text is told
by its place in the joined text: it does if it ends behind the boundary, so that a token across the boundary counts.
The first token of all has no log-probability and does not count; that matters only where the text that is read and the
template are empty and the tokenizer puts no token before a text.

An answer without text has no token that could be scored, and the value of no tokens, 0, would be the best of all.
Where the answer is the scored text, the text "nan" is scored in its place, here and by a server alike: what the
published ``score.py`` takes an empty answer for (it scores ``str`` of pandas' missing value).  The token that ends a
text would not do: behind a whole sentence it is more probable than a paraphrase of it, and no server tells it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import ClassVar

from imhi.errors import UserError
from imhi.metrics.base import Metric, Signature, Statistics
from imhi.metrics.causal import CausalScorer, Tally
from imhi.metrics.gpt_templates import DEFAULT_TEMPLATE, TEMPLATES
from imhi.metrics.server_logprobs import CompletionServer
from imhi.metrics.server_values import Case, ServerValues
from imhi.metrics.value_journal import KeepsValues, Unscored
from imhi.remote import check_address, read_key
from imhi.talk import say, some

__all__ = ["DEFAULT_MODEL", "DIRECTIONS", "GptScore", "parse_direction"]

DEFAULT_MODEL = "embedded:smollm2"
# --gpt_direction → as the signature has it.
DIRECTIONS = {"hypo-to-ref": "gold-given-generated", "ref-to-hypo": "generated-given-gold", "both": "both"}
# The paper's spellings, and that of a conditional probability: what a shell takes for a pipe needs quotes.
SPELLINGS = {
    "ref|hypo": "hypo-to-ref",
    "hypo->ref": "hypo-to-ref",
    "hypo|ref": "ref-to-hypo",
    "ref->hypo": "ref-to-hypo",
}
# What is scored for an answer without text.
NO_ANSWER = "nan"
# Texts tokenised at once.
CHUNK = 256


def parse_direction(text: str) -> str:
    """A key of `DIRECTIONS` for a direction as users write it; UserError on others, and on those from the source."""
    if "src" in text.lower():
        raise UserError(f"--gpt_direction {text}: a response file has no source text; choose {', '.join(DIRECTIONS)}")
    direction = SPELLINGS.get(text, text)
    if direction not in DIRECTIONS:
        raise UserError(f"--gpt_direction: {text!r} is not {', '.join(DIRECTIONS)} (or {', '.join(SPELLINGS)})")
    return direction


class _Lacking(Exception):
    """The pairs without a value, and why."""

    def __init__(self, pairs: frozenset[tuple[str, str]], reasons: list[str]):
        self.pairs, self.reasons = pairs, reasons


class GptScore(KeepsValues, Metric):
    """Mean log P(gold | generated) per token, natural logarithm: below 0, higher is better.

    Parameters
    ----------
    model : a causal model: folder, GGUF file, hub id or embedded name; None: ``embedded:smollm2``.
    api_base, api_model : in place of `model`, the URL of an OpenAI-compatible server up to ``/v1``, and the model's
        name there.
    api_key_env : name of the environment variable that holds the server's key; None: no key.
    allow_remote : whether answers and golds may be sent to a server on another machine.
    direction : "hypo-to-ref": ``gpt_score``, log P(gold | generated); "ref-to-hypo": ``gpt_score_reverse``,
        log P(generated | gold); "both": these two and ``gpt_score_mean``, their mean per row.  Spelled also as
        `parse_direction` reads it.
    template : a key of `imhi.metrics.gpt_templates.TEMPLATES`.
    batch_size : texts in a batch at most; None: no limit but padded tokens, as suits the device.
    device, dtype : where and in what the model runs; log-probabilities are taken in float32 and added in float64.

    Raises
    ------
    UserError
        No such model, not a causal one, one whose tokenizer does not tell where its tokens stand; a direction from the
        source; flags that contradict each other; an address that may not be sent to; a server that fails its test or
        ends the scoring.
    Unscored
        Rows that a server has no value for, once it was asked about all.
    """

    name = "gpt_score"
    lowest = None
    highest = 0.0
    empty_rule: ClassVar[str] = (
        "what the model gives for the gold after an empty text; where the answer is scored (generated-given-gold), what "
        f"it gives for the text {NO_ANSWER!r}; an empty gold scores 0"
    )

    def __init__(
        self,
        model: str | None = None,
        *,
        api_base: str | None = None,
        api_model: str | None = None,
        api_key_env: str | None = None,
        allow_remote: bool = False,
        direction: str = "hypo-to-ref",
        template: str = DEFAULT_TEMPLATE,
        batch_size: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        self.direction = parse_direction(direction)
        if template not in TEMPLATES:
            raise UserError(f"--gpt_template: no template {template!r}; there are {', '.join(TEMPLATES)}")
        self.template_name, self._template = template, TEMPLATES[template]
        self.batch_size = batch_size
        self._scorer: CausalScorer | None = None
        self._there: ServerValues | None = None
        self.pays = api_base is not None
        if api_base is not None:
            if model is not None:
                raise UserError("--gpt_model and --gpt_api_base name two models; leave one out")
            if not api_model:
                raise UserError("--gpt_api_base needs --gpt_api_model, the model's name on that server")
            key = read_key(api_key_env, flag="--gpt_api_key_env")
            address = check_address(
                api_base,
                allow_remote,
                "every answer and every gold text",
                flag="--gpt_api_base",
                leave="--gpt_allow_remote",
                key=key is not None,
            )
            self._there = ServerValues(CompletionServer(address, api_model, key), self._template, metric=self.name)
            return
        for flag, value in (("model", api_model), ("key_env", api_key_env)):
            if value is not None:
                raise UserError(f"--gpt_api_{flag} has no effect without --gpt_api_base; leave it out")
        if allow_remote:
            raise UserError("--gpt_allow_remote has no effect without --gpt_api_base; leave it out")
        try:
            self._scorer = CausalScorer(model or DEFAULT_MODEL, metric=self.name, device=device, dtype=dtype)
        except UserError as error:
            # `imhi.checkpoints` knows a generator's flag alone.
            raise UserError(str(error).replace("--model_path", "--gpt_model"), code=error.code) from None

    @property
    def signature(self) -> Signature:
        if self._scorer is not None:
            model = {"model": self._scorer.model_name, "weights": self._scorer.digest}
            dtype, libraries = self._scorer.precision, ["torch", "transformers"]
        else:
            assert self._there is not None
            # What the server runs under that name it does not prove.
            model = {"model": self._there.server.model, "weights": "server"}
            dtype, libraries = "server", []
        return Signature.of(
            self.name,
            {
                **model,
                "direction": DIRECTIONS[self.direction],
                "template": self.template_name,
                "words": self._template.digest,
                **({} if self.direction == "hypo-to-ref" else {"empty_answer": NO_ANSWER}),
                "dtype": dtype,
            },
            libraries,
        )

    @property
    def run_facts(self) -> dict[str, object]:
        if self._scorer is not None:
            return {"device": self._scorer.device, "batch_size": self.batch_size}
        assert self._there is not None
        return self._there.facts

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return {
            "hypo-to-ref": ("nats", "tokens"),
            "ref-to-hypo": ("nats_reverse", "tokens_reverse"),
            "both": ("nats", "tokens", "nats_reverse", "tokens_reverse"),
        }[self.direction]

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        """The direction's values per row; with "both" also their mean (the paper's average F-score)."""
        names = {"hypo-to-ref": ["gpt_score"], "ref-to-hypo": ["gpt_score_reverse"]}
        found = {
            name: [-row[2 * at] / row[2 * at + 1] if row[2 * at + 1] else 0.0 for row in statistics]
            for at, name in enumerate(names.get(self.direction, ["gpt_score", "gpt_score_reverse"]))
        }
        if self.direction == "both":
            found["gpt_score_mean"] = [sum(row) / 2 for row in zip(*found.values(), strict=True)]
        return found

    def _cases(self, pair: tuple[str, str]) -> list[Case]:
        """What is asked about a (generated, gold) pair, in the order of the statistics."""
        generated, gold = pair
        answer = generated if generated.strip() else NO_ANSWER
        return {
            "hypo-to-ref": [(generated, gold)],
            "ref-to-hypo": [(gold, answer)],
            "both": [(generated, gold), (gold, answer)],
        }[self.direction]

    def statistics(
        self, generated: Sequence[str], golds: Sequence[str], advance: Callable[[int], object] | None = None
    ) -> Statistics:
        try:
            return super().statistics(generated, golds, advance)
        except _Lacking as lacking:
            rows = [str(row) for row, pair in enumerate(zip(generated, golds, strict=True), 1) if pair in lacking.pairs]
            assert self._there is not None
            raise Unscored(
                f"{self.name}: {self._there.server.name} gave no value for {len(rows)} of {len(golds)} rows "
                f"({some(lacking.reasons, 3)}): {'row' if len(rows) == 1 else 'rows'} {some(rows)}; "
                + (
                    f"the others' values are kept in {self.journal}, and the same command asks for these alone"
                    if self.journal
                    else "score with --gpt_model"
                ),
                code=1,
            ) from None

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        needs = {pair: self._cases(pair) for pair in pairs}
        found: dict[Case, tuple[float, int]] = {
            case: (0.0, 0) for cases in needs.values() for case in cases if not case[1]
        }
        asked = list(dict.fromkeys(case for cases in needs.values() for case in cases if case[1]))
        tally = Tally({pair: [case for case in cases if case[1]] for pair, cases in needs.items()}, advance)

        def keep(case: Case, nats: float, tokens: int) -> None:
            found[case] = (nats, tokens)
            tally.finished(case)

        if self._scorer is not None:
            cut = self._run_here(asked, keep)
        else:
            assert self._there is not None
            cut, lacking = self._there.run(asked, keep, self.journal)
            if lacking:
                without = frozenset(pair for pair, cases in needs.items() if not lacking.keys().isdisjoint(cases))
                raise _Lacking(without, list(dict.fromkeys(lacking.values())))
        self.note = ""
        if cut:
            self.note = (
                f"{self.name}: {cut} of {len(asked)} texts were longer than the model takes; the beginning of the text "
                "that is read was left out there"
            )
            say(self.note)
        return [
            tuple(value for case in needs[pair] for value in (found[case][0], float(found[case][1]))) for pair in pairs
        ]

    # --- a model of this machine's ------------------------------------------------------------------------------------

    def _run_here(self, cases: list[Case], keep: Callable[[Case, float, int], object]) -> int:
        """Tell ``keep(case, nats, tokens)`` of every case; how many were cut."""
        assert self._scorer is not None
        sequences, cut = [], 0
        for start in range(0, len(cases), CHUNK):
            encoded, cut_here = self._encode(cases[start : start + CHUNK])
            sequences += encoded
            cut += cut_here
        self._scorer.run(
            sequences,
            batch_size=self.batch_size,
            on_value=lambda at, nats: keep(cases[at], nats, len(sequences[at][1])),
        )
        return cut

    def _encode(self, cases: Sequence[Case]) -> tuple[list[tuple[array[int], array[int]]], int]:
        """The token ids before the scored text and of it, shape (cases, 2), and how many cases were cut."""
        assert self._scorer is not None
        tokenizer, context = self._scorer.generator.tokenizer, self._scorer.generator.context
        if not tokenizer.is_fast:
            raise UserError(
                f"--gpt_model: the tokenizer of {self._scorer.model_name} ({type(tokenizer).__name__}) does not tell "
                "where its tokens stand in a text; a checkpoint with a tokenizer.json is needed"
            )
        encoded = tokenizer(
            [self._template.before(given) + scored for given, scored in cases],
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        found, cut = [], 0
        for (given, _), ids, offsets, added in zip(
            cases,
            encoded["input_ids"],
            encoded["offset_mapping"],
            encoded["special_tokens_mask"],
            strict=True,
        ):
            boundary = len(self._template.before(given))
            # The tokenizer's own tokens around the text are read, but not scored; those behind it are of no use.
            end = max((at + 1 for at, own in enumerate(added) if not own), default=0)
            first = next((at for at in range(end) if not added[at] and offsets[at][1] > boundary), end)
            before, scored = ids[:first], ids[first:end]
            if context is not None and end > context:
                cut += 1
                opens, closes = len(self._template.head), len(self._template.head) + len(given)
                read = [at for at in range(first) if not added[at] and opens < offsets[at][1] <= closes]
                dropped = set(read[: end - context])
                before = [token for at, token in enumerate(before) if at not in dropped]
                # Only what is scored may still be too long by itself.
                scored = scored[: max(0, context - len(before))]
            if not before:
                before, scored = scored[:1], scored[1:]
            found.append((array("q", before), array("q", scored)))
        return found, cut
