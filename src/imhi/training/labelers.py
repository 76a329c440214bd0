"""The ten label classifiers, from a data root: what ``imhi train labelers`` runs.

One fit on all datasets together (intermediate-task training: Phang et al., "Sentence Encoders on STILTs", 2018) gives
every classifier its start; a short fit on each dataset ends it.  A cross-validated set has one more fit a fold.
What is finished is on disk and is not computed again; an interrupted fit goes on from its last look at the
validation answers.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.benchmark import DATASETS
from imhi.checkpoints import fingerprint, locate
from imhi.data import DataRoot, write_text_atomically
from imhi.errors import UserError
from imhi.labelers.adapters import Bases, decisive_files
from imhi.labelers.folders import open_labeler
from imhi.labelers.settings import FORMAT, MAX_TOKENS, SETTINGS_FILE
from imhi.locks import only_process
from imhi.provenance import environment, now
from imhi.talk import say, table
from imhi.training.answers import writing_digests
from imhi.training.card import card
from imhi.training.corpus import (
    BORROWED,
    FOLDS,
    Corpus,
    Explained,
    evaluation_rows,
    fold_of,
    is_validation,
    read_corpus,
)
from imhi.training.figures import Calibration, calibrate, figures_of, gold_sets
from imhi.training.fitting import FLAG, Fitted, Recipe, fit, head_of_dataset, save, weights_of
from imhi.training.lessons import Lesson, Lessons

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["MANIFEST", "figures_table", "train_labelers"]

MANIFEST = "manifest.json"
WORK = "work"
COMMON = "common"
# Validation answers: those that a fit looks at again and again, and those that calibrate its outcome.
LOOK_ANSWERS, CALIBRATION_ANSWERS = 300, 1000


def train_labelers(
    root: DataRoot,
    out: Path,
    recipe: Recipe,
    *,
    datasets: Sequence[str] = (),
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    folds: bool = True,
    overwrite: bool = False,
) -> dict[str, dict[str, Any]]:
    """Train the classifiers of `datasets` (none: all ten) into ``out/DATASET``; returns their ``labeler.json``.

    Parameters
    ----------
    dtype : what training computes in; labels are computed in float32 always.
    folds : whether cross-validated sets get the fits that their figures need.
    overwrite : throw away what `out` holds of another recipe, other data or other sentences.

    Raises UserError where `out` holds the work of another recipe, and where the data root or the base is not usable.
    """
    base = locate(recipe.base, flag=FLAG)
    corpus = read_corpus(root)
    out.mkdir(parents=True, exist_ok=True)
    with only_process(out, "training into it"):
        identity = {
            "recipe": json.loads(json.dumps(asdict(recipe))),
            "dtype": str(dtype or "torch.float32").removeprefix("torch."),
            "device": device.partition(":")[0],
            "base_files": decisive_files(fingerprint(base)),
            "data": corpus.files,
            "writing": writing_digests(),
        }
        _open(out, identity, overwrite=overwrite)
        training = _Training(corpus, out, recipe, base, device, dtype)
        start = training.common()
        done = {}
        for name in datasets or DATASETS:
            done[name] = training.classifier(name, start, folds=folds)
        manifest = {
            **identity,
            "finished": now(),
            "data_root": root.describe(),
            "dropped_rows": corpus.dropped,
            "environment": environment(),
            "seconds": training.seconds(),
        }
        _write(out / MANIFEST, manifest)
        return done


def _open(out: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Make `out` this training's folder, or stop where it is another's."""
    (out / WORK).mkdir(exist_ok=True)
    at = out / WORK / "identity.json"
    if at.exists():
        earlier = json.loads(at.read_text(encoding="utf-8"))
        changed = [name for name in identity if identity[name] != earlier.get(name)]
        if changed and not overwrite:
            raise UserError(
                f"{out} holds classifiers of another {', '.join(changed)}; give another --out, or --overwrite"
            )
        if changed:
            shutil.rmtree(out / WORK)
            (out / WORK).mkdir()
    _write(at, identity)


