"""The benchmark as tasks of lm-evaluation-harness (Gao et al., EleutherAI): rows, YAML files and metrics in a folder.

The tasks ask as a greedy run of ours does.  What that takes, as lm_eval 0.4.13 works:

- ``until: []`` is kept as it is; the harness adds the end token's text to it, the one stop that we have.  Without the
  key, an empty line would end an answer.
- ``doc_to_text: query`` names a field, whose text is taken to the letter: the completion form keeps its last space.
- rows come through ``custom_dataset``: loaded as a ``json`` data set they would be copied into the user's cache.
- answers are not stripped by the harness; they are before they are read.
- it cuts a prompt from the left to the model's positions less ``max_gen_toks``, where we shorten the answer instead.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imhi import __version__
from imhi.benchmark import SUITES
from imhi.data import DataRoot, LoadedSuite, load_suite, sha256_of, write_text_atomically
from imhi.errors import UserError

__all__ = ["Exported", "export_lm_eval"]

RECORD = "export.json"
MADE_BY = "imhi export lm-eval"
# What the names of tasks and groups say → --test_dataset.
FORM_SUITES = {"instruction": "IMHI", "completion": "IMHI-completion"}
# Metric of a task → whether higher is better.
METRICS = {"rule_accuracy": True, "rule_weighted_f1": True, "rule_unparsed": False}


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, form → dataset → rows, and the forms without files in the data root."""

    folder: Path
    rows: Mapping[str, Mapping[str, int]]
    absent: tuple[str, ...]


