"""The figures of `imhi humans` as tables, as sentences and as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imhi.humans.columns import LENGTH
from imhi.humans.figures import ALL_CV, LENGTHS_CV, POOLED, RIVALS
from imhi.talk import table

__all__ = [
    "MAIN",
    "TITLES",
    "column_table",
    "findings",
    "interval_text",
    "markdown",
    "rater_table",
    "rival_table",
    "summary",
]

Document = Mapping[str, Any]

# The aspect that the published correlations are of.
MAIN = "overall"
KINDS = ("pearson", "spearman", "kendall")
# Rows of the tables; a column that is not named here keeps its own name.
TITLES = {
    "words": "length (words)",
    "post_words": "length of the post",
    "gold_words": "length of the gold",
    "rouge1_post": "ROUGE-1 (post)",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU (sentence)",
    "bert_f1": "BERTScore F1",
    "bert_precision": "BERTScore P",
    "bert_recall": "BERTScore R",
    "bart_score": "BART-score",
    "info_gain": "information gain",
    "info_loglik": "log-likelihood",
    "coverage": "coverage",
    "label_support": "label support",
    "lengths_cv": "lengths, cross-validated",
    "all_cv": "all, cross-validated",
}
REFERENCE_WORDS = {"post": "the post, as published", "gold": "the gold explanation"}


def title_of(column: str) -> str:
    return TITLES.get(column, column)


def number(value: float | None) -> str:
    """A correlation without its leading zero, as papers print it; a dash for None."""
    if value is None:
        return "–"
    written = f"{value:.2f}"
    return written.replace("0.", ".", 1) if written.startswith(("0.", "-0.")) else written


def interval_text(interval: Mapping[str, float | None] | None) -> str:
    """``.35 [.19, .50]``; the value alone where the bounds are not defined."""
    if interval is None:
        return "–"
    if interval["low"] is None:
        return number(interval["value"])
    return f"{number(interval['value'])} [{number(interval['low'])}, {number(interval['high'])}]"


def p_text(p: float | None) -> str:
    if p is None:
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)


def rival_text(test: Mapping[str, Any] | None) -> str:
    """``+.24, p .004 (.03)``: difference, p of Williams's test (else of the bootstrap), Holm's in parentheses."""
    if test is None:
        return "–"
    difference = test["difference"]["value"]
    p = test["williams"]["p"] if test["williams"] else test["p"]
    return f"{'+' if difference >= 0 else ''}{number(difference)}, p {p_text(p)} ({p_text(test['p_holm'])})"


def column_table(scoped: Mapping[str, Any], aspect: str) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: every column of one scope against one aspect, and what the lengths leave of it."""
    headers = [aspect, "Pearson", "Spearman", "Kendall", "given length", "given all lengths"]
    rows = [
        [title_of(name), *(interval_text(of[aspect][kind]) for kind in (*KINDS, "given_length", "given_lengths"))]
        for name, of in scoped.items()
    ]
    return headers, rows


def rival_table(scoped: Mapping[str, Any], aspect: str) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: every metric of one scope against its rivals in one aspect."""
    rivals = [rival for rival in RIVALS if any(rival in of[aspect]["against"] for of in scoped.values())]
    headers = [f"{aspect}: Pearson", *(f"against {title_of(rival)}" for rival in rivals)]
    rows = [
        [title_of(name), *(rival_text(of[aspect]["against"].get(rival)) for rival in rivals)]
        for name, of in scoped.items()
        if of[aspect]["against"]
    ]
    return headers, rows


def aspect_table(scoped: Mapping[str, Any], kind: str = "pearson") -> tuple[list[str], list[list[str]]]:
    """Headers and rows: every column of one scope against every aspect, one kind of correlation."""
    aspects = list(next(iter(scoped.values())))
    rows = [[title_of(name), *(interval_text(of[aspect][kind]) for aspect in aspects)] for name, of in scoped.items()]
    return [kind, *aspects], rows


def rater_table(raters: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: agreement of one file's annotators, an aspect a line."""
    headers = ["aspect", "alpha, ordinal", "alpha, interval", "two raters", "one and the rest", "attainable", "rated 3"]
    rows = [
        [
            aspect,
            *(interval_text(of[key]) for key in ("alpha_ordinal", "alpha_interval", "pairwise", "leave_one_out")),
            number(of["attainable"]),
            f"{100 * of['at_top']:.0f} %",
        ]
        for aspect, of in raters.items()
    ]
    return headers, rows


def findings(document: Document) -> list[str]:
    """What the figures say, in sentences made of them: what the published claim rests on, where length explains it."""
    lines = []
    post = document["references"]["post"]["figures"].get(POOLED)
    if not post:
        return ["Too few rows for a correlation."]
    main = {name: of[MAIN] for name, of in post.items()}
    if "rouge1" in main:
        rouge, length = main["rouge1"], main[LENGTH]
        lines.append(
            f"As published (reference: the post; {MAIN}), ROUGE-1 correlates {interval_text(rouge['pearson'])} with the "
            f"annotators' mean; the bare number of words of the explanation does {interval_text(length['pearson'])}, "
            f"that of the post {interval_text(main['post_words']['pearson'])} without a look at the explanation."
        )
        lines.append(
            f"Given the explanation's length, {interval_text(rouge['given_length'])} is left of ROUGE-1; given the "
            f"post's too, {interval_text(rouge['given_lengths'])}. ROUGE-1 against length: {_test(rouge, LENGTH)}."
        )
        if _holds_zero(rouge["given_lengths"]):
            lines.append(
                f"So the claim that ROUGE-1 agrees with people rests, on these {document['references']['post']['rows']} rows, "
                "on nothing that can be told from an effect of the two lengths."
            )
    if LENGTHS_CV in main:
        lines.append(
            "The two lengths alone, combined by fits that saw none of the rows they are judged on, reach "
            f"{interval_text(main[LENGTHS_CV]['pearson'])}; with every metric beside them "
            f"{interval_text(main[ALL_CV]['pearson'])} ({_test(main[ALL_CV], LENGTHS_CV)})."
        )
    for name, raters in document["raters"].items():
        of = raters[MAIN]
        attainable = "not defined" if of["attainable"] is None else number(of["attainable"])
        lines.append(
            f"Ceiling ({name}, {MAIN}): Krippendorff's alpha {interval_text(of['alpha_ordinal'])}, one annotator with "
            f"the mean of the others {interval_text(of['leave_one_out'])}; {attainable} is what a perfect measure of "
            "what the annotators share could reach."
        )
    lines += _best(document)
    return lines


