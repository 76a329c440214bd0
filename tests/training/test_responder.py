"""`imhi train responder`: the loss falls, a resumed training is the uninterrupted one, and what is learned comes back."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from test_responder_rows import row, write

from imhi.benchmark import DATASETS
from imhi.checkpoints import locate_generator
from imhi.cli import main
from imhi.data import DataRoot, samples_root
from imhi.errors import UserError
from imhi.training.responder.recipe import ResponderRecipe
from imhi.training.responder.rows import TrainingRow
from imhi.training.responder.trainer import BestKeeper, last_checkpoint
from imhi.training.responder.training import Hardware, train_responder
from imhi.training.responder.validation import judge

QUICK = ResponderRecipe(
    rank=4,
    alpha=8,
    dropout=0.1,  # a resumed training must take up the random numbers too
    learning_rate=2e-2,
    epochs=2,
    batch_size=8,
    max_tokens=256,
    look_every=4,
    loss_rows=1,
    asked_rows=1,
    max_new_tokens=4,
    best_by="loss",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama):
    """An adapter of the tiny LLaMA, trained on the sample rows without a stop."""
    out = tmp_path_factory.mktemp("responder") / "adapter"
    recipe = replace(QUICK, base=str(tiny_llama))
    samples = DataRoot(samples_root(), "samples")
    return out, recipe, train_responder(samples, out, recipe, datasets=["DR", "SAD", "Irf", "MultiWD"])


def test_on_sample_rows_the_loss_falls(trained):
    _, _, record = trained
    looks = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    assert len(looks) >= 2 and looks[-1] < looks[0] - 0.1
    assert record["sample_rows"] and record["best"]["loss"] == pytest.approx(min(looks))


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(trained, tmp_path, monkeypatch):
    """Killed behind its first checkpoint, in the middle of an epoch; the same command goes on from there."""
    from transformers import Trainer

    folder, recipe, record = trained
    samples, names = DataRoot(samples_root(), "samples"), ["DR", "SAD", "Irf", "MultiWD"]
    out = tmp_path / "adapter"
    step = Trainer.training_step
    taken = []

    def dies(self, *arguments, **options):
        if len(taken) == 6:
            raise KeyboardInterrupt
        taken.append(self.state.global_step)
        return step(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_responder(samples, out, recipe, datasets=names, hardware=Hardware(save_minutes=1e-9))
    monkeypatch.setattr(Trainer, "training_step", step)
    assert last_checkpoint(out / "checkpoints").name == "checkpoint-6" and record["steps"] > 6
    # A checkpoint whose writing was cut short is passed over.
    shutil.copytree(out / "checkpoints/checkpoint-6", out / "checkpoints/checkpoint-7")
    (out / "checkpoints/checkpoint-7/trainer_state.json").unlink()
    resumed = train_responder(samples, out, recipe, datasets=names)
    assert (out / "adapter_model.safetensors").read_bytes() == (folder / "adapter_model.safetensors").read_bytes()

    def losses(found):
        return [
            (e["step"], e.get("loss"), e.get("eval_loss")) for e in found["history"] if "loss" in e or "eval_loss" in e
        ]

    assert losses(resumed) == losses(record)


def test_the_adapter_is_answered_with_as_it_is(trained, tmp_path, capsys):
    folder, _, record = trained
    for flag in ("--lora_path", "--model_path"):
        run = tmp_path / flag.strip("-")
        arguments = ["generate", flag, str(folder), "--model_output_path", str(run), "--limit", "1", "--datasets", "DR"]
        assert main([*arguments, "--max_new_tokens", "4"]) == 0
        manifest = json.loads((run / "manifest.json").read_text())
        assert manifest["configuration"]["adapter_files"]["adapter_model.safetensors"]
    assert "note:" not in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "responder.json",
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("Not for clinical use", "made-up sample rows", "| SAD |", f"step {record['best_step']}"):
        assert said in card
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == record["recipe"]["base"]


def test_a_model_that_is_asked_otherwise_than_it_was_taught_says_so(trained, capsys):
    folder = trained[0]
    spec = locate_generator(None, lora_path=str(folder))
    assert spec.taught_otherwise(form="instruction", chat_template=False) is None
    assert "completion form" in spec.taught_otherwise(form="completion", chat_template=False)
    assert "chat template" in spec.taught_otherwise(form="instruction", chat_template=True)


def test_a_finished_training_is_not_done_again_and_another_one_is_refused(trained, capsys):
    folder, recipe, record = trained
    samples, names = DataRoot(samples_root(), "samples"), ["DR", "SAD", "Irf", "MultiWD"]
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    assert train_responder(samples, folder, recipe, datasets=names)["finished"] == record["finished"]
    assert "nothing to do" in capsys.readouterr().err
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another recipe"):
        train_responder(samples, folder, replace(recipe, learning_rate=1e-3), datasets=names)
    with pytest.raises(UserError, match="another data"):
        train_responder(samples, folder, recipe, datasets=["DR"])


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, tiny_llama):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex, and not from a training"):
        train_responder(DataRoot(samples_root(), "samples"), tmp_path, replace(QUICK, base=str(tiny_llama)))
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--full --rank 4", "are of adapters"),
        ("--learning_rate 3", "expected a number above 0 and below 1"),
        ("--temperature 0.5", "expected 1 or more"),
        ("--base_4bit", "computes on a GPU"),
        ("--batch_size 6 --accumulation 4", "cannot be shared evenly"),
        ("--datasets swmh --form completion --chat_template --base {t5}", "encoder-decoders are not asked in turns"),
        ("--base /no/such/folder", "no file or folder"),
    ],
)
def test_a_mistake_ends_in_one_line(flags, said, tmp_path, tiny_llama, tiny_t5, capsys):
    given = flags.format(t5=tiny_t5).split()
    base = [] if "--base" in given else ["--base", str(tiny_llama)]
    assert main(["train", "responder", "--out", str(tmp_path / "out"), *base, *given]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in last and "Traceback" not in last


# --- encoder-decoders learn 32 rows by heart ------------------------------------------------------------------------

WORDS = ["rent", "shift", "exam", "mother", "doctor", "friend", "bus", "boss", "essay", "sister", "clinic", "loan"]


def thirty_two():
    labels = DATASETS["SAD"].label_names
    return [
        row(
            "SAD",
            labels[at % len(labels)],
            f"{WORDS[at % 12]} again, week {at}",
            f"Week {at} names the {WORDS[at % 12]}.",
            "completion",
        )
        for at in range(32)
    ]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_tiny_encoder_decoder_learns_32_rows_by_heart_and_gives_them_back(kind, tmp_path):
    import tiny

    base = (
        tiny.save_bart(tmp_path / "base", init_std=0.05, d_model=64, dropout=0.0)
        if kind == "bart"
        else tiny.save_t5(tmp_path / "base", initializer_factor=1.0, d_model=64, d_kv=16, dropout_rate=0.0)
    )
    rows = thirty_two()
    columns = ("post", "question", "response")
    split = [
        (query.partition("  Question:")[0], " Question:" + query.partition("  Question:")[2].rstrip(), gold)
        for query, gold in rows
    ]
    write(tmp_path / "learn/train_data/complete_data/SAD/train.csv", split, columns)
    write(
        tmp_path / "learn/train_data/complete_data/SAD/val.csv",
        [("Post: ferry late", " Question:" + split[0][1].partition("Question:")[2], rows[0][1])],
        columns,
    )
    write(tmp_path / "asked/test_data/test_complete/SAD.csv", rows)
    flags = f"--form completion --full --base {base} --learning_rate 5e-3 --batch_size 32 --epochs 200 --look_every 200"
    flags += f" --temperature 1 --head_weight 1 --best_by loss --asked_rows 1 --max_new_tokens 8 --data_root {tmp_path / 'learn'}"
    assert main(["train", "responder", "--out", str(tmp_path / "model"), *flags.split()]) == 0
    asked = f"--model_path {tmp_path / 'model'} --test_dataset IMHI-completion --data_root {tmp_path / 'asked'}"
    asked += " --max_new_tokens 80"
    assert main(["generate", "--model_output_path", str(tmp_path / "run"), *asked.split()]) == 0
    with (tmp_path / "run/SAD.csv").open(encoding="utf-8", newline="") as handle:
        answers = list(csv.DictReader(handle))
    assert [one["generated_text"] for one in answers] == [one["goldens"] for one in answers]


# --- looks at validation rows ---------------------------------------------------------------------------------------


def test_the_best_look_and_the_end_of_patience_follow_from_the_history():
    keeper = BestKeeper("weighted_f1", higher=True, patience=2)
    history = [{"step": at, "eval_weighted_f1": value} for at, value in ((10, 0.5), (20, 0.6), (30, 0.6))]
    assert keeper.best(history) == (20, 0.6) and not keeper.is_over(history)
    history.append({"step": 40, "eval_weighted_f1": 0.1})
    assert keeper.is_over(history)
    assert not BestKeeper("weighted_f1", higher=True, patience=None).is_over(history)
    assert BestKeeper("weighted_f1", higher=False, patience=None).best(history) == (40, 0.1)


def test_answers_are_judged_by_the_strict_rule_and_rouge():
    golds = [row("DR", "yes", "x"), row("DR", "no", "y"), row("SAD", "work", "z")]
    rows = [
        TrainingRow(name, "", query, gold, label)
        for (query, gold), name, label in zip(golds, ("DR", "DR", "SAD"), ("yes", "no", "work"), strict=True)
    ]
    perfect = judge(rows, [one.answer for one in rows])
    assert perfect["weighted_f1"] == perfect["rougeL"] == 1 and perfect["unparsed"] == 0
    silent = judge(rows, ["", rows[1].answer, ""])
    assert silent["unparsed"] == pytest.approx(2 / 3) and silent["weighted_f1_SAD"] == 0