def export_lm_eval(
    folder: Path,
    root: DataRoot,
    *,
    datasets: Sequence[str] = (),
    max_new_tokens: int = 512,
    limit: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the tasks of both forms into `folder`, as far as the data root has their files.

    Parameters
    ----------
    datasets : canonical names; none: all that are there.
    max_new_tokens : limit of an answer.
    limit : at most this many rows a dataset, from the top.
    overwrite : replace an earlier export; a file that no export wrote is never replaced.

    Raises
    ------
    UserError
        Where a file in the way is not of an export, an earlier export is not to be replaced, or rows cannot be read.
    """
    absent = tuple(form for form, suite in FORM_SUITES.items() if not (root.path / SUITES[suite].folder).is_dir())
    if len(absent) == len(FORM_SUITES):
        raise UserError(f"{root.path}: no test files of either form (`imhi data check {root.path}`)")
    suites = {
        form: load_suite(root, suite, datasets=datasets, limit=limit)
        for form, suite in FORM_SUITES.items()
        if form not in absent
    }
    texts = _files(folder, root, suites, max_new_tokens)
    earlier = _refuse_foreign(folder, texts, overwrite=overwrite)
    digests = {name: "sha256:" + hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    record: dict[str, Any] = {
        "made_by": MADE_BY,
        "imhi": __version__,
        "data_root": str(root.path),
        "data_files": {
            form: {name: "sha256:" + sha256_of(path) for name, path in suite.files.items()}
            for form, suite in suites.items()
        },
        "max_new_tokens": max_new_tokens,
        "limit": limit,
        "files": digests,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # First of all, and with the earlier export's files: what a crash leaves is then still known as ours.
    _write_record(folder, {**record, "files": {**dict.fromkeys(earlier, "replaced"), **digests}})
    for name in earlier:
        if name not in texts:
            (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / name, text)
    _write_record(folder, record)
    return Exported(folder, {form: suite.counts() for form, suite in suites.items()}, absent)


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    write_text_atomically(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _refuse_foreign(folder: Path, names: Mapping[str, str], *, overwrite: bool) -> list[str]:
    """The files of an earlier export; UserError where anything in the way is not one, or may not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder for the tasks")
    earlier = _earlier_files(folder / RECORD)
    for name in [*names, *([] if earlier else [RECORD])]:
        path = folder / name
        if name not in earlier and (path.exists() or path.is_symlink()):
            raise UserError(
                f"{path} was not written by `{MADE_BY}` and is never replaced; give another folder, or move it away"
            )
    if earlier and not overwrite:
        raise UserError(f"{folder} holds an export already; --overwrite replaces it")
    return earlier


def _earlier_files(path: Path) -> list[str]:
    """The files that an earlier export lists; none where there is no such record, or a stranger's."""
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return []
    if not isinstance(record, dict) or record.get("made_by") != MADE_BY or not isinstance(record.get("files"), dict):
        return []
    # They may be removed: nothing outside the folder counts, whatever the record says.
    return [name for name in record["files"] if not Path(name).is_absolute() and ".." not in Path(name).parts]


# --- what the files hold ----------------------------------------------------------------------------------------------


def _files(folder: Path, root: DataRoot, suites: Mapping[str, LoadedSuite], max_new_tokens: int) -> dict[str, str]:
    """Name relative to the folder → text of every file of an export, its record aside."""
    texts = {"README.md": _readme(folder, root, suites, max_new_tokens), ".gitignore": "*\n", "utils.py": _UTILS}
    for form, suite in suites.items():
        tasks = [f"imhi_{form}_{name}" for name in suite.files]
        texts[f"imhi_{form}.yaml"] = _group(form, tasks)
        for name, task in zip(suite.files, tasks, strict=True):
            rows = f"rows/{form}/{name}.jsonl"
            texts[f"{task}.yaml"] = _task(task, name, rows, max_new_tokens)
            texts[rows] = "".join(
                json.dumps(
                    {
                        "id": row.id,
                        "dataset": row.dataset,
                        "query": row.query,
                        "gold": row.gold,
                        "label": row.gold_label,
                    },
                    ensure_ascii=False,
                )
                + "\n"
                for row in suite.rows
                if row.dataset == name
            )
    return texts


def _task(task: str, dataset: str, rows: str, max_new_tokens: int) -> str:
    lines = [
        f"task: {json.dumps(task)}",
        f"task_alias: {json.dumps(dataset)}",
        "custom_dataset: !function utils.load_rows",
        f"dataset_kwargs: {{rows_file: {json.dumps(rows)}}}",
        "test_split: test",
        "output_type: generate_until",
        "doc_to_text: query",
        "doc_to_target: gold",
        'target_delimiter: ""',
        "num_fewshot: 0",
        f"generation_kwargs: {{until: [], do_sample: false, max_gen_toks: {max_new_tokens}}}",
        "process_results: !function utils.process_results",
        "metric_list:",
    ]
    for metric, higher in METRICS.items():
        lines += [
            f"  - metric: {metric}",
            f"    aggregation: !function utils.{metric}",
            f"    higher_is_better: {json.dumps(higher)}",
        ]
    return "\n".join([*lines, f"metadata: {{version: 1.0, imhi: {json.dumps(__version__)}}}"]) + "\n"


def _group(form: str, tasks: Sequence[str]) -> str:
    lines = [f"group: imhi_{form}", "task:", *(f"  - {json.dumps(task)}" for task in tasks), "aggregate_metric_list:"]
    for metric in METRICS:
        # The plain mean over datasets, as in `imhi label` and in the published tables.
        lines += [f"  - metric: {metric}", "    aggregation: mean", "    weight_by_size: false"]
    return "\n".join([*lines, "metadata: {version: 1.0}"]) + "\n"


# Runs inside the harness.  Its functions stand in the folder, as a task's YAML can name them there only.
_UTILS = '''"""Rows and metrics of the IMHI tasks for lm-evaluation-harness; written by `imhi export lm-eval`."""

import json
from pathlib import Path

try:
    from imhi.benchmark import DATASETS
    from imhi.labelers.rules import label_by_rule
    from imhi.metrics.correctness import correctness
except ImportError as error:
    raise ImportError(
        "the IMHI tasks read answers by the rule of the imhi toolkit, which cannot be imported here "
        f"({error}); install it in lm_eval's environment, or put its src folder on PYTHONPATH"
    ) from error

FOLDER = Path(__file__).resolve().parent


def load_rows(rows_file, **_):
    """The rows of one task, read from this folder and kept in memory: no copy in a cache."""
    from datasets import Dataset

    with (FOLDER / rows_file).open(encoding="utf-8", newline="\\n") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def process_results(doc, results):
    """(gold label, label that the answer states or None) under each metric's name."""
    pair = (doc["label"], label_by_rule(DATASETS[doc["dataset"]], results[0].strip()))
    return {"rule_accuracy": pair, "rule_weighted_f1": pair, "rule_unparsed": pair}


def _figures(pairs):
    return correctness([gold for gold, _ in pairs], [said for _, said in pairs])


def rule_accuracy(pairs):
    """Share of rows whose answer states the gold label, 0 to 1; an answer that states none is wrong."""
    return _figures(pairs).accuracy


def rule_weighted_f1(pairs):
    """F1 of each label weighted by its gold rows, 0 to 1; an answer that states none is a miss of its gold label."""
    return _figures(pairs).weighted_f1


def rule_unparsed(pairs):
    """Share of rows whose answer states no label, 0 to 1; lower is better."""
    return _figures(pairs).unparsed / len(pairs)
'''


def _readme(folder: Path, root: DataRoot, suites: Mapping[str, LoadedSuite], max_new_tokens: int) -> str:
    listed = "\n".join(
        f"- `imhi_{form}`: " + ", ".join(f"`imhi_{form}_{name}` ({rows} rows)" for name, rows in suite.counts().items())
        for form, suite in suites.items()
    )
    holds = (
        "`rows/` holds the toolkit's made-up sample rows, which are not the benchmark. With real ones, mind that it holds posts:"
        if root.is_samples
        else "**`rows/` holds posts of people about their mental health.**"
    )
    first = next(iter(suites))
    return f"""# IMHI for lm-evaluation-harness

Written by `{MADE_BY}` (imhi {__version__}).

{holds}
They are not to be published, and nor is what `lm_eval` copies them into: `--log_samples` writes posts and answers to
`--output_path`, `--use_cache` writes answers, and the harness's uploads (`--hf_hub_log_args`, `--wandb_args`) send
them away. The tasks themselves download and send nothing.

{listed}

The environment of `lm_eval` needs the toolkit `imhi` for the metrics: install it there, or put its `src` folder on
`PYTHONPATH`. Then

    lm_eval --model hf --model_args pretrained=MODEL,dtype=float32 --batch_size 1 \\
        --include_path {shlex.quote(str(folder.resolve()))} --tasks imhi_{first}

`rule_accuracy` and `rule_weighted_f1` (higher is better) are the figures of `imhi label --rules`, ours and not the
published rule's, 0 to 1: an answer that states no label is wrong. `rule_unparsed` (lower is better) is the share of such
answers. A group's figure is the plain mean over its datasets.

The answers are those of `imhi generate --max_new_tokens {max_new_tokens} --dtype float32 --deterministic`: greedy, ended
by the model's end token or after {max_new_tokens} new tokens. They are not where

- rows share a batch or the number format is another: rounding moves a few answers;
- a prompt has more tokens than the model's positions less {max_new_tokens}: the harness cuts it from the left, `imhi`
  shortens the answer instead. It warns of that (`Left truncation applied`); a smaller `--max_new_tokens` leaves room;
- `generation_config.json` of the model asks for beams, a penalty or a least length: the harness obeys, `imhi` does not;
- the tokenizer appends an end token to a prompt: the harness keeps it, `imhi` does not.
"""
