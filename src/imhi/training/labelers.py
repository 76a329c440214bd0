"""The ten label classifiers, from a data root: what ``imhi train labelers`` runs.

One fit on all datasets together (intermediate-task training: Phang et al., "Sentence Encoders on STILTs", 2018) gives
every classifier its start; a short fit on each dataset ends it.  A cross-validated set has one more fit a fold.
What is finished is on disk and is not computed again; an interrupted fit goes on from its last look at the
validation answers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.benchmark import DATASETS
from imhi.checkpoints import fingerprint, locate
from imhi.data import DataRoot, write_text_atomically
from imhi.errors import UserError
from imhi.labelers.adapters import Bases, decisive_files
from imhi.labelers.classifier import Classifier
from imhi.labelers.folders import open_labeler
from imhi.labelers.settings import FORMAT, MAX_TOKENS, SETTINGS_FILE
from imhi.locks import only_process
from imhi.provenance import environment, git_state, now
from imhi.talk import say, some, table
from imhi.training.answers import writing_digests
from imhi.training.card import card
from imhi.training.corpus import (
    FOLDS,
    Corpus,
    Explained,
    evaluation_rows,
    fold_of,
    is_validation,
    read_corpus,
)
from imhi.training.figures import Calibration, Judged, calibrate, challenge_digest, figures_of, gold_sets
from imhi.training.fitting import FLAG, Fitted, Recipe, check_base, fit, head_of_dataset, save, weights_of
from imhi.training.lessons import Lesson, Lessons

if TYPE_CHECKING:
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
    dtype : what training computes in, float32 or bfloat16; labels are computed in float32 always.
    folds : whether cross-validated sets get the fits that their figures need.
    overwrite : throw away what `out` holds of another recipe, other data or other sentences.

    Raises UserError where `out` holds classifiers of another recipe or of somebody else, and where the data root or
    the base is not usable.
    """
    base = locate(recipe.base, flag=FLAG)
    if Path(recipe.base).expanduser().exists():
        # Labelling may be started from another directory.
        recipe = replace(recipe, base=str(base.resolve()))
    check_base(base, recipe)
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
        facts = {**identity, "sample_rows": root.is_samples, "threads": _threads(), "git": git_state()}
        training = _Training(corpus, out, recipe, base, device, dtype, facts)
        start = training.common()
        done = {}
        for name in datasets or DATASETS:
            done[name] = training.classifier(name, start, folds=folds)
        manifest = {
            **facts,
            "finished": now(),
            "data_root": root.describe(),
            "dropped_rows": corpus.dropped,
            "environment": environment(),
            "seconds": training.seconds(),
        }
        _write(out / MANIFEST, manifest)
        return done


def _threads() -> int:
    """Threads that torch computes with: on a CPU, sums and so the last bits of weights depend on them."""
    import torch

    return torch.get_num_threads()


def _open(out: Path, identity: dict[str, Any], *, overwrite: bool) -> None:
    """Make `out` this training's folder, or stop where it holds what this training would not make again."""
    work = out / WORK
    at = work / "identity.json"
    present = [out / name for name in DATASETS if (out / name).exists()]
    if at.exists():
        earlier = json.loads(at.read_text(encoding="utf-8"))
        changed = [name for name in identity if identity[name] != earlier.get(name)]
        begun = present or any(work.glob("*.pt")) or any(work.glob("*.safetensors"))
        if changed and begun and not overwrite:
            raise UserError(
                f"{out} holds classifiers of another {', '.join(changed)}; give another --out, or --overwrite"
            )
        if changed:
            for folder in [work, *present]:
                shutil.rmtree(folder)
    elif present:
        # Whatever the flags: nothing here says that it can be made again.
        raise UserError(
            f"--out: {out} holds {some(folder.name for folder in present)}, and not from a training of this toolkit; "
            "give a folder of its own"
        )
    work.mkdir(exist_ok=True)
    _write(at, identity)


