"""Generate, label, score and report in one go; every stage goes on where it stopped, and is left alone once it is done.

The stages are the ones behind the scripts, with their own ways of knowing what is done: a response by its row and the
run's configuration, labels by the digests of answers and classifier, scores by their signature and the digest of the
texts.  What the report was made of is kept here, in ``pipeline.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imhi import __version__
from imhi.benchmark import DATASETS
from imhi.data import DataRoot, response_files, sha256_of, write_text_atomically
from imhi.devices import pick_device, pick_dtype
from imhi.errors import UserError
from imhi.exclusions import leave_out
from imhi.generation import GenerationRequest, generate_responses
from imhi.labelling import (
    correctness_table,
    earlier_figures,
    label_folder,
    labelled_correctness,
    output_folder,
    read_folder,
    write_correctness,
)
from imhi.metrics.base import Metric, digest_of
from imhi.report import FILES, make_report, write_report
from imhi.results import RunResults, data_root_of, read_results
from imhi.rule_labelling import SOURCE, label_folder_by_rules, rule_table
from imhi.runs import read_manifest
from imhi.scoring import score_folder, score_table
from imhi.talk import say, show

__all__ = ["STAGES", "PipelineRequest", "ReportOptions", "make_run_report", "read_for_report", "run_pipeline"]

STAGES = ("generate", "label", "score", "report")
RECORD = "pipeline.json"
LABELS = "labels"


@dataclass(frozen=True)
class ReportOptions:
    """What a report holds beside the figures, and which rows the figures are of."""

    include_posts: bool = False
    drop_leaked: bool = False
    dedup_posts: bool = False
    resamples: int = 2000


@dataclass(frozen=True)
class PipelineRequest:
    """A whole run.

    Attributes
    ----------
    generation : what answers, and where everything goes (`GenerationRequest.output`).
    classifiers : folder of label classifiers; None: the toolkit's own.
    metrics : made already, so that what they need was checked before the first hour of work.
    target : what is scored, "response" or "explanation".
    first, last : the stages to run; what is before `first` is taken as it lies there.
    repeat : compute the stage `first` anew although it is done (never the responses).
    """

    generation: GenerationRequest
    classifiers: Path | None = None
    metrics: Sequence[Metric] = ()
    target: str = "response"
    report: ReportOptions = field(default_factory=ReportOptions)
    first: str = "generate"
    last: str = "report"
    repeat: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        return STAGES[STAGES.index(self.first) : STAGES.index(self.last) + 1]


def run_pipeline(request: PipelineRequest) -> str | None:
    """Run the stages of `request`; returns a complaint about rows that failed, None where all have an answer.

    Raises
    ------
    UserError
        What the stages raise; a first stage without what it needs; stages in the wrong order.
    """
    if not request.stages:
        raise UserError(
            f"--from {request.first} --to {request.last}: nothing lies between them; --to is the later stage"
        )
    folder = request.generation.output
    if request.first != "generate":
        if request.generation.overwrite:
            raise UserError(
                f"--overwrite discards the responses, which --from {request.first} keeps; leave one of them out"
            )
        suite = (read_manifest(folder) or {}).get("configuration", {}).get("test_dataset", request.generation.suite)
        if suite != request.generation.suite:
            raise UserError(f"{folder} holds answers to {suite}, not to {request.generation.suite} (--test_dataset)")
    complaint = None
    work = {"label": _label, "score": _score, "report": _report}
    for number, stage in enumerate(request.stages, start=1):
        say(f"{number} of {len(request.stages)}: {stage} ({folder})")
        if stage == "generate":
            outcome = generate_responses(request.generation)
            complaint = outcome.complaint() if outcome.failed else None
        else:
            response_files(folder)  # one clear line where there is nothing to work on
            work[stage](request, again=request.repeat and stage == request.first)
    return complaint


def _datasets(request: PipelineRequest) -> list[str]:
    """The datasets that the run has, of those that are asked for."""
    return list(response_files(request.generation.output, request.generation.datasets)[0])


def _label(request: PipelineRequest, *, again: bool) -> None:
    """By rule beside the responses, by classifier into the folder ``labels``; figures of both."""
    from imhi.labelers.folders import open_labelers

    folder, names = request.generation.output, _datasets(request)
    earlier_figures(folder, source=SOURCE)
    show(rule_table(label_folder_by_rules(folder, datasets=names, published_results=True)))
    responses = read_folder(folder, names)
    device = pick_device(cuda=request.generation.cuda, device=request.generation.device)
    labelers = open_labelers(
        request.classifiers,
        [DATASETS[name] for name in names],
        device=device,
        dtype=pick_dtype("float32" if device == "cpu" else "auto", device),
    )
    out = output_folder(folder / LABELS, folder)
    label_folder(responses, labelers, out, overwrite=again)
    labelled = read_folder(out, names)
    figures = labelled_correctness(labelled)
    show(correctness_table(figures))
    entries = {name: figure.as_dict() for name, figure in figures.items()}
    write_correctness(out, entries, {name: response.path for name, response in labelled.items()}, overwrite=again)


def _score(request: PipelineRequest, *, again: bool) -> None:
    folder, names = request.generation.output, _datasets(request)
    show(score_table(score_folder(folder, request.metrics, datasets=names, target=request.target, overwrite=again)))


def _report(request: PipelineRequest, *, again: bool) -> None:
    folder = request.generation.output
    results = read_for_report(
        folder, data_root=data_root_of(folder, request.generation.data_root), datasets=_datasets(request)
    )
    inputs = _inputs(results, request.report)
    kept = _read_record(folder)
    same = kept.get("inputs") == inputs and all(
        (folder / name).exists() and kept["outputs"].get(name) == sha256_of(folder / name) for name in FILES
    )
    if same and not again:
        say(f"{folder / FILES[0]}: made of the same answers, labels and scores before; nothing to do")
        return
    paths = make_run_report([results], folder, request.report)
    record = {"inputs": inputs, "outputs": {path.name: sha256_of(path) for path in paths}}
    write_text_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")
    say(f"the page to look at: {paths[0]}")


def read_for_report(
    folder: Path, *, labels: Path | None = None, data_root: DataRoot | None = None, datasets: Sequence[str] = ()
) -> RunResults:
    """`read_results`, saying what is read."""
    say(f"reading {folder}" + (f", posts from {data_root.path}" if data_root else ""))
    return read_results(folder, labels=labels, datasets=datasets, data_root=data_root)


def make_run_report(runs: Sequence[RunResults], out: Path, options: ReportOptions) -> list[Path]:
    """Write the report of some runs, the rows left out that `options` names; returns the paths."""
    from imhi.audit import audit_data

    kept, dropped = [], []
    for results in runs:
        rest, counts = leave_out(results, drop_leaked=options.drop_leaked, dedup_posts=options.dedup_posts)
        kept.append(rest)
        dropped.append(counts)
    roots = {each.data_root.path.resolve(): each.data_root for each in runs if each.data_root is not None}
    if len(roots) > 1:
        say("the runs' data roots differ, so none is audited in the report; --data_root names one for all")
    report = make_report(
        kept,
        audit=audit_data(*roots.values()) if len(roots) == 1 else None,
        dropped=dropped,
        include_posts=options.include_posts,
        resamples=options.resamples,
    )
    paths = write_report(report, kept, out)
    for path in paths:
        say(f"wrote {path}")
    return paths


def _inputs(results: RunResults, options: ReportOptions) -> str:
    """A digest of everything that a run's report is made of."""
    manifest = results.manifest or {}
    content: dict[str, Any] = {
        "imhi": __version__,
        "options": asdict(options),
        "run": [results.configuration, manifest.get("counts"), manifest.get("data_root")],
        "cautions": results.cautions,
        # The audit and the rows that are left out follow from these.
        "data": None if results.data_root is None else _data_files(results.data_root.path),
        "datasets": {
            name: [
                one.rows_digest,
                one.answers,
                {source: asdict(labels) for source, labels in one.labels.items()},
                {column: [scores.value, scores.signature, scores.rows] for column, scores in one.scores.items()},
                one.finish,
                one.queries is not None,
            ]
            for name, one in results.datasets.items()
        },
    }
    return digest_of(content)


def _data_files(root: Path) -> dict[str, str]:
    """The digests of a data root's tables, by path."""
    tops = ("test_data", "train_data", "human_evaluation")
    paths = sorted(path for top in tops for path in (root / top).rglob("*.csv"))
    return {path.relative_to(root).as_posix(): sha256_of(path) for path in paths}


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); remove it, the report is then made anew") from None
    return record if isinstance(record, dict) else {}
