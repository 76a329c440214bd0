"""How a run was made, and what a reader must know before its figures: the banners of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imhi.benchmark import DATASETS
from imhi.prompts import STYLES
from imhi.report.data_facts import DataFacts
from imhi.report.figures import RunFigures
from imhi.results import CLASSIFIER, RunResults

__all__ = ["Difference", "Notice", "differences", "facts_of", "notices_about_data", "notices_of"]

PUBLISHED_DTYPE = "float32"
PUBLISHED_MAX_LENGTH = 2048
# Of sample rows another banner tells.
AS_PUBLISHED = frozenset(["verified", "sample"])


@dataclass(frozen=True)
class Notice:
    """A banner: a short title and one or two sentences.  `weight` is "warning" or "note"."""

    weight: str
    title: str
    text: str


@dataclass(frozen=True)
class Difference:
    """One point in which a run differs from the published setting."""

    what: str
    here: str
    published: str


def differences(run: RunResults) -> list[Difference]:
    """Where the run departs from float32, raw prompts in the benchmark's words, without examples, greedy decoding and
    2,048 tokens in all.
    """
    configuration = run.configuration
    if not configuration:
        return []
    decoding = configuration.get("decoding", {})
    found = []
    dtype = configuration.get("dtype", "unknown")
    if dtype != PUBLISHED_DTYPE:
        found.append(Difference("dtype", dtype, PUBLISHED_DTYPE))
    if (wrapped := _wrapping(configuration)) != "raw":
        found.append(Difference("prompts", f"inside {wrapped}", "raw"))
    if style := _style(configuration):
        found.append(Difference("wording of the prompts", style, "the benchmark's own"))
    if examples := _examples(configuration):
        found.append(Difference("examples", f"{examples} before every prompt", "none"))
    if decoding.get("do_sample"):
        drawn = f"sampled (temperature {decoding.get('temperature')}, top-p {decoding.get('top_p')})"
        found.append(Difference("decoding", drawn, "greedy"))
    limits = _limits(decoding)
    if limits:
        found.append(Difference("length limit", limits, f"{PUBLISHED_MAX_LENGTH} tokens of prompt and answer"))
    return found


def _wrapping(configuration: dict[str, Any]) -> str:
    if configuration.get("api") == "chat":
        return "the server's chat template"
    return "the model's chat template" if configuration.get("decoding", {}).get("chat_template") else "raw"


def _examples(configuration: dict[str, Any]) -> str:
    """How many worked examples stand before a prompt, in words; "" for none."""
    shots = configuration.get("shots")
    return f"{shots['per_label']} of every label" if shots else ""


def _style(configuration: dict[str, Any]) -> str:
    """How prompts are worded, by ``--prompt_style``; "" for the benchmark's own words."""
    name = (configuration.get("prompt_style") or {}).get("name", "")
    # A run of a later version may have a style that this one does not know.
    return f"{name}, {STYLES[name].title}" if name in STYLES else name


