"""Write the model card of the shipped adapter: docs/responder.md and docs/responder-training.svg.

    python tools/make_model_card.py --run RUN --data_root imhi_data  # counts the failures of a full run of the adapter
    python tools/make_model_card.py                                  # writes card and curves
    python tools/make_model_card.py --check                          # exit 1 where they say something else

The first command needs a run with its texts and the posts, and writes docs/results/failures.json: counts, no texts.  The
card is made of that, of the adapter's training record and of the kept run docs/results/adapter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from imhi import __version__
from imhi.benchmark import DATASETS
from imhi.data import write_text_atomically
from imhi.errors import UserError, run_main
from imhi.failures import count_failures
from imhi.report.figures import figures_of, round_steps
from imhi.results import data_root_of, read_results
from imhi.rows import RULE, RunResults
from imhi.talk import say
from imhi.training.card import markdown_table
from imhi.training.responder.rows import REASONS

ROOT = Path(__file__).parents[1]
RECORD = Path("src", "imhi", "responders", "smollm2", "responder.json")
ADAPTER = Path("docs", "results", "adapter")
FAILURES = Path("docs", "results", "failures.json")
CARD, CURVES = Path("docs", "responder.md"), Path("docs", "responder-training.svg")
RESAMPLES = 2000
LICENCE = "apache-2.0"
MOST_LABELS = 2


# --- failures.json ----------------------------------------------------------------------------------------------------


def failures_of(run: RunResults) -> str:
    """The text of failures.json: the counts, and what tells which answers they are of."""
    if run.on_samples:
        raise UserError(f"{run.folder}: made-up sample rows; the card is about the released ones")
    for one in run.datasets.values():
        if len(one) != one.dataset.released_test_rows:
            raise UserError(f"{run.folder}: {one.name} has {len(one)} rows of {one.dataset.released_test_rows}")
    document = {**count_failures(run), "imhi": __version__, "answers": _identity(run)}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _identity(run: RunResults) -> dict[str, Any]:
    """Rows, labels by rule and lengths: what a run kept without texts still tells of its answers."""
    return {
        name: {
            "file_digest": one.file_digest,
            "unparsed": one.labels[RULE].predicted.count(None),
            "words": sum(one.answer_words),
        }
        for name, one in run.datasets.items()
    }


# --- parts of the card ------------------------------------------------------------------------------------------------


def percent(part: float, of: float) -> str:
    return f"{100 * part / of:.1f}" if of else "–"


def number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def ordered(found: Mapping[str, Any]) -> dict[str, Any]:
    """By the table of datasets."""
    return {name: found[name] for name in DATASETS if name in found}


def data_table(record: Mapping[str, Any]) -> str:
    rows = record["rows"]
    left_out = rows["left_out"]
    reasons = [reason for reason in REASONS if any(left_out.get(reason, {}).values())]
    named = {name for of in left_out.values() for name in of} | set(rows["training"])
    lines = [
        [
            name,
            "made up" if name in rows["made_up"] else "released",
            f"{rows['training'].get(name, 0):,}",
            f"{rows['validation'].get(name, 0):,}",
            f"{rows['drawn_per_epoch'].get(name, 0):,}",
            *(f"{left_out[reason].get(name, 0):,}" for reason in reasons),
        ]
        for name in DATASETS
        if name in named
    ]
    headers = ["set", "rows are", "for training", "for validation", "drawn an epoch"]
    return markdown_table([*headers, *(f"left out: {REASONS[reason]}" for reason in reasons)], lines)


def data_notes(record: Mapping[str, Any]) -> str:
    """What the table does not say: where rows are made up, and where the larger of two files was not at hand."""
    rows = record["rows"]
    made_up = [name for name in DATASETS if name in rows["made_up"]]
    notes = []
    if made_up:
        notes.append(
            f"For {', '.join(made_up)} no training files are released. Their rows were written by the toolkit's authors, "
            "without a look at the test posts; they teach the questions and the wording of the labels, and little else."
        )
    only = [
        name
        for name in DATASETS
        if name in rows["training"]
        and name not in rows["made_up"]
        and not any(path.endswith(f"/{name}/train.csv") for path in record["data"])
    ]
    if only and record["recipe"]["form"] == "instruction":
        notes.append(
            f"Of {', '.join(only)} the validation file alone was at hand; a tenth of its posts is kept for validation."
        )
    return " ".join(notes)


def recipe_table(record: Mapping[str, Any]) -> str:
    recipe, tokens = record["recipe"], record["tokens"]
    versions = {"imhi": record["environment"]["imhi"], **record["environment"]["libraries"]}
    worded = "in the chat template" if recipe["chat_template"] else "raw, as the benchmark words them"
    told = {
        "adapter": f"LoRA on every linear layer, rank {recipe['rank']}, alpha {recipe['alpha']}, dropout "
        f"{recipe['dropout']:g}",
        "prompts": f"{recipe['form']} form, {worded}",
        "loss": f"on the answer alone; a token of the label's sentence weighs {recipe['head_weight']:g}, one of the "
        "explanation 1",
        "optimiser": f"AdamW, peak learning rate {recipe['learning_rate']:g}, warm-up {100 * recipe['warmup']:g} % of the "
        f"steps, then a cosine to 0; weight decay {recipe['weight_decay']:g}, gradient norm at most {recipe['clip']:g}",
        "mixture": f"share of a set ~ rows^(1/{recipe['temperature']:g})",
        "length": f"{record['steps']:,} of {record['planned_steps']:,} planned steps of {recipe['batch_size']} rows, "
        f"{recipe['epochs']} epochs; at most {recipe['max_tokens']:,} tokens a row ({tokens['rows_cut']:,} rows cut)",
        "tokens planned": f"{tokens['prompt'] + tokens['answer']:,}, of which {tokens['answer']:,} in answers",
        "time": f"{record['seconds'] / 3600:.1f} hours, looks at validation rows included",
        "machine": f"{record['device']}, {record['dtype']}, {record['threads']} threads",
        "weights kept": f"step {record['best_step']:,}, the best {recipe['best_by']} on validation rows",
        "seed": str(recipe["seed"]),
        "software": ", ".join(f"{name} {versions[name]}" for name in ("imhi", "torch", "transformers", "peft")),
    }
    return markdown_table(["", ""], [[name, text] for name, text in told.items()])


def bias_table(failures: Mapping[str, Any]) -> str:
    lines = []
    for name, counts in ordered(failures["datasets"]).items():
        bias = counts["labels"]
        rows, parsed = sum(bias["gold"].values()), sum(bias["parsed"].values())
        # The labels whose share is furthest from gold's.
        apart = sorted(
            bias["gold"], key=lambda label: -abs(bias["gold"][label] / rows - bias["parsed"][label] / max(parsed, 1))
        )
        shown = [
            f"{label} {percent(bias['gold'][label], rows)} → {percent(bias['parsed'][label], parsed)}"
            for label in apart[:MOST_LABELS]
        ]
        distance = "–" if bias["distance"] is None else f"{bias['distance']:.3f}"
        lines.append(
            [name, f"{rows:,}", f"{bias['unparsed']:,}", "; ".join(shown), distance, bias["one_label_only"] or "no"]
        )
    headers = ["set", "rows", "unparsed", "share in gold → in parsed answers, % (largest differences)", "distance"]
    return markdown_table([*headers, "one label only"], lines)


# Title → (count, what it is of).
TEXT_FAILURES = {
    "invented quotations": ("quotations_invented", "quotations"),
    "symptom without a hint": ("with_unfounded_symptom", "explanations"),
    "against the label": ("contradictions", "explanation_labels"),
    "12 words copied": ("copying", "explanations"),
    "same for another post": ("repeated", "explanations"),
    "a sentence twice": ("looping", "explanations"),
}


def text_table(failures: Mapping[str, Any]) -> str:
    """A line a set; every count with what it is of, and the same of the gold texts of these rows."""
    lines = []
    for name, counts in {**ordered(failures["datasets"]), "**all**": failures["all"]}.items():
        cells = [
            " / ".join(f"{counts[kind][key]:,} of {counts[kind][of]:,}" for kind in ("answers", "golds"))
            for key, of in TEXT_FAILURES.values()
        ]
        lines.append([name, *cells])
    return markdown_table(["set", *TEXT_FAILURES], lines)


def symptom_table(failures: Mapping[str, Any]) -> str:
    answers, golds = failures["all"]["answers"], failures["all"]["golds"]
    lines = [
        [name, *(f"{of['symptoms_unfounded'][name]:,} of {of['symptoms'][name]:,}" for of in (answers, golds))]
        for name in sorted(answers["symptoms"], key=lambda name: -answers["symptoms_unfounded"][name])
        if answers["symptoms"][name] or golds["symptoms"][name]
    ]
    return markdown_table(["symptoms", "answers", "gold texts"], lines)


def ends_table(failures: Mapping[str, Any]) -> str:
    lines = [
        [
            name,
            *(number(counts["answers"][key]) for key in ("rows", "empty", "without_reasoning")),
            *(number(counts[key]) for key in ("cut_off", "failed")),
        ]
        for name, counts in {**ordered(failures["datasets"]), "**all**": failures["all"]}.items()
    ]
    return markdown_table(
        ["set", "answers", "empty", "no `Reasoning:`", "cut off at the length limit", "failed"], lines
    )


def aspect_table(run: RunResults, *, resamples: int = RESAMPLES) -> str:
    """The questions of the sets that ask several; labels by rule, intervals over posts as in docs/results.md."""
    lines = []
    for name, whole in run.datasets.items():
        for aspect in whole.dataset.aspects:
            if not aspect:
                continue
            part = whole.only([at for at, asked in enumerate(whole.aspects or []) if asked == aspect])
            if not len(part):
                raise UserError(
                    f"{run.folder}: {name} does not tell which question a row asks; keep it with --data_root"
                )
            alone = replace(run, datasets={name: replace(part, scores={})})
            labels = figures_of(alone, resamples=resamples).datasets[name].by_source[RULE]
            said = part.labels[RULE].predicted
            f1, accuracy = (
                f"{100 * value.value:.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]"
                for value in (labels.weighted_f1, labels.accuracy)
            )
            shares = [
                percent(part.gold.count("yes"), len(part)),
                percent(said.count("yes"), len(said) - said.count(None)),
            ]
            lines.append([name, aspect, f"{len(part):,}", *shares, f1, accuracy, f"{labels.unparsed:,}"])
    headers = ["set", "question about", "rows", "yes in gold, %", "yes in parsed answers, %", "weighted F1", "accuracy"]
    return markdown_table([*headers, "unparsed"], lines)


# --- curves -----------------------------------------------------------------------------------------------------------

STYLE = """
  .page { fill: #ffffff } text { font: 12px system-ui, sans-serif; fill: #1d2126 } .heading { font-weight: 600 }
  .small { font-size: 11px; fill: #5b6570 } .grid { stroke: #d9dde1; stroke-width: 1 } .end { text-anchor: end }
  .middle { text-anchor: middle } .curve { fill: none; stroke-width: 1.6 } .best { stroke: #5b6570; stroke-dasharray: 3 3 }
  .a { stroke: #9db8c4 } .b { stroke: #1f6f8b } .c { stroke: #b2552a } .dot.b { fill: #1f6f8b } .dot.c { fill: #b2552a }
  @media (prefers-color-scheme: dark) {
    .page { fill: #15181c } text { fill: #e6e8ea } .small { fill: #9aa4ae } .grid { stroke: #343b43 }
    .a { stroke: #4d6470 } .b { stroke: #6fb6cf } .c { stroke: #e08a5c } .dot.b { fill: #6fb6cf } .dot.c { fill: #e08a5c }
  }
"""
WIDTH, HEIGHT, PANEL, LEFT, TOP, BASE = 820, 300, 410, 52, 48, 248


def series_of(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the entries with a key, by step; a step that was done again after a resume counts once."""
    return sorted({int(entry["step"]): float(entry[key]) for entry in history if key in entry}.items())


def curves(record: Mapping[str, Any]) -> str:
    """Losses, and weighted F1 of the validation rows, by step, as an SVG document."""
    history = record["history"]
    losses = {
        "a": ("training loss", series_of(history, "loss")),
        "b": ("validation loss", series_of(history, "eval_loss")),
    }
    f1 = {"c": ("weighted F1, %", [(step, 100 * value) for step, value in series_of(history, "eval_weighted_f1")])}
    steps = max(record["steps"], 1)
    parts = [
        _panel(losses, 0, "Loss", steps, record["best_step"]),
        _panel(f1, PANEL, "Weighted F1 on validation rows, %", steps, record["best_step"]),
    ]
    said = f"Training loss, validation loss and validation weighted F1 over {steps:,} steps; kept: step {record['best_step']:,}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(said)}">\n<style>{STYLE}</style>\n'
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(
    series: Mapping[str, tuple[str, list[tuple[int, float]]]], left: int, title: str, steps: int, best: int
) -> str:
    highest = max((value for _, points in series.values() for _, value in points), default=1.0) or 1.0
    right, start = left + PANEL - 20, left + LEFT

    def x(step: float) -> float:
        return round(start + (right - start) * step / steps, 1)

    def y(value: float) -> float:
        return round(BASE - (BASE - TOP) * value / highest, 1)

    parts = [f'<text class="heading" x="{start}" y="20">{escape(title)}</text>']
    for value in _ticks(highest):
        parts.append(f'<path class="grid" d="M{start} {y(value)}H{right}"/>')
        parts.append(f'<text class="small end" x="{start - 6}" y="{y(value) + 4}">{value:g}</text>')
    for step in _ticks(steps):
        parts.append(f'<text class="small middle" x="{x(step)}" y="{BASE + 18}">{step:,g}</text>')
    parts.append(f'<path class="best" d="M{x(best)} {TOP}V{BASE}"><title>kept: step {best:,}</title></path>')
    for number_, (style, (name, points)) in enumerate(series.items()):
        line = "L".join(f"{x(step)} {y(value)}" for step, value in points)
        parts.append(f'<path class="curve {style}" d="M{line}"/>' if points else "")
        # Looks are few: each is a point that can be read off.
        for step, value in points if style != "a" else ():
            dot = f'<circle class="dot {style}" cx="{x(step)}" cy="{y(value)}" r="2.5">'
            parts.append(f"{dot}<title>{escape(name)}, step {step:,}: {value:.3f}</title></circle>")
        if len(series) > 1:
            at = start + 130 * number_
            parts.append(f'<path class="curve {style}" d="M{at} 34h16"/>')
            parts.append(f'<text class="small" x="{at + 22}" y="38">{escape(name)}</text>')
    parts.append(f'<text class="small end" x="{right}" y="{BASE + 34}">step; dashed: the weights kept</text>')
    return "\n".join(part for part in parts if part)


def _ticks(highest: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to `highest`, at most `most` steps apart."""
    scale = 1 if highest >= most else 1000
    step = next(step for step in round_steps() if scale * highest / step <= most)
    return [step * at / scale for at in range(int(scale * highest / step) + 1)]


# --- the card ---------------------------------------------------------------------------------------------------------


def card(record: Mapping[str, Any], failures: Mapping[str, Any], run: RunResults, *, resamples: int = RESAMPLES) -> str:
    """The text of the card."""
    recipe, every = record["recipe"], failures["all"]
    only = every["labels"]["one_label_only"]
    one_label = f"One label only: {', '.join(only)}." if only else "No set gets one label only."
    copied = {
        kind: "–" if every[kind]["copied_share"] is None else f"{100 * every[kind]['copied_share']:.1f} %"
        for kind in ("answers", "golds")
    }
    return f"""---
license: {LICENCE}
base_model: {record["base_hub"]}
library_name: peft
---
<!-- written by tools/make_model_card.py -->
# The IMHI responder that ships with the toolkit

A LoRA adapter for `{record["base_hub"]}` that answers the questions of the IMHI benchmark about a post with a label and an
explanation. For research on language models, **not for clinical use**.

## Intended use

To try the toolkit, for smoke tests of a pipeline, and as a small baseline that larger responders should beat. It was trained
and measured on the prompts of the IMHI benchmark only; it is no chat partner.

## Not for clinical use

No diagnosis, no triage, no decision about a person, no watching of anybody's posts. The model labels text and knows nothing
of who wrote it. Its explanations read well also where they are wrong, and tell of symptoms that no post mentions; counts are
below.

## Training data

{data_table(record)}

{data_notes(record)}

The explanations were written by ChatGPT (gpt-3.5-turbo) for the benchmark: the model imitates that model's explanations,
errors included. Posts of test and expert files were left out. `responder.json` has the SHA-256 of every file read.

## Recipe

{recipe_table(record)}

![Losses and validation F1 by step]({CURVES.name})

Validation F1 is of at most {recipe["asked_rows"]} answered rows a set: it chooses the weights and is no result.

## Results

All released test rows, beside the base model and published figures: [results.md](results.md).

### Question by question

{aspect_table(run, resamples=resamples)}

Labels by rule; an unparsed answer is wrong. Per cent, with 95 % bootstrap intervals over posts ({resamples:,} resamples).

## Known failures

Counted over {every["answers"]["rows"]:,} answers to the released test posts by `imhi.failures`, which defines each count.
Gold explanations come from a language model too: the same counts of the gold texts of the same rows are the yardstick.

### Label bias

{bias_table(failures)}

Distance: total variation between the labels of gold and of parsed answers, 0 (equal) to 1. {one_label}

### Explanations

Answers / gold texts:

{text_table(failures)}

A quotation, of at least three words between double quotation marks, is invented where these do not stand in the post. A
symptom has no hint where the post has none of a wide set of words that could have given rise to it
(`src/imhi/symptoms.json`); this is a proxy, which matches words and not meanings. Against the label: the explanation's first
or last sentence states another label, of those where one can be read. Copied words are a run of the post outside quotation
marks; {copied["answers"]} of an answer's explanation (mean; gold {copied["golds"]}) stand in such runs of at least 8.

### Symptoms without a hint in the post

{symptom_table(failures)}

Explanations without a hint, of those that assert the symptom; all sets.

### How answers end

{ends_table(failures)}

## Limitations

- The posts are from a few forums and short-message services, mostly English; figures on others may be lower.
- The base is small: the model goes by cues in the words more than by what a text means.
- Sets without released training files are answered from made-up examples and from what other sets taught.
- Gold labels are annotators' readings of posts and no diagnoses.
"""


# --- the documents ----------------------------------------------------------------------------------------------------


def documents(root: Path, *, resamples: int = RESAMPLES) -> dict[Path, str]:
    """Path → text of card and curves.  Raises UserError where a source is missing or is of other answers."""
    remedies = {
        RECORD: "train the adapter with `imhi train responder`",
        FAILURES: "make it with `python tools/make_model_card.py --run RUN --data_root ROOT`",
    }
    for path, remedy in remedies.items():
        if not (root / path).is_file():
            raise UserError(f"{root / path}: no such file; {remedy}")
    if not (root / ADAPTER).is_dir():
        raise UserError(f"{root / ADAPTER}: no such folder; `imhi keep adapter --out {ADAPTER.parent}` makes it")
    record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    failures = json.loads((root / FAILURES).read_text(encoding="utf-8"))
    run = read_results(root / ADAPTER)
    if failures["answers"] != _identity(run):
        raise UserError(f"{root / FAILURES}: of other answers than {root / ADAPTER}; {remedies[FAILURES]}")
    return {CARD: card(record, failures, run, resamples=resamples), CURVES: curves(record)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a full run of the adapter: count its failures, no more")
    parser.add_argument("--data_root", help="the data that it was generated from (default: as the run recorded)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file would change")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    arguments = parser.parse_args(argv)
    if arguments.run is not None:
        run = read_results(arguments.run, data_root=data_root_of(arguments.run, arguments.data_root))
        wanted = {FAILURES: failures_of(run)}
        (arguments.root / FAILURES).parent.mkdir(parents=True, exist_ok=True)
    else:
        wanted = documents(arguments.root)
    different = []
    for path, text in wanted.items():
        at = arguments.root / path
        if not at.exists() or at.read_text(encoding="utf-8") != text:
            different.append(path)
            if not arguments.check:
                write_text_atomically(at, text)
            say(f"{path}: {'differs from its sources' if arguments.check else 'written'}")
    return 1 if arguments.check and different else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
