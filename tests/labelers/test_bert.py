import gc
import pickle
import shutil

import pytest
import torch
from tiny_classifiers import Bomb, change_config, save_bert_classifier

from imhi.benchmark import DATASETS
from imhi.errors import UserError
from imhi.labelers import classifier as running
from imhi.labelers.bert import BertLabeler, check_classifier
from imhi.labelers.folders import find_classifiers
from imhi.labelers.forward import reads_first_token

SAD = DATASETS["SAD"]
TEXTS = [
    "This post shows the stress cause of work. Reasoning: the poster speaks of a job.",
    "school",
    "",
    "The poster does not suffer from stress, because 12 things went well!",
    "school",
    "no",
    "I can't sleep, again; my boss wants more. " * 9,
    "yes " * 600,
    "   ",
    "Everything costs money (rent, food, the car).",
]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return save_bert_classifier(tmp_path_factory.mktemp("classifiers") / "SAD", "SAD")


@pytest.fixture
def broken(classifier, tmp_path):
    """A copy of the classifier, to be broken."""
    return shutil.copytree(classifier, tmp_path / "SAD")


def labeler(folder, batch_size=None, dtype=torch.float32):
    return BertLabeler(folder, "cpu", dtype, batch_size)


def same_results(one, other):
    assert one.labels == other.labels
    assert one.counts == other.counts
    assert one.confidences == pytest.approx(other.confidences, abs=1e-5)