def _limits(decoding: dict[str, Any]) -> str:
    whole, new = decoding.get("max_length"), decoding.get("max_new_tokens")
    if whole == PUBLISHED_MAX_LENGTH and (new is None or new >= PUBLISHED_MAX_LENGTH):
        return ""
    parts = [
        f"{new} new tokens" if new is not None else "",
        f"{whole} of prompt and answer" if whole is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def notices_of(run: RunResults, figures: RunFigures) -> list[Notice]:
    """The banners of one run, the gravest first."""
    return [
        *_about_rows(run, figures),
        *_about_setting(run, figures),
        *_about_dropped(figures),
        *(Notice("warning", "Read with care", caution) for caution in run.cautions),
    ]


def notices_about_data(data: DataFacts | None) -> list[Notice]:
    """A banner where test files are not the published ones, letter for letter; none without an audit."""
    other = (
        [f"{file.dataset} ({file.status})" for file in data.files if file.status not in AS_PUBLISHED] if data else []
    )
    if not other:
        return []
    text = f"These test files are not the published ones: {', '.join(other)}. Prompts or golds may differ."
    return [Notice("warning", "Other test data", text)]


def _about_rows(run: RunResults, figures: RunFigures) -> Iterator[Notice]:
    if run.on_samples:
        yield Notice(
            "warning",
            "Sample rows",
            "These rows were made up by the toolkit's authors so that the pipeline can be tried. They are not the benchmark: "
            "the figures show that the pipeline works and say nothing about a model.",
        )
    elif run.suite != "expert":
        partial = _incomplete(figures)
        if partial:
            yield Notice("warning", "Not the whole benchmark", partial)
    failed = {name: each.counts.failed for name, each in figures.datasets.items() if each.counts.failed}
    if failed:
        listed = ", ".join(f"{name} {count:,}" for name, count in failed.items())
        yield Notice(
            "warning",
            "Failed rows",
            f"{sum(failed.values()):,} of {figures.rows:,} rows failed ({listed}). Their answer is empty and counts as wrong.",
        )
    few = [name for name, each in figures.datasets.items() if each.few_rows]
    if few:
        yield Notice(
            "warning",
            "Few rows",
            f"{', '.join(few)}: under 30 independent rows or posts. Intervals of so few are too narrow.",
        )


def _incomplete(figures: RunFigures) -> str:
    absent = [name for name in DATASETS if name not in figures.datasets]
    unreleased = [name for name in absent if DATASETS[name].released_test_rows is None]
    left_out = [name for name in absent if name not in unreleased]
    dropped: dict[str, int] = {}
    for by_dataset in figures.dropped.values():
        for name, rows in by_dataset.items():
            dropped[name] = dropped.get(name, 0) + rows
    short = []
    for name, each in figures.datasets.items():
        expected = each.released_rows if each.released_rows is not None else each.published_rows
        rows = each.counts.rows + dropped.get(name, 0)
        if rows != expected:
            short.append(f"{name} has {rows:,} rows of {expected:,}")
    sentences = []
    if left_out:
        sentences.append(f"Not in this run: {', '.join(left_out)}.")
    if short:
        sentences.append(f"{'; '.join(short)}.")
    if sentences and unreleased:
        sentences.append(f"{', '.join(unreleased)} was never released.")
    return " ".join(sentences)


def _about_setting(run: RunResults, figures: RunFigures) -> Iterator[Notice]:
    if not run.has_texts:
        yield Notice(
            "note",
            "Kept without texts",
            "This run is kept as labels, lengths and score values without its answers. Labels by rule are read, not "
            "computed from the answers, and there are no answers to look at.",
        )
    if run.manifest is None:
        yield Notice(
            "note",
            "Setting unknown",
            "This folder is not a run of this toolkit: it does not say which model, prompts and dtype made its answers, nor "
            "which answers were cut short.",
        )
    departures = differences(run)
    if departures:
        listed = "; ".join(f"{each.what}: {each.here} (published: {each.published})" for each in departures)
        truncated = sum(each.counts.truncated or 0 for each in figures.datasets.values())
        cut = f" The length limit ended {truncated:,} of {figures.rows:,} answers." if truncated else ""
        yield Notice("note", "Other than the published setting", f"{listed}.{cut}")
    unlabelled = [name for name, results in run.datasets.items() if CLASSIFIER not in results.labels]
    if unlabelled:
        yield Notice(
            "note",
            "Labels by rule only",
            f"No classifier labels for {', '.join(unlabelled)}. The rule reads only answers that state their label, so "
            "unparsed answers count as wrong; “imhi label” adds the classifiers' reading.",
        )
    by_row = [name for name, each in figures.datasets.items() if each.resampled == "rows"]
    if by_row:
        yield Notice(
            "note",
            "Rows taken as independent",
            f"The posts of {', '.join(by_row)} are not at hand, so intervals resample single rows. Where several rows "
            "ask about one post, such intervals are too narrow; --data_root names the test files.",
        )


def _about_dropped(figures: RunFigures) -> Iterator[Notice]:
    for reason, by_dataset in figures.dropped.items():
        gone = {name: rows for name, rows in by_dataset.items() if rows}
        if gone:
            listed = ", ".join(f"{name} {rows:,}" for name, rows in gone.items())
            yield Notice("note", "Rows left out", f"{reason}: {sum(gone.values()):,} rows ({listed}).")


def facts_of(run: RunResults) -> list[tuple[str, str]]:
    """How the run was made, as (name, value) pairs for a table."""
    manifest, configuration = run.manifest or {}, run.configuration
    sessions: Sequence[dict[str, Any]] = manifest.get("sessions", [])
    last = sessions[-1] if sessions else {}
    decoding = configuration.get("decoding", {})
    engine: dict[str, Any] = next((each["engine"] for each in reversed(sessions) if each.get("engine")), {})
    facts: list[tuple[str, str | None]] = [
        ("folder", str(run.folder)),
        ("model", last.get("model")),
        ("adapter", last.get("adapter")),
        ("test files", run.suite),
        ("data root", manifest.get("data_root", {}).get("path")),
        ("posts looked up in", str(run.data_root.path) if run.data_root else None),
        ("dtype", configuration.get("dtype")),
        ("prompts", _wrapping(configuration) if decoding else None),
        ("wording of the prompts", _style(configuration)),
        ("examples", _examples(configuration)),
        ("decoding", ("sampled" if decoding.get("do_sample") else "greedy") if decoding else None),
        ("length limit", _limits(decoding) or (f"{PUBLISHED_MAX_LENGTH} of prompt and answer" if decoding else None)),
        ("engine", " ".join(filter(None, [configuration.get("engine"), configuration.get("engine_version")]))),
        ("server", configuration.get("api_base")),
        ("attention", engine.get("attention")),
        ("device", last.get("device")),
        ("sessions", str(len(sessions)) if sessions else None),
        ("started", manifest.get("started")),
        ("ended", manifest.get("ended")),
        ("toolkit", _version(last)),
        ("libraries", ", ".join(f"{name} {version}" for name, version in last.get("libraries", {}).items())),
        ("classifier labels", str(run.labels_folder) if run.labels_folder else None),
    ]
    return [(name, str(value)) for name, value in facts if value]


def _version(session: dict[str, Any]) -> str:
    git = session.get("git") or {}
    commit = f", commit {git['commit'][:12]}" if git.get("commit") else ""
    return f"imhi {session['imhi']}{commit}{' with changes' if git.get('dirty') else ''}" if session.get("imhi") else ""
