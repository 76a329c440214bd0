"""Write the results of the three kept runs into README.md and docs/results.md.

    imhi keep base-zero-shot base-few-shot adapter --out docs/results   # after imhi run; needs the posts
    python tools/make_results_table.py          # the tables between the markers of both documents
    python tools/make_results_table.py --check  # exit 1 where a document says something else

Figures and intervals are those of ``imhi report`` and ``imhi compare`` on the same folders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imhi.benchmark import DATASETS
from imhi.comparable import comparable_datasets
from imhi.comparison import compare_runs
from imhi.data import write_text_atomically
from imhi.errors import UserError, run_main
from imhi.fetch import published_files
from imhi.report.figures import DatasetFigures, LabelFigures, RunFigures, figures_of
from imhi.report.published import CITATION, NOTE, PUBLISHED
from imhi.report.setting import facts_of
from imhi.results import CLASSIFIER, RULE, read_results
from imhi.rows import RunResults
from imhi.statistics import Interval
from imhi.talk import say
from imhi.training.card import markdown_table

ROOT = Path(__file__).parents[1]
FOLDER = Path("docs", "results")
BEGIN, END = "<!-- results: tools/make_results_table.py -->", "<!-- end of results -->"
RESAMPLES = 2000

# Folder of the kept run → what the tables call it.
RUNS = {"base-zero-shot": "base, zero-shot", "base-few-shot": "base, few-shot", "adapter": "our adapter"}
BASE, OURS = "base-zero-shot", "adapter"
SCORES = {
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "bert_f1": "BERTScore F1",
    "bart_score": "BART-score",
}
SETTINGS = (
    *("model", "adapter", "prompts", "examples", "decoding", "length limit", "engine", "dtype", "device", "toolkit"),
)
CHATGPT = next(row for row in PUBLISHED if row.system.startswith("ChatGPT"))

# The bars of the project's plan.
MOST_UNPARSED, LEAST_GAIN, LEAST_SETS = 0.02, 20.0, 4

NONE = "–"


@dataclass(frozen=True)
class Results:
    """The kept runs and their figures, by folder name; `trained` are the sets with released training files."""

    runs: Mapping[str, RunResults]
    figures: Mapping[str, RunFigures]
    resamples: int
    trained: tuple[str, ...]

    @property
    def called(self) -> dict[str, str]:
        """What the tables call each run."""
        return {run: RUNS[run] for run in self.runs}

    @property
    def sets(self) -> list[str]:
        return list(self.figures[BASE].datasets)

    @property
    def groups(self) -> list[tuple[str, list[str]]]:
        """Name and sets: those trained on, those not, and all."""
        trained = [name for name in self.sets if name in self.trained]
        untrained = [name for name in self.sets if name not in self.trained]
        return [("trained on", trained), ("not trained on", untrained), ("all", self.sets)]

    def by_rule(self, run: str, name: str) -> LabelFigures:
        return self.figures[run].datasets[name].by_source[RULE]

    def mean(self, run: str, names: Sequence[str]) -> float:
        """Plain mean over sets of the weighted F1 by rule, in per cent."""
        return sum(100 * self.by_rule(run, name).weighted_f1.value for name in names) / len(names)

    def unparsed(self, run: str, names: Sequence[str]) -> tuple[int, int]:
        """Unparsed rows and all rows of some sets."""
        rows = sum(self.figures[run].datasets[name].counts.rows for name in names)
        return sum(self.by_rule(run, name).unparsed for name in names), rows


def read_runs(folder: Path, *, resamples: int = RESAMPLES) -> Results:
    """Read the kept runs of `RUNS` below `folder`.

    Raises UserError where the base's or the adapter's is missing, or one answers other rows, lacks rows of the released
    sets, or is of sample rows.
    """
    absent = [name for name in (BASE, OURS) if not (folder / name).is_dir()]
    if absent:
        raise UserError(
            f"{folder}: no {', '.join(absent)}; `imhi keep {' '.join(absent)} --out {folder}` puts them there"
        )
    runs = {name: read_results(folder / name) for name in RUNS if (folder / name).is_dir()}
    for name, run in runs.items():
        if run.on_samples:
            raise UserError(f"{folder / name}: made-up sample rows, which no table of results is made of")
        for one in run.datasets.values():
            if len(one) != one.dataset.released_test_rows:
                raise UserError(f"{folder / name}: {one.name} has {len(one)} rows of {one.dataset.released_test_rows}")
            if len(one.dataset.aspects) > 1 and not all(one.aspects or [""]):
                raise UserError(
                    f"{folder / name}: {one.name} does not tell which question a row asks; keep it with --data_root"
                )
        shared = comparable_datasets(runs[BASE], run)
        if shared != list(runs[BASE].datasets) or len(shared) != len(run.datasets):
            raise UserError(f"{folder / name}: {', '.join(run.datasets)}; {BASE} has {', '.join(runs[BASE].datasets)}")
    folders = [path.split("/")[2] for path in published_files() if path.startswith("train_data/instruction_data/")]
    figures = {name: figures_of(run, RUNS[name], resamples=resamples) for name, run in runs.items()}
    return Results(runs, figures, resamples, tuple(name for name in DATASETS if name in folders))


# --- cells ------------------------------------------------------------------------------------------------------------


def cell(interval: Interval) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def share(part: int, of: int) -> str:
    return f"{100 * part / of:.1f}"


def classifier_cell(figures: DatasetFigures) -> str:
    labels = figures.by_source.get(CLASSIFIER)
    return NONE if labels is None else cell(labels.weighted_f1)


def published_mean(values: Mapping[str, float], names: Sequence[str]) -> str:
    return f"{sum(values[name] for name in names) / len(names):.1f}"


# --- README -----------------------------------------------------------------------------------------------------------


def overview(found: Results) -> str:
    """A line a set: weighted F1 by rule and unparsed share of every run, and the published values."""
    headers = ["test set", "rows"]
    headers += [text for run in found.runs for text in (f"{RUNS[run]}: weighted F1", "unparsed, %")]
    headers += [row.system for row in PUBLISHED]
    lines = []
    for group, names in found.groups:
        for name in names if group != "all" else ():
            rows = found.figures[BASE].datasets[name].counts.rows
            line = [name, f"{rows:,}"]
            for run in found.runs:
                labels = found.by_rule(run, name)
                line += [cell(labels.weighted_f1), share(labels.unparsed, rows)]
            lines.append([*line, *(f"{row.weighted_f1[name]:.1f}" for row in PUBLISHED)])
        if names:
            lines.append(_mean_line(found, f"mean of {len(names)}{'' if group == 'all' else ', ' + group}", names))
    return markdown_table(headers, lines)


def _mean_line(found: Results, title: str, names: Sequence[str]) -> list[str]:
    line = [title, f"{found.unparsed(BASE, names)[1]:,}"]
    for run in found.runs:
        line += [f"{found.mean(run, names):.1f}", share(*found.unparsed(run, names))]
    line += [published_mean(row.weighted_f1, names) for row in PUBLISHED]
    return [f"**{text}**" for text in line]


def caption(found: Results) -> str:
    untrained = ", ".join(found.groups[1][1])
    return (
        f"Weighted F1 in per cent of the labels by rule, with 95 % bootstrap intervals over posts ({found.resamples:,} "
        f"resamples); an unparsed answer counts as wrong. {untrained} have no released training files. Unparsed beside a mean: "
        "of all rows of its sets. The last three columns are published values, from a secondary copy: other prompts, "
        "decoding and label readers, so context and no comparison."
    )


def for_readme(found: Results) -> str:
    return f"{overview(found)}\n\n{caption(found)}"


# --- docs/results.md --------------------------------------------------------------------------------------------------


def settings(found: Results) -> str:
    """What made each run's answers, a column a run."""
    facts = {run: dict(facts_of(results)) for run, results in found.runs.items()}
    rows = [
        [name, *(facts[run].get(name, NONE) for run in found.runs)]
        for name in SETTINGS
        if any(name in each for each in facts.values())
    ]
    return markdown_table(["", *(RUNS[run] for run in found.runs)], rows)