def _best(document: Document) -> list[str]:
    """Which columns beat both rivals, by how much, and whether a test tells it from chance."""
    lines = []
    for reference, part in document["references"].items():
        scoped = part["figures"].get(POOLED)
        if not scoped:
            continue
        skipped = {*part["lengths"], ALL_CV, *RIVALS}
        main = {name: of[MAIN] for name, of in scoped.items() if name not in skipped and of[MAIN]["pearson"]}
        tested = [rival for rival in (LENGTH, "rouge1_post") if any(rival in of["against"] for of in main.values())]
        both = {name: of for name, of in main.items() if all(_is_above(of, rival) for rival in tested)}
        where = f"Reference {REFERENCE_WORDS[reference]}, {MAIN}, pooled within files"
        if not both:
            lines.append(f"{where}: no metric correlates better than both length and ROUGE-1 against the post.")
            continue
        best = max(both, key=lambda name: both[name]["pearson"]["value"])
        of = both[best]
        tests = "; ".join(f"against {title_of(rival)}: {_test(of, rival)}" for rival in of["against"])
        lines.append(
            f"{where}: {len(both)} of {len(main)} metrics correlate better than length and than ROUGE-1 against the "
            f"post; the best, {title_of(best)}, {interval_text(of['pearson'])}, and given all lengths "
            f"{interval_text(of['given_lengths'])} ({tests})."
        )
    return lines


def _is_above(figures: Mapping[str, Any], rival: str) -> bool:
    test = figures["against"].get(rival)
    return test is not None and test["difference"]["value"] > 0


def _test(figures: Mapping[str, Any], rival: str) -> str:
    test = figures["against"].get(rival)
    if test is None:
        return "not testable"
    difference = interval_text(test["difference"])
    if test["williams"]:
        found = test["williams"]
        p = f"Williams t({found['degrees']}) = {found['t']:.2f}, p {p_text(found['p'])}, Holm {p_text(test['p_holm'])}"
    else:
        p = f"bootstrap p {p_text(test['p'])}, Holm {p_text(test['p_holm'])}"
    return f"difference {difference}, {p}"


def _holds_zero(interval: Mapping[str, float | None] | None) -> bool:
    if interval is None or interval["low"] is None or interval["high"] is None:
        return False
    return interval["low"] <= 0 <= interval["high"]


def _row_notes(document: Document) -> list[str]:
    """What was measured: files, rows, how many have a reference."""
    lines = []
    for name, file in document["files"].items():
        gold = f"{file['gold_rows']} with a gold explanation" if file["gold_rows"] else "none with a gold explanation"
        lines.append(f"{name}: {file['rows']} rows of {file['model']}, {file['posts']} posts, {gold}")
    return lines


def summary(document: Document) -> str:
    """What goes to stdout: pooled tables, the annotators, the findings, the signatures."""
    parts = ["\n".join(_row_notes(document))]
    for reference, part in document["references"].items():
        scoped = part["figures"].get(POOLED)
        heading = f"reference: {REFERENCE_WORDS[reference]} ({part['rows']} rows, pooled within files)"
        if not scoped:
            parts.append(f"{heading}\ntoo few rows with this reference in every file; no figure")
            continue
        parts.append(f"{heading}\n{table(*column_table(scoped, MAIN))}")
        parts += [table(*rival_table(scoped, MAIN)), table(*aspect_table(scoped))]
    for name, raters in document["raters"].items():
        parts.append(f"annotators of {name}\n{table(*rater_table(raters))}")
    parts.append("\n".join(findings(document)))
    parts.append("\n".join([*document["notes"], *document["signatures"].values()]))
    return "\n\n".join(parts)


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def markdown(document: Document) -> str:
    """Everything as a Markdown page: each reference, each scope, each aspect."""
    parts = ["# Metrics and human judgement", "\n".join(f"- {line}" for line in _row_notes(document))]
    parts.append("\n".join(f"- {line}" for line in findings(document)))
    for name, raters in document["raters"].items():
        parts += [f"## Annotators of {name}", markdown_table(*rater_table(raters))]
    for reference, part in document["references"].items():
        for scope, scoped in part["figures"].items():
            parts.append(f"## Reference: {REFERENCE_WORDS[reference]}; {scope}")
            for aspect in next(iter(scoped.values())):
                parts += [markdown_table(*made(scoped, aspect)) for made in (column_table, rival_table)]
    notes = [*document["notes"], *(f"`{signature}`" for signature in document["signatures"].values())]
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"
