"""Training for a few steps on the sample rows, on the real MiniLM: reproducible, resumable, usable."""

import json
import shutil

import pytest

from imhi.benchmark import DATASETS
from imhi.data import DataRoot, samples_root
from imhi.errors import UserError
from imhi.labelers.folders import open_labelers
from imhi.training import fitting, labelers
from imhi.training.corpus import fold_of, is_validation, read_corpus
from imhi.training.fitting import Recipe
from imhi.training.labelers import figures_table, train_labelers

QUICK = Recipe(common_chunks=2, chunks=2, batch=2, max_tokens=48, check_every=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(labelers, "CALIBRATION_ANSWERS", 60)
    monkeypatch.setattr(labelers, "LOOK_ANSWERS", 20)


@pytest.fixture
def root():
    return DataRoot(samples_root(), "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, returned settings) of one uninterrupted training of two sets."""
    patch = pytest.MonkeyPatch()
    patch.setattr(labelers, "CALIBRATION_ANSWERS", 60)
    patch.setattr(labelers, "LOOK_ANSWERS", 20)
    out = tmp_path_factory.mktemp("trained") / "out"
    settings = train_labelers(DataRoot(samples_root(), "test"), out, QUICK, datasets=["swmh", "SAD"])
    patch.undo()
    return out, settings


def weights(out, name="SAD"):
    return (out / name / "adapter_model.safetensors").read_bytes()


def test_equal_seeds_give_equal_weights_and_other_seeds_others(trained, root, tmp_path):
    train_labelers(root, tmp_path / "again", QUICK, datasets=["SAD"])
    assert weights(tmp_path / "again") == weights(trained[0])
    other = Recipe(**{**QUICK.__dict__, "seed": 1})
    train_labelers(root, tmp_path / "other", other, datasets=["SAD"])
    assert weights(tmp_path / "other") != weights(trained[0])


@pytest.mark.parametrize("fit", ["common", "SAD"])
def test_an_interrupted_training_goes_on_to_the_same_weights(trained, root, tmp_path, monkeypatch, fit):
    drawn = fitting.Lessons.draw

    def interrupted(self, name, count):
        if name == f"{fit} 1":
            raise KeyboardInterrupt
        return drawn(self, name, count)

    monkeypatch.setattr(fitting.Lessons, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_labelers(root, tmp_path, QUICK, datasets=["SAD"])
    seen = []

    def watched(self, name, count):
        seen.append(name)
        return drawn(self, name, count)

    monkeypatch.setattr(fitting.Lessons, "draw", watched)
    train_labelers(root, tmp_path, QUICK, datasets=["SAD"])
    assert f"{fit} 0" not in seen and f"{fit} 1" in seen
    assert weights(tmp_path) == weights(trained[0])


def test_what_is_finished_is_not_trained_again(trained, root, capsys, monkeypatch):
    out, settings = trained
    monkeypatch.setattr(labelers, "fit", None)
    assert train_labelers(root, out, QUICK, datasets=["SAD"])["SAD"] == settings["SAD"]
    assert "SAD: already trained" in capsys.readouterr().err


def test_another_recipe_in_the_same_folder_is_refused(trained, root):
    with pytest.raises(UserError, match=r"holds classifiers of another recipe; give another --out, or --overwrite"):
        train_labelers(root, trained[0], Recipe(), datasets=["SAD"])


def test_figures_interrupted_do_not_cost_the_fit(root, tmp_path, monkeypatch):
    figures = labelers.figures_of
    monkeypatch.setattr(labelers, "figures_of", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_labelers(root, tmp_path, QUICK, datasets=["SAD"])
    before = weights(tmp_path)
    monkeypatch.setattr(labelers, "figures_of", figures)
    monkeypatch.setattr(labelers, "fit", None)
    settings = train_labelers(root, tmp_path, QUICK, datasets=["SAD"])["SAD"]
    assert weights(tmp_path) == before and settings["figures"]["sets"]["challenge"]["answers"] > 60


def test_a_strangers_folder_is_left_alone(root, tmp_path):
    (tmp_path / "SAD").mkdir()
    (tmp_path / "SAD" / "pytorch_model.bin").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="holds SAD, and not from a training of this toolkit"):
            train_labelers(root, tmp_path, QUICK, datasets=["DR"], overwrite=overwrite)
    assert (tmp_path / "SAD" / "pytorch_model.bin").read_text() == "precious"


def test_overwrite_leaves_nothing_of_another_recipe(trained, root, tmp_path):
    out = shutil.copytree(trained[0], tmp_path / "out")
    other = Recipe(**{**QUICK.__dict__, "seed": 1, "common_chunks": 1, "chunks": 1})
    train_labelers(root, out, other, datasets=["SAD"], overwrite=True)
    assert not (out / "swmh").exists() and weights(out) != weights(trained[0])


def test_a_mistake_in_the_base_does_not_claim_the_folder(root, tmp_path, tiny_llama):
    with pytest.raises(UserError, match="expected a BERT encoder"):
        train_labelers(root, tmp_path, Recipe(base=str(tiny_llama)))
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_is_one_line(root, tmp_path):
    recipe = Recipe(**{**QUICK.__dict__, "learning_rate": float("inf")})
    with pytest.raises(UserError, match="the loss of common is no longer finite; take a lower one"):
        train_labelers(root, tmp_path, recipe, datasets=["SAD"])


def test_label_inference_takes_the_folder(trained):
    import torch

    out, settings = trained
    found = open_labelers(out, [DATASETS["swmh"], DATASETS["SAD"]], device="cpu", dtype=torch.float32)
    result = found["SAD"].label(DATASETS["SAD"], ["work.", "", "The poster is behind on rent."])
    assert len(result.labels) == 3 and result.clear is not None
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["seed"] == 0 and manifest["data"] and manifest["base_files"]
    assert set(manifest["seconds"]) == {"common", "swmh", "SAD"}
    card = (out / "SAD" / "README.md").read_text()
    assert "Not for clinical use" in card and "Confusion" in card
    assert "SAD" in figures_table(settings)


def test_a_set_with_test_rows_alone_is_cross_validated(root, tmp_path, monkeypatch):
    """CAMS without its training files: one fit a fold, every row predicted by a classifier that did not see its post."""
    shutil.copytree(samples_root() / "test_data", tmp_path / "data" / "test_data")
    fits = {}

    def watched(lessons, *arguments, name, **more):
        fits[name] = {row.post for rows in lessons.rows.get("CAMS", {}).values() for row in rows}
        return fitting.fit(lessons, *arguments, name=name, **more)

    monkeypatch.setattr(labelers, "fit", watched)
    settings = train_labelers(
        DataRoot(tmp_path / "data", "test"),
        tmp_path / "out",
        Recipe(common_chunks=1, chunks=1, batch=1, max_tokens=32, check_every=1),
        datasets=["CAMS"],
    )["CAMS"]
    assert settings["training"]["learned_from"] == "its test rows"
    assert "each by the one of 5 classifiers that did not learn from its post" in settings["figures"]["gold_rows"]
    rows = settings["training"]["rows"] + settings["training"]["validation_rows"]
    assert settings["figures"]["sets"]["gold, no head"]["answers"] == rows == 9
    assert set(fits) == {"common", "CAMS", *(f"CAMS.fold{fold}" for fold in range(5))}
    every = {row.post for row in read_corpus(DataRoot(tmp_path / "data", "test")).test["CAMS"]}
    for fold in range(5):
        assert fits[f"CAMS.fold{fold}"] == {post for post in every if fold_of(post) != fold and not is_validation(post)}
    assert not settings["training"]["unseen_test_rows"] or settings["training"]["validation_rows"]


def test_a_whole_checkpoint_is_trained_and_read_back(root, tmp_path):
    import torch

    recipe = Recipe(rank=0, layers=None, common_chunks=1, chunks=1, batch=1, max_tokens=32, check_every=1)
    train_labelers(root, tmp_path, recipe, datasets=["DR"])
    assert (tmp_path / "DR" / "model.safetensors").exists()
    again = Recipe(**{**recipe.__dict__, "base": str(tmp_path / "DR"), "rank": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        train_labelers(root, tmp_path / "again", Recipe(**{**again.__dict__, "base": "DR"}), datasets=["SAD"])
    assert json.loads((tmp_path / "again" / "SAD" / "labeler.json").read_text())["base"] == str(tmp_path / "DR")
    config = json.loads((tmp_path / "DR" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    found = open_labelers(tmp_path, [DATASETS["DR"]], device="cpu", dtype=torch.float32)
    assert found["DR"].label(DATASETS["DR"], ["yes."]).clear is not None


def test_bad_bases_and_layers_are_one_line(root, tmp_path, tiny_llama):
    with pytest.raises(UserError, match="expected a BERT encoder"):
        train_labelers(root, tmp_path / "a", Recipe(base=str(tiny_llama)))
    with pytest.raises(UserError, match=r"layers 0 9: .* has 6; give rising numbers from 0 to 5"):
        train_labelers(root, tmp_path / "b", Recipe(layers=(0, 9)))