def labels_table(found: Results) -> str:
    """Accuracy, weighted F1 by rule and by classifier and the unparsed share, a line a set and model."""
    lines = []
    for name in [name for _, names in found.groups[:2] for name in names]:
        for run, called in found.called.items():
            figures = found.figures[run].datasets[name]
            labels = figures.by_source[RULE]
            lines.append([name, f"{figures.counts.rows:,}", called, *_label_cells(figures, labels)])
        lines += [
            [name, "", f"{row.system} (published)", "", f"{row.weighted_f1[name]:.1f}", "", ""] for row in PUBLISHED
        ]
    headers = [
        "test set",
        "rows",
        "model",
        "accuracy",
        "weighted F1 by rule",
        "weighted F1 by classifier",
        "unparsed, %",
    ]
    return markdown_table(headers, lines)


def _label_cells(figures: DatasetFigures, labels: LabelFigures) -> list[str]:
    unparsed = share(labels.unparsed, figures.counts.rows)
    return [cell(labels.accuracy), cell(labels.weighted_f1), classifier_cell(figures), unparsed]


def scores_table(found: Results) -> str:
    """Scores of the whole answers against the golds and the answers' mean length, a line a set and model."""
    shown = [
        name
        for name in SCORES
        if any(name in each.scores for figures in found.figures.values() for each in figures.datasets.values())
    ]
    lines = []
    for name in [name for _, names in found.groups[:2] for name in names]:
        for run, called in found.called.items():
            scores = found.figures[run].datasets[name].scores
            tokens = found.runs[run].datasets[name].new_tokens
            values = [f"{scores[each].value.value:.4f}" if each in scores else NONE for each in shown]
            lines.append([name, called, *values, f"{sum(tokens) / len(tokens):.1f}" if tokens else NONE])
    return markdown_table(["test set", "model", *(SCORES[name] for name in shown), "mean new tokens"], lines)


