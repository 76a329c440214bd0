"""Training for a few steps on the sample rows, on the real MiniLM: reproducible, resumable, usable."""

import json
import shutil

import pytest

from imhi.benchmark import DATASETS
from imhi.data import DataRoot, samples_root
from imhi.errors import UserError
from imhi.labelers.folders import open_labelers
from imhi.training import fitting, labelers
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
    other = Recipe(**{**QUICK.__dict__, "seed": 1, "common_chunks": 1, "chunks": 1})
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


def test_a_set_with_test_rows_alone_is_cross_validated(root, tmp_path):
    """CAMS without its training files: one fit a fold, every row predicted by a classifier that did not see its post."""
    shutil.copytree(samples_root() / "test_data", tmp_path / "data" / "test_data")
    settings = train_labelers(
        DataRoot(tmp_path / "data", "test"),
        tmp_path / "out",
        Recipe(common_chunks=1, chunks=1, batch=1, max_tokens=32, check_every=1),
        datasets=["CAMS"],
    )["CAMS"]
    assert settings["training"]["learned_from"] == "its test rows"
    assert "each by the classifier of 5 that did not learn from its post" in settings["figures"]["gold_rows"]
    rows = settings["training"]["rows"] + settings["training"]["validation_rows"]
    assert settings["figures"]["sets"]["gold, no head"]["answers"] == rows
    assert len(list((tmp_path / "out" / "work").glob("CAMS.fold*/labeler.json"))) == 5


def test_a_whole_checkpoint_is_trained_and_read_back(root, tmp_path):
    import torch

    recipe = Recipe(rank=0, layers=None, common_chunks=1, chunks=1, batch=1, max_tokens=32, check_every=1)
    train_labelers(root, tmp_path, recipe, datasets=["DR"])
    assert (tmp_path / "DR" / "model.safetensors").exists()
    config = json.loads((tmp_path / "DR" / "config.json").read_text())
    assert config["id2label"] == {"0": "no", "1": "yes"}
    found = open_labelers(tmp_path, [DATASETS["DR"]], device="cpu", dtype=torch.float32)
    assert found["DR"].label(DATASETS["DR"], ["yes."]).clear is not None


def test_bad_bases_and_layers_are_one_line(root, tmp_path, tiny_llama):
    with pytest.raises(UserError, match="expected a BERT encoder"):
        train_labelers(root, tmp_path / "a", Recipe(base=str(tiny_llama)))
    with pytest.raises(UserError, match=r"layers 0 9: .* has 6; give rising numbers from 0 to 5"):
        train_labelers(root, tmp_path / "b", Recipe(layers=(0, 9)))