class _Training:
    """One call of `train_labelers`: its corpus, its folders and its fits."""

    def __init__(
        self,
        corpus: Corpus,
        out: Path,
        recipe: Recipe,
        base: Path,
        device: str,
        dtype: torch.dtype | None,
        facts: dict[str, Any],
    ):
        self.corpus, self.out, self.recipe, self.base = corpus, out, recipe, base
        self.device, self.dtype, self.facts = device, dtype, facts
        self.bases: Bases = {}

    def common(self) -> dict[str, torch.Tensor]:
        """The weights that every classifier starts from, learned on all ten datasets' training rows."""
        from safetensors.torch import load_file, save_file

        at = self.out / WORK / f"{COMMON}.safetensors"
        if not at.exists():
            rows = {name: self.corpus.training.get(name, []) for name in DATASETS}
            fitted = self._fit(COMMON, rows, None, self.recipe.common_chunks)
            partial = at.with_name(at.name + ".part")
            save_file({key: tensor.contiguous() for key, tensor in weights_of(fitted.model).items()}, str(partial))
            partial.replace(at)
        self._forget(COMMON)
        return load_file(str(at))

    def classifier(self, name: str, common: dict[str, torch.Tensor], *, folds: bool) -> dict[str, Any]:
        """Fit, calibrate, measure and describe the classifier of one dataset; what is on disk is not made again."""
        folder, record = self.out / name, self.out / WORK / f"{name}.json"
        measured_with = {"folds": folds, "challenge": challenge_digest()}
        if record.exists() and json.loads(record.read_text(encoding="utf-8")).get("measured_with") == measured_with:
            say(f"{name}: already trained in {folder}")
            return self._settings(folder)
        start = head_of_dataset(common, list(DATASETS), name)
        rows = self.corpus.learnable(name)
        settings = self._trained(name, folder, rows, start)
        settings["training"] |= self._described(name, rows)
        settings["figures"] = self._figures(name, folder, settings, start, folds=folds)
        _write(folder / SETTINGS_FILE, settings)
        write_text_atomically(folder / "README.md", card(name, settings))
        _write(record, {"finished": now(), "measured_with": measured_with})
        return settings

    def _figures(
        self, name: str, folder: Path, settings: dict[str, Any], start: dict[str, torch.Tensor], *, folds: bool
    ) -> dict[str, Any]:
        """The card's figures, of the classifier or, where it learned from the gold rows, of those of the folds."""
        dataset = DATASETS[name]
        held_out, rows = evaluation_rows(self.corpus, name)
        labeler = self._labeler(name, folder)
        shipped = Calibration(settings["temperature"], settings["unclear_below"])
        gold: dict[str, Judged] = {}
        if self.corpus.is_cross_validated(name):
            if folds:
                held_out += f", each by the one of {FOLDS} classifiers that did not learn from its post"
                gold = self._cross_judged(name, rows, start)
            else:
                held_out, rows = "", []
        else:
            for kind, texts in gold_sets(dataset, rows).items():
                gold[kind] = Judged.by(shipped, labeler.logits(dataset, texts))
        return {
            "gold_rows": held_out or "none",
            "sets": figures_of(dataset, rows, gold, lambda texts: labeler.logits(dataset, texts), shipped),
        }

    # --- one fit ----------------------------------------------------------------------------------------------------

    def _trained(
        self, name: str, folder: Path, rows: Sequence[Explained], start: dict[str, torch.Tensor], fit_name: str = ""
    ) -> dict[str, Any]:
        """Fit a classifier of `name` on `rows`, calibrate it, write it to `folder`; returns its settings.

        A folder is there whole or not at all: it is written under another name first.
        """
        fit_name = fit_name or name
        if folder.exists():
            return self._settings(folder)
        fitted = self._fit(fit_name, {name: rows}, start, self.recipe.chunks)
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(fitted, partial, dataset=name, recipe=self.recipe)
        settings: dict[str, Any] = {
            "format": FORMAT,
            "dataset": name,
            "base": self.recipe.base if self.recipe.rank else None,
            "base_files": self.facts["base_files"] if self.recipe.rank else None,
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
        undecided = sum(lesson.label is None for lesson in validation)
        settings["training"] = {
            "calibration_answers": len(validation) - undecided,
            "calibration_undecided": undecided,
            "chunks": fitted.chunks,
            "best_chunk": fitted.best_chunk,
            "finished": now(),
            "environment": environment(),
        }
        _write(partial / SETTINGS_FILE, settings)
        partial.replace(folder)
        self._forget(fit_name)
        return settings

    def _fit(
        self, name: str, rows: Mapping[str, Sequence[Explained]], start: dict[str, torch.Tensor] | None, chunks: int
    ) -> Fitted:
        learned = {dataset: [row for row in given if not is_validation(row.post)] for dataset, given in rows.items()}
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
                "seconds": round(fitted.seconds, 1),
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

    def _cross_judged(self, name: str, rows: Sequence[Explained], start: dict[str, torch.Tensor]) -> dict[str, Judged]:
        """The gold sets as judged by the classifiers of the folds: each row by the one that did not see its post."""
        dataset = DATASETS[name]
        found = {kind: Judged.nothing(len(rows), len(dataset.labels)) for kind in gold_sets(dataset, rows)}
        for fold in range(FOLDS):
            fit_name = f"{name}.fold{fold}"
            folder = self.out / WORK / fit_name
            settings = self._trained(name, folder, self.corpus.learnable(name, without_fold=fold), start, fit_name)
            calibration = Calibration(settings["temperature"], settings["unclear_below"])
            at = [index for index, row in enumerate(rows) if fold_of(row.post) == fold]
            labeler = self._labeler(name, folder)
            for kind, texts in gold_sets(dataset, [rows[index] for index in at]).items():
                found[kind].put(at, Judged.by(calibration, labeler.logits(dataset, texts)))
        return found

    def _labeler(self, name: str, folder: Path) -> Classifier:
        import torch

        return open_labeler(folder, DATASETS[name], device=self.device, dtype=torch.float32, bases=self.bases)

    def _settings(self, folder: Path) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        return settings

    def _described(self, name: str, rows: Sequence[Explained]) -> dict[str, Any]:
        """What the classifier learned from, for its ``labeler.json``: with the code, all that makes it again."""
        held = [row for row in rows if is_validation(row.post)]
        learned = [row for row in rows if not is_validation(row.post) and row.label == row.says]
        own = bool(self.corpus.training.get(name))
        crossed = self.corpus.is_cross_validated(name)
        seen = {row.index for row in learned}
        return {
            "learned_from": "training rows" if own else "its test rows" if crossed else "borrowed rows",
            "borrowed_from": sorted(source for source, _ in DATASETS[name].borrows),
            "rows": len(learned),
            "rows_by_label": {
                label: sum(row.label == label for row in learned) for label in DATASETS[name].label_names
            },
            "validation_rows": len(held),
            # Of test rows that were learned from: those that were not, for validation or as the posts of expert rows.
            "unseen_test_rows": [row.index for row in self.corpus.test[name] if row.index not in seen]
            if crossed
            else None,
            "dropped_rows": self.corpus.dropped.get(name, 0),
            **self.facts,
        }

    def _forget(self, fit_name: str) -> None:
        """Drop the state of a fit whose outcome is on disk."""
        (self.out / WORK / f"{fit_name}.pt").unlink(missing_ok=True)

    def seconds(self) -> dict[str, float]:
        """Seconds of each fit, over all calls that had a part in it."""
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