def aspects_table(found: Results) -> str:
    """The questions of the sets that ask several, a line a question and model."""
    lines = []
    for name in found.sets:
        for aspect in DATASETS[name].aspects:
            if not aspect:
                continue
            for run, called in found.called.items():
                whole = found.runs[run].datasets[name]
                part = whole.only([at for at, asked in enumerate(whole.aspects or []) if asked == aspect])
                labels_only = replace(found.runs[run], datasets={name: replace(part, scores={})})
                figures = figures_of(labels_only, resamples=found.resamples).datasets[name]
                yes = share(part.gold.count("yes"), len(part))
                cells = _label_cells(figures, figures.by_source[RULE])
                lines.append([name, aspect, f"{len(part):,}", yes, called, *cells])
    headers = ["test set", "question about", "rows", "gold yes, %", "model", "accuracy", "weighted F1 by rule"]
    return markdown_table([*headers, "weighted F1 by classifier", "unparsed, %"], lines)


def bars(found: Results) -> str:
    """What the adapter was to reach, and what it reaches."""
    unparsed, rows = found.unparsed(OURS, found.sets)
    compared = compare_runs(
        found.runs[BASE], found.runs[OURS], metrics=["weighted_f1"], resamples=found.resamples
    ).overall["weighted_f1"]
    gain = 100 * compared.difference
    above = [
        name for name in found.sets if 100 * found.by_rule(OURS, name).weighted_f1.value > CHATGPT.weighted_f1[name]
    ]
    lines = [
        [
            "unparsed answers, all rows",
            f"under {100 * MOST_UNPARSED:.0f} %",
            f"{100 * unparsed / rows:.2f} % ({unparsed:,} of {rows:,})",
            _met(unparsed / rows < MOST_UNPARSED),
        ],
        [
            "mean weighted F1 by rule, adapter minus base zero-shot",
            f"at least {LEAST_GAIN:.0f} points",
            f"{gain:+.1f} [{100 * compared.low:+.1f}, {100 * compared.high:+.1f}]",
            _met(gain >= LEAST_GAIN),
        ],
    ]
    for group, names in found.groups[:2]:
        if names:
            gained = found.mean(OURS, names) - found.mean(BASE, names)
            lines.append([f"the same, sets {group} ({', '.join(names)})", "", f"{gained:+.1f}", ""])
    lines.append(
        [
            f"sets above {CHATGPT.system} (sourced)",
            f"at least {LEAST_SETS} of {len(found.sets)}",
            f"{len(above)} of {len(found.sets)} ({', '.join(above) or 'none'})",
            _met(len(above) >= LEAST_SETS),
        ]
    )
    return markdown_table(["", "bar", "measured", "met"], lines)


def _met(reached: bool) -> str:
    return "yes" if reached else "**no**"


def for_page(found: Results) -> str:
    parts = {
        "": for_readme(found),
        "Bars": bars(found),
        "Labels": labels_table(found)
        + "\n\nPer cent; intervals as above. The classifier reads every answer and has no unparsed.",
        "Scores": scores_table(found)
        + "\n\nWhole answers against whole golds; higher is better. Signatures: `scores.json` of each run.",
        "Question by question": aspects_table(found),
        "How the runs were made": settings(found),
        "Published values": f"{CITATION}. {NOTE}",
    }
    return "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in parts.items())


# --- the documents ----------------------------------------------------------------------------------------------------

DOCUMENTS: dict[str, Callable[[Results], str]] = {"README.md": for_readme, "docs/results.md": for_page}


def written(text: str, content: str, path: Path) -> str:
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise UserError(f"{path}: no block {BEGIN} ... {END}; put these two lines where the table belongs")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a document differs")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    arguments = parser.parse_args(argv)
    root, check = arguments.root, arguments.check
    texts = {}
    for document in DOCUMENTS:
        if not (root / document).is_file():
            raise UserError(f"{root / document}: no such file; it needs the lines {BEGIN} and {END}")
        texts[document] = (root / document).read_text(encoding="utf-8")
        # Before the minutes that the figures take.
        written(texts[document], "", root / document)
    found, different = read_runs(root / FOLDER), []
    for document, content in DOCUMENTS.items():
        text = written(texts[document], content(found), root / document)
        if text != texts[document]:
            different.append(document)
            if not check:
                write_text_atomically(root / document, text)
    for document in different:
        say(f"{document}: {'differs from the kept runs' if check else 'written'}")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