def row_by_row(folder, texts):
    """What plain transformers gives, one text at a time."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    found = []
    for text in texts:
        with torch.no_grad():
            logits = model(**tokenizer([text], return_tensors="pt", truncation=True, max_length=512)).logits[0]
        found.append((int(logits.argmax()), float(logits.softmax(-1).max())))
    return found


def test_labels_are_those_of_a_row_by_row_loop(classifier):
    expected = row_by_row(classifier, TEXTS)
    assert len({index for index, _ in expected}) >= 3, "the tiny classifier does not tell texts apart"
    result = labeler(classifier).label(SAD, TEXTS)
    assert result.labels == [SAD.labels[index].name for index, _ in expected]
    assert result.confidences == pytest.approx([probability for _, probability in expected], abs=1e-5)
    assert result.counts == {"rows": 10, "distinct": 9, "empty": 2, "truncated": 1}


@pytest.mark.parametrize("batch_size", [1, 8, 64])
def test_batch_size_does_not_move_labels(classifier, batch_size):
    free, other = labeler(classifier).label(SAD, TEXTS), labeler(classifier, batch_size).label(SAD, TEXTS)
    same_results(other, free)


def test_bin_and_safetensors_agree_and_no_other_pickle_is_opened(classifier, tmp_path):
    folder = save_bert_classifier(tmp_path / "SAD", "SAD", weights="bin")
    assert sorted(path.name for path in folder.glob("*.bin")) == ["pytorch_model.bin", "training_args.bin"]
    same_results(labeler(folder).label(SAD, TEXTS), labeler(classifier).label(SAD, TEXTS))
    assert not (folder / "exploded").exists()
    assert not (classifier / "exploded").exists()


def test_equal_texts_are_computed_once(classifier, monkeypatch):
    planned = []
    plan = running.plan_token_batches
    monkeypatch.setattr(
        running, "plan_token_batches", lambda lengths, *more: planned.append(len(lengths)) or plan(lengths, *more)
    )
    result = labeler(classifier).label(SAD, ["school", "work"] * 20)
    assert planned == [2]
    assert len(result.labels) == len(result.confidences) == 40
    assert result.labels[:2] * 20 == result.labels
    assert result.counts["rows"] == 40


def test_batches_are_sorted_by_length(classifier, monkeypatch):
    shapes = []
    forward = BertLabeler._run

    def spy(self, model, dataset, encoded, pad, batch):
        shapes.append([len(encoded[index]) for index in batch])
        return forward(self, model, dataset, encoded, pad, batch)

    monkeypatch.setattr(BertLabeler, "_run", spy)
    labeler(classifier, 3).label(SAD, TEXTS)
    flat = [length for batch in shapes for length in batch]
    assert flat == sorted(flat, reverse=True)
    assert max(flat) == 512


@pytest.mark.parametrize(("words", "truncated"), [(510, 0), (511, 1)])
def test_truncation_is_counted_per_row_from_token_513_on(classifier, words, truncated):
    text = " ".join(["yes"] * words)
    assert labeler(classifier).label(SAD, [text, "no", text]).counts["truncated"] == 2 * truncated


def test_a_batch_that_does_not_fit_is_halved(classifier, monkeypatch, capsys):
    expected = labeler(classifier).label(SAD, TEXTS)
    forward, sizes = BertLabeler.forward, []

    def small_memory(self, model, input_ids, attention_mask):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise RuntimeError("CUDA out of memory")
        return forward(self, model, input_ids, attention_mask)

    monkeypatch.setattr(BertLabeler, "forward", small_memory)
    wide = BertLabeler(classifier, "cpu", torch.float32, 8, token_budget=10**6)
    assert wide.label(SAD, TEXTS).labels == expected.labels
    assert max(sizes) == 8
    assert "SAD: a batch of 8 did not fit into memory" in capsys.readouterr().err


def test_a_single_text_that_does_not_fit_is_one_line(classifier, monkeypatch):
    def no_memory(self, model, input_ids, attention_mask):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(BertLabeler, "forward", no_memory)
    with pytest.raises(UserError, match="not even one text fits into memory"):
        labeler(classifier).label(SAD, TEXTS)


def test_no_model_stays_in_memory(classifier):
    from transformers import BertForSequenceClassification

    gc.collect()  # what other tests left behind
    labeler(classifier).label(SAD, TEXTS)
    assert not [thing for thing in gc.get_objects() if type(thing) is BertForSequenceClassification]


def test_the_loading_report_is_kept_off_the_terminal(classifier, capfd):
    labeler(classifier).label(SAD, TEXTS)
    seen = capfd.readouterr()
    assert seen.out == ""
    assert "Loading weights" not in seen.err
    assert "SAD: 100%" in seen.err


def test_bfloat16_runs_and_is_part_of_the_identity(classifier):
    half = labeler(classifier, dtype=torch.bfloat16)
    assert half.identity() != labeler(classifier).identity()
    assert half.identity()["dtype"] == "bfloat16"
    result = half.label(SAD, TEXTS)
    assert all(1 / 9 <= confidence <= 1 for confidence in result.confidences)


def test_layers_are_packed_on_the_cpu_and_the_logits_are_those_of_the_whole_model(classifier):
    """Packed where the hardware can; and where the first token's logits are not the model's, its own forward runs."""
    model, tokenizer = labeler(classifier).ready(SAD)
    kinds = [type(module).__name__ for module in model.modules()]
    assert (kinds.count("Linear"), kinds.count("PackedLinear")) in {(0, 14), (14, 0)}
    inputs = tokenizer(TEXTS[:4], return_tensors="pt", padding=True, truncation=True, max_length=512)
    with torch.inference_mode():
        found = labeler(classifier).forward(model, inputs["input_ids"], inputs["attention_mask"])
        whole = labeler(classifier).load(SAD)[0].eval()(**inputs).logits
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    assert reads_first_token(model)
    model.config.is_decoder = True
    assert not reads_first_token(model)


def test_another_architecture_runs_its_own_forward(tmp_path):
    from tiny_classifiers import save_vocabulary
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=save_vocabulary(tmp_path), dim=32, n_layers=2, n_heads=4, hidden_dim=64, num_labels=9
    )
    DistilBertForSequenceClassification(config).save_pretrained(str(tmp_path))
    check_classifier(tmp_path, SAD)
    result = labeler(tmp_path).label(SAD, TEXTS)
    expected = row_by_row(tmp_path, TEXTS)
    assert result.confidences == pytest.approx([probability for _, probability in expected], abs=1e-5)


def test_real_minilm_encoder_with_a_head(tmp_path):
    """A real encoder, tokenizer and shapes; the head is random, so only the arithmetic is checked."""
    from tiny import sample_texts
    from transformers import AutoModelForSequenceClassification

    from imhi.checkpoints import EMBEDDED, locate

    pytest.importorskip(EMBEDDED["embedded:minilm"].package)
    source, folder = locate("embedded:minilm"), tmp_path / "SAD"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(str(source), num_labels=9)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)
    check_classifier(folder, SAD)
    texts = sample_texts()[:24]
    result = labeler(folder).label(SAD, texts)
    expected = row_by_row(folder, texts)
    assert result.labels == [SAD.labels[index].name for index, _ in expected]
    assert result.confidences == pytest.approx([probability for _, probability in expected], abs=1e-4)
    assert len(set(result.labels)) > 1


def names(*labels):
    return {str(index): label for index, label in enumerate(labels)}


@pytest.mark.parametrize(
    "id2label",
    [
        names(*(label.classifier for label in SAD.labels)),
        names(*(label.name.title() for label in SAD.labels)),
        names(*(f"LABEL_{index}" for index in range(9))),
        names(*(str(index) for index in range(9))),
    ],
)
def test_class_names_that_say_the_tables_order(broken, id2label):
    check_classifier(change_config(broken, id2label=id2label), SAD)


def test_a_config_without_classes_is_read_from_the_weights(broken, classifier):
    change_config(broken, id2label=None, label2id=None)
    check_classifier(broken, SAD)
    same_results(labeler(broken).label(SAD, TEXTS), labeler(classifier).label(SAD, TEXTS))
    with pytest.raises(UserError) as caught:
        labeler(broken).label(DATASETS["t-sid"], TEXTS)
    assert "classifier.weight is (9, 32) where (4, 32) is expected" in str(caught.value)
    assert "4 classes of t-sid" in str(caught.value)


SWAPPED = [SAD.labels[at].classifier for at in (1, 0, 2, 3, 4, 5, 6, 7, 8)]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"id2label": names("no", "yes")}, ["has 2 classes (no, yes)", "SAD has 9 (school, financial,"]),
        ({"id2label": None, "num_labels": 5}, ["has 5 classes", "SAD has 9"]),
        (
            {"id2label": names(*SWAPPED)},
            ["in another order", "found financial, school, family", "SAD expects school, financial, family"],
        ),
        ({"id2label": names(*"abcdefghi")}, ["class names that are not the table's", "found a, b, c", "id2label"]),
        ({"id2label": {str(index): f"LABEL_{index}" for index in range(1, 10)}}, ["id2label has the keys 1, 2"]),
        ({"architectures": ["LlamaForCausalLM"]}, ["is a LlamaForCausalLM, not a classifier", "9 classes of SAD"]),
        ({"architectures": ["BertModel"]}, ["is a BertModel, not a classifier"]),
    ],
)
def test_configs_that_do_not_fit(broken, changes, parts):
    change_config(broken, **changes)
    with pytest.raises(UserError) as caught:
        check_classifier(broken, SAD)
    for part in [str(broken), *parts]:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_weights(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"SAD has no weights \(model.safetensors or pytorch_model.bin\)"):
        check_classifier(broken, SAD)


def headless(folder):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig.from_pretrained(str(folder))).save_pretrained(str(folder))
    change_config(folder, architectures=["BertForSequenceClassification"])


def cut(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def large_file_pointer(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")


def bomb(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"classifier.weight": Bomb(folder / "exploded")}, folder / "pytorch_model.bin")


def other_shape(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(folder / "model.safetensors"))
    tensors["classifier.weight"] = tensors["classifier.weight"][:6].clone()
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


def not_finite(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(folder / "model.safetensors"))
    tensors["classifier.bias"][3] = float("nan")
    save_file(tensors, str(folder / "model.safetensors"), {"format": "pt"})


def no_tokenizer(folder):
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (headless, "is no trained classifier: its weights lack classifier.bias, classifier.weight"),
        (cut, "does not load ("),
        (large_file_pointer, "does not load ("),
        (bomb, "does not load ("),
        (other_shape, "classifier.weight is (6, 32) where (9, 32) is expected"),
        (not_finite, "gives logits that are not finite in float32"),
        (no_tokenizer, "has no tokenizer"),
    ],
)
def test_weights_that_do_not_fit(broken, breaking, message):
    breaking(broken)
    check_classifier(broken, SAD)
    with pytest.raises(UserError) as caught:
        labeler(broken).label(SAD, TEXTS)
    assert message in str(caught.value)
    assert str(broken) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (broken / "exploded").exists()


def test_the_bomb_of_these_tests_goes_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


def test_find_classifiers(classifier, tmp_path, capsys):
    shutil.copytree(classifier, tmp_path / "sad")
    save_bert_classifier(tmp_path / "DR", "DR")
    assert find_classifiers(tmp_path, [DATASETS["DR"], SAD]) == {"DR": tmp_path / "DR", "SAD": tmp_path / "sad"}
    wanted = [DATASETS[name] for name in ("DR", "CLP", "SAD", "Irf")]
    with pytest.raises(UserError, match=r"no classifier folder for CLP, Irf \(found DR, sad\); .*--skip_missing"):
        find_classifiers(tmp_path, wanted)
    assert list(find_classifiers(tmp_path, wanted, skip_missing=True)) == ["DR", "SAD"]
    assert "--skip_missing" in capsys.readouterr().err


def test_one_checkpoint_for_one_dataset(classifier, capsys):
    assert find_classifiers(classifier, [SAD]) == {"SAD": classifier}
    assert "taken as the classifier of SAD" in capsys.readouterr().err
    with pytest.raises(UserError, match="one single BertForSequenceClassification, but the data holds DR, SAD"):
        find_classifiers(classifier, [DATASETS["DR"], SAD])
    with pytest.raises(UserError, match="named after SAD, but the data is DR"):
        find_classifiers(classifier, [DATASETS["DR"]])