class _Training:
    """One call of `train_labelers`: its corpus, its folders and its fits."""

    def __init__(self, corpus: Corpus, out: Path, recipe: Recipe, base: Path, device: str, dtype: torch.dtype | None):
        self.corpus, self.out, self.recipe, self.base = corpus, out, recipe, base
        self.device, self.dtype = device, dtype
        self.bases: Bases = {}

    def common(self) -> dict[str, torch.Tensor]:
        """The weights that every classifier starts from, learned on all ten datasets' training rows."""
        from safetensors.torch import load_file, save_file

        at = self.out / WORK / f"{COMMON}.safetensors"
        if not at.exists():
            rows = {name: self.corpus.training.get(name, []) for name in DATASETS}
            fitted = self._fit(COMMON, rows, None, self.recipe.common_chunks)
            save_file({key: tensor.contiguous() for key, tensor in weights_of(fitted.model).items()}, str(at))
            self._forget(COMMON)
        return load_file(str(at))

    def classifier(self, name: str, common: dict[str, torch.Tensor], *, folds: bool) -> dict[str, Any]:
        """Fit, calibrate, measure and describe the classifier of one dataset; or read what an earlier call left."""
        folder, record = self.out / name, self.out / WORK / f"{name}.json"
        if record.exists():
            say(f"{name}: already trained in {folder}")
            return json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        start = head_of_dataset(common, list(DATASETS), name)
        rows = self.corpus.learnable(name)
        settings = self._trained(name, folder, rows, start)
        held_out, evaluated = evaluation_rows(self.corpus, name)
        crossed = self.corpus.is_cross_validated(name)
        if crossed and folds:
            held_out += f", each by the classifier of {FOLDS} that did not learn from its post"
            gold = self._cross_logits(name, evaluated, start)
        elif crossed:
            held_out, evaluated, gold = "", [], {}
        else:
            labeler = self._labeler(name, folder)
            gold = {
                kind: labeler.logits(DATASETS[name], texts)
                for kind, texts in gold_sets(DATASETS[name], evaluated).items()
            }
        logits = self._labeler(name, folder).logits
        calibration = Calibration(settings["temperature"], settings["unclear_below"], 0, 0)
        settings["figures"] = {
            "gold_rows": held_out or "none",
            "sets": figures_of(
                DATASETS[name],
                evaluated,
                gold if evaluated else {},
                lambda texts: logits(DATASETS[name], texts),
                calibration,
            ),
        }
        _write(folder / SETTINGS_FILE, settings)
        write_text_atomically(folder / "README.md", card(name, settings, self.recipe))
        _write(record, {"finished": now()})
        return settings

    # --- one fit ----------------------------------------------------------------------------------------------------

    def _trained(
        self, name: str, folder: Path, rows: Sequence[Explained], start: dict[str, torch.Tensor], fit_name: str = ""
    ) -> dict[str, Any]:
        """Fit a classifier of `name` on `rows`, write it to `folder`, calibrate it; returns its settings."""
        fit_name = fit_name or name
        if folder.exists():
            shutil.rmtree(folder)  # the remains of an interrupted call: a finished one is never trained again
        fitted = self._fit(fit_name, {name: rows}, start, self.recipe.chunks)
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(fitted, partial, dataset=name, recipe=self.recipe)
        settings: dict[str, Any] = {
            "format": FORMAT,
            "dataset": name,
            "base": self.recipe.base if self.recipe.rank else None,
            "base_files": decisive_files(fingerprint(self.base)) if self.recipe.rank else None,
            "layers": list(self.recipe.layers) if self.recipe.rank and self.recipe.layers else None,
            "classes": [label.classifier for label in DATASETS[name].labels],
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "unclear_below": 0.0,
        }
        settings = {key: value for key, value in settings.items() if value is not None}
        _write(partial / SETTINGS_FILE, settings)
        validation = self._validation({name: rows}, CALIBRATION_ANSWERS, "calibration")
        labeler = self._labeler(name, partial)
        calibration = calibrate(DATASETS[name], lambda texts: labeler.logits(DATASETS[name], texts), validation)
        settings |= {"temperature": calibration.temperature, "unclear_below": calibration.unclear_below}
        settings["training"] = self._described(name, rows, fitted, calibration)
        _write(partial / SETTINGS_FILE, settings)
        partial.replace(folder)
        self._forget(fit_name)
        return settings

    def _fit(
        self, name: str, rows: Mapping[str, Sequence[Explained]], start: dict[str, torch.Tensor] | None, chunks: int
    ) -> Fitted:
        learned = {dataset: [row for row in given if not is_validation(row.post)] for dataset, given in rows.items()}
        began = time.perf_counter()
        fitted = fit(
            Lessons(learned, seed=self.recipe.seed),
            self._validation(rows, LOOK_ANSWERS, "looks"),
            self.recipe,
            base=self.base,
            name=name,
            chunks=chunks,
            learning_rate=self.recipe.own_rate if start is not None else self.recipe.learning_rate,
            checkpoint=self.out / WORK / f"{name}.pt",
            start=start,
            device=self.device,
            dtype=self.dtype,
        )
        _write(
            self.out / WORK / f"{name}.fit.json",
            {
                "seconds": round(time.perf_counter() - began, 1),
                "chunks": fitted.chunks,
                "best_chunk": fitted.best_chunk,
                "validation_loss": fitted.validation,
                "environment": environment(),
            },
        )
        return fitted

    def _validation(self, rows: Mapping[str, Sequence[Explained]], count: int, what: str) -> list[Lesson]:
        held = {name: [row for row in given if is_validation(row.post)] for name, given in rows.items()}
        return Lessons(held, part="validation", seed=self.recipe.seed).draw(what, count)

    def _cross_logits(
        self, name: str, rows: Sequence[Explained], start: dict[str, torch.Tensor]
    ) -> dict[str, np.ndarray]:
        """Logits of the gold sets, each row by the classifier whose fold it is, divided by that one's temperature."""
        import numpy as np

        dataset = DATASETS[name]
        found = {
            kind: np.zeros((len(rows), len(dataset.labels)), dtype=np.float32) for kind in gold_sets(dataset, rows)
        }
        for fold in range(FOLDS):
            fit_name = f"{name}.fold{fold}"
            folder = self.out / WORK / fit_name
            learned = self.corpus.learnable(name, without_fold=fold)
            if not (folder / SETTINGS_FILE).exists():
                self._trained(name, folder, learned, start, fit_name)
            at = [index for index, row in enumerate(rows) if fold_of(row.post) == fold]
            labeler = self._labeler(name, folder)
            for kind, texts in gold_sets(dataset, [rows[index] for index in at]).items():
                found[kind][at] = labeler.logits(dataset, texts)
        return found

    def _labeler(self, name: str, folder: Path) -> Any:
        import torch

        return open_labeler(folder, DATASETS[name], device=self.device, dtype=torch.float32, bases=self.bases)

    def _described(
        self, name: str, rows: Sequence[Explained], fitted: Fitted, calibration: Calibration
    ) -> dict[str, Any]:
        """What the classifier learned from, for its ``labeler.json``."""
        held = [row for row in rows if is_validation(row.post)]
        crossed = self.corpus.is_cross_validated(name)
        return {
            "recipe": asdict(self.recipe),
            "learned_from": "its test rows"
            if crossed
            else "training rows"
            if self.corpus.training.get(name)
            else "borrowed rows",
            "borrowed_from": sorted(BORROWED.get(name, {})),
            "rows": len(rows) - len(held),
            "rows_by_label": {label: sum(row.label == label for row in rows) for label in DATASETS[name].label_names},
            "validation_rows": len(held),
            "validation_indices": [row.index for row in held] if crossed else None,
            "dropped_rows": self.corpus.dropped.get(name, 0),
            "calibration_answers": calibration.answers,
            "calibration_undecided": calibration.undecided,
            "chunks": fitted.chunks,
            "best_chunk": fitted.best_chunk,
            "finished": now(),
            "environment": {
                key: value for key, value in environment().items() if key in ("imhi", "python", "libraries", "machine")
            },
        }

    def _forget(self, fit_name: str) -> None:
        """Drop the state of a fit whose outcome is on disk."""
        (self.out / WORK / f"{fit_name}.pt").unlink(missing_ok=True)

    def seconds(self) -> dict[str, float]:
        """Seconds of each fit, all calls together for one that was not interrupted."""
        return {
            path.name.removesuffix(".fit.json"): json.loads(path.read_text(encoding="utf-8"))["seconds"]
            for path in sorted((self.out / WORK).glob("*.fit.json"))
        }


def figures_table(settings: dict[str, dict[str, Any]]) -> str:
    """Accuracy in per cent with its 95 % interval, a line a dataset, a column a set of answers."""
    kinds = list(dict.fromkeys(kind for found in settings.values() for kind in found["figures"]["sets"]))
    lines = []
    for name, found in settings.items():
        cells = []
        for kind in kinds:
            figures = found["figures"]["sets"].get(kind)
            if figures is None:
                cells.append("-")
                continue
            value, low, high = (100 * figures["accuracy"][key] for key in ("value", "low", "high"))
            cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
        lines.append([name, *cells])
    return table(["dataset", *kinds], lines)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
