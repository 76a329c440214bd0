"""May two runs be compared: the same rows, gold texts and prompts, figures that mean the same."""

from __future__ import annotations

from collections.abc import Sequence

from imhi.errors import UserError
from imhi.measures import Measure, measures_of
from imhi.prompts import DEFAULT_STYLE
from imhi.results import UNRECORDED, DatasetResults, RunResults

__all__ = ["cautions_of", "comparable_datasets", "shared_measures"]


def comparable_datasets(first: RunResults, second: RunResults) -> list[str]:
    """The datasets that both runs have; UserError where their rows, gold texts or prompts differ."""
    names = [name for name in first.datasets if name in second.datasets]
    if not names:
        raise UserError(
            f"no dataset in common: {first.name} has {', '.join(first.datasets)}, "
            f"{second.name} has {', '.join(second.datasets)}"
        )
    asked = [run.configuration.get("test_dataset") for run in (first, second)]
    if None not in asked and asked[0] != asked[1]:
        raise UserError(
            f"prompts differ: {first.name} answered --test_dataset {asked[0]}, {second.name} {asked[1]}; "
            "generate both with the same"
        )
    for name in names:
        _refuse_other_rows(first, second, name)
    return names


def _refuse_other_rows(first: RunResults, second: RunResults, name: str) -> None:
    one, other = first.datasets[name], second.datasets[name]
    if one.index != other.index:
        alone = sorted(set(one.index) ^ set(other.index))
        where = first.name if alone and alone[0] in set(one.index) else second.name
        raise UserError(
            f"{name}: rows differ, {len(one)} in {first.name} and {len(other)} in {second.name}"
            + (f" (row {alone[0] + 1} only in {where})" if alone else " (in another order)")
            + f"; generate the missing ones, or leave {name} out with --datasets"
        )
    for what, mine, theirs in (("gold text", one.goldens, other.goldens), ("prompt", one.queries, other.queries)):
        if mine is None or theirs is None:
            continue
        at = next((at for at, (left, right) in enumerate(zip(mine, theirs, strict=True)) if left != right), None)
        if at is not None:
            raise UserError(
                f"{name}, row {one.index[at] + 1}: the {what} differs between {one.path} and {other.path}; "
                f"both runs must answer the same test file (or leave {name} out with --datasets)"
            )
    if not (one.has_texts and other.has_texts) and one.file_digest != other.file_digest:
        raise UserError(
            f"{name}: {one.path} and {other.path} are of other gold texts, by their digests; both runs must answer the "
            f"same test file (or leave {name} out with --datasets)"
        )
    files = [run.configuration.get("data_files", {}).get(name) for run in (first, second)]
    if None not in files and files[0] != files[1]:
        raise UserError(
            f"{name}: the gold texts agree but the prompts may not, {first.name} and {second.name} read different test "
            f"files (SHA-256 {files[0][7:19]} and {files[1][7:19]}); generate both from one data root"
        )


def shared_measures(one: DatasetResults, other: DatasetResults) -> tuple[dict[str, Measure], list[str]]:
    """The measures that both have and that mean the same, and why others of theirs do not count."""
    mine, theirs = measures_of(one), measures_of(other)
    shared, reasons = {}, {}
    for key in mine.keys() & theirs.keys():
        differing = _difference(one, other, mine[key])
        if differing is None:
            shared[key] = mine[key]
        else:
            reasons[mine[key].metric or mine[key].source] = differing
    return {key: shared[key] for key in mine if key in shared}, sorted(reasons.values())


def _difference(one: DatasetResults, other: DatasetResults, measure: Measure) -> str | None:
    """Why a figure of this measure is not the same in both; None where it is."""
    if measure.source:
        mine, theirs = one.labels[measure.source].definition, other.labels[measure.source].definition
        if mine == theirs:
            return None
        return f"labels by {measure.source} left out, the two runs were labelled differently; label both with one"
    signatures = [results.scores[measure.key].signature for results in (one, other)]
    if signatures[0] == signatures[1]:
        return None
    parts = [signature.split("|") for signature in signatures]
    mine = ", ".join(part for part in parts[0] if part not in parts[1]) or "nothing"
    theirs = ", ".join(part for part in parts[1] if part not in parts[0]) or "nothing"
    return f"{measure.metric} left out, its signatures differ ({mine} against {theirs}); score both anew"


def cautions_of(first: RunResults, second: RunResults, names: Sequence[str]) -> list[str]:
    found = [f"{run.name}: {caution}" for run in (first, second) for caution in run.cautions]
    for run, other in ((first, second), (second, first)):
        alone = [name for name in run.datasets if name not in other.datasets]
        if alone:
            found.append(f"only in {run.name}, left aside: {', '.join(alone)}")
        if run.manifest is None:
            found.append(f"{run.name}: no run of this toolkit; its prompts are taken to be those of its gold texts")
        if run.on_samples:
            found.append(f"{run.name}: made-up sample rows, not the benchmark")
        failed = {name: (run.datasets[name].finish or []).count("error") for name in names}
        if any(failed.values()):
            counts = ", ".join(f"{name} {count}" for name, count in failed.items() if count)
            found.append(f"{run.name}: failed rows count as unparsed ({counts})")
        if any(labels.definition == UNRECORDED for name in names for labels in run.datasets[name].labels.values()):
            found.append(f"{run.name}: labels without labels.json beside them; who labelled is not known")
    if first.manifest and second.manifest:
        found += _settings_that_differ(first, second)
    if any((first.datasets[name].posts or second.datasets[name].posts) is None for name in names):
        found.append("where posts are not at hand (--data_root), rows are taken as independent of each other")
    return found


def _settings_that_differ(first: RunResults, second: RunResults) -> list[str]:
    """How prompts were wrapped and answers decoded: part of what is compared, but to be told."""
    found = []
    mine, theirs = (run.configuration.get("decoding", {}) for run in (first, second))
    # Behind --api chat stands the server's own template.
    in_template = [
        run.configuration.get("api") == "chat" or decoding.get("chat_template", False)
        for run, decoding in ((first, mine), (second, theirs))
    ]
    if in_template[0] != in_template[1]:
        wrapped, raw = (first, second) if in_template[0] else (second, first)
        found.append(f"prompts are wrapped in the chat template in {wrapped.name}, raw in {raw.name}")
    engines = [run.configuration.get("engine", "transformers") for run in (first, second)]
    if engines[0] != engines[1]:
        found.append(f"answered through other engines: {engines[0]} / {engines[1]}")
    examples = [(run.configuration.get("shots") or {}).get("per_label", 0) for run in (first, second)]
    if first.configuration.get("shots") != second.configuration.get("shots"):
        found.append(f"examples of every label before each prompt: {examples[0]} / {examples[1]}")
    styles = [run.configuration.get("prompt_style") or {"name": DEFAULT_STYLE} for run in (first, second)]
    if styles[0] != styles[1]:
        names = [style["name"] for style in styles]
        asked = f"{names[0]} / {names[1]}" if names[0] != names[1] else f"{names[0]}, of two versions of the toolkit"
        found.append(f"prompts are worded differently: --prompt_style {asked}")
    unlike = [
        f"{name} {mine.get(name)} / {theirs.get(name)}"
        for name in dict.fromkeys([*mine, *theirs])
        if name != "chat_template" and mine.get(name) != theirs.get(name)
    ]
    if first.configuration.get("dtype") != second.configuration.get("dtype"):
        unlike.append(f"dtype {first.configuration.get('dtype')} / {second.configuration.get('dtype')}")
    return [*found, *([f"settings differ: {', '.join(unlike)}"] if unlike else [])]
