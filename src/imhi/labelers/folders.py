"""Which classifier labels which dataset: a folder on disk → one labeler a dataset, checked, nothing loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imhi.benchmark import Dataset, dataset_named
from imhi.checkpoints import read_config
from imhi.errors import UserError
from imhi.labelers.adapters import ADAPTER_CONFIG, AdapterLabeler, Bases, check_adapter, find_base
from imhi.labelers.bert import BertLabeler, check_classifier
from imhi.labelers.classifier import Classifier
from imhi.labelers.settings import FLAG, read_settings
from imhi.talk import say, some

if TYPE_CHECKING:
    import torch

__all__ = ["PACKAGED", "find_classifiers", "open_labeler", "open_labelers"]

# The ten adapters that come with the toolkit.
PACKAGED = Path(__file__).parent / "packaged"


def open_labelers(
    model_path: Path | None,
    datasets: Sequence[Dataset],
    *,
    device: str,
    dtype: torch.dtype,
    batch_size: int | None = None,
    skip_missing: bool = False,
) -> dict[str, Classifier]:
    """Dataset name → its labeler, from `model_path`; None: the toolkit's own.

    Adapters of one base share it.  UserError where a classifier is missing or does not fit its dataset; with
    `skip_missing`, missing ones are left out.
    """
    found = (
        _packaged(datasets) if model_path is None else find_classifiers(model_path, datasets, skip_missing=skip_missing)
    )
    bases: Bases = {}
    return {
        dataset.name: open_labeler(
            found[dataset.name], dataset, device=device, dtype=dtype, batch_size=batch_size, bases=bases
        )
        for dataset in datasets
        if dataset.name in found
    }


def _packaged(datasets: Sequence[Dataset]) -> dict[str, Path]:
    found = {dataset.name: PACKAGED / dataset.name for dataset in datasets}
    absent = [name for name, folder in found.items() if not folder.is_dir()]
    if absent:
        raise UserError(
            f"{PACKAGED} has no classifier of {', '.join(absent)}; install the toolkit again, or give a folder of "
            f"classifiers with {FLAG}"
        )
    say(f"classifiers: the toolkit's own ({FLAG} gives others)")
    return found


def open_labeler(
    folder: Path,
    dataset: Dataset,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    bases: Bases | None = None,
) -> Classifier:
    """The labeler of one classifier folder, full checkpoint or adapter, in float32 unless told otherwise.

    UserError, before any model is loaded, where the folder cannot be the classifier of `dataset`.
    `bases` is where adapters look for a base that another of them has already loaded, and leave theirs.
    """
    import torch

    settings = read_settings(folder, dataset)
    _check(folder, dataset)
    dtype = torch.float32 if dtype is None else dtype
    if not _is_adapter(folder):
        return BertLabeler(folder, device, dtype, batch_size, settings=settings)
    base = find_base(folder, settings, {} if bases is None else bases)
    return AdapterLabeler(folder, device, dtype, batch_size, settings=settings, base=base)


def find_classifiers(model_path: Path, datasets: Sequence[Dataset], *, skip_missing: bool = False) -> dict[str, Path]:
    """Dataset name → folder of its classifier under `model_path`, not checked yet: checkpoints, adapters, or both.

    `model_path` may be one classifier itself where there is one dataset.  Missing ones are listed in a UserError,
    or left out with `skip_missing`.
    """
    if model_path.is_file():
        raise UserError(f"{FLAG}: {model_path} is a file; expected a folder with one classifier folder a dataset")
    inside = {child.name: child for child in sorted(model_path.iterdir()) if child.is_dir()}
    is_single = (model_path / "config.json").exists() or _is_adapter(model_path)
    if not inside.keys() & {dataset.name for dataset in datasets} and is_single:
        return {datasets[0].name: _single_classifier(model_path, datasets)}
    folded = {name.casefold(): child for name, child in inside.items()}
    found = {}
    for dataset in datasets:
        folder = inside.get(dataset.name) or folded.get(dataset.name.casefold())
        if folder is not None:
            found[dataset.name] = folder
    missing = [dataset.name for dataset in datasets if dataset.name not in found]
    if missing:
        there = f"{model_path} has no classifier folder for {', '.join(missing)} (found {some(inside)})"
        if not found or not skip_missing:
            remedy = "give the folder that holds DR/, SAD/, ..." if not found else "add them or pass --skip_missing"
            raise UserError(f"{FLAG}: {there}; {remedy}")
        say(f"--skip_missing: {there}; left out")
    return found


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).exists()


def _check(folder: Path, dataset: Dataset) -> None:
    if not _is_adapter(folder):
        check_classifier(folder, dataset)
    elif (folder / "config.json").exists():
        raise UserError(
            f"{FLAG}: {folder} holds a checkpoint (config.json) and an adapter ({ADAPTER_CONFIG}); move one away"
        )
    else:
        check_adapter(folder, dataset)


def _single_classifier(folder: Path, datasets: Sequence[Dataset]) -> Path:
    architectures = None if _is_adapter(folder) else read_config(folder, flag=FLAG).get("architectures")
    what = "adapter" if _is_adapter(folder) else ", ".join(architectures or ["checkpoint"])
    expected = "expected a folder with one classifier folder a dataset (DR/, SAD/, ...)"
    if len(datasets) > 1:
        names = ", ".join(dataset.name for dataset in datasets)
        raise UserError(
            f"{FLAG}: {folder} is one single {what}, but the data holds {names}; {expected}, "
            "or choose the dataset it was trained for with --datasets"
        )
    (dataset,) = datasets
    named = dataset_named(folder.resolve().name)
    if named is not None and named.name != dataset.name:
        raise UserError(f"{FLAG}: {folder} is named after {named.name}, but the data is {dataset.name}; {expected}")
    say(f"{FLAG}: {folder} is one single {what}; taken as the classifier of {dataset.name}")
    return folder
