import json
import shutil

import numpy as np
import pytest
import torch
from tiny_classifiers import change_config, save_adapter, save_bert_base, save_bert_classifier

from imhi.benchmark import DATASETS
from imhi.errors import UserError
from imhi.labelers import adapters, classifier, folders
from imhi.labelers.folders import open_labeler, open_labelers

SAD, DR, CLP = DATASETS["SAD"], DATASETS["DR"], DATASETS["CLP"]
TEXTS = [
    "This post shows the stress cause of work. Reasoning: the poster speaks of a job.",
    "school",
    "",
    "The poster does not suffer from stress, because 12 things went well!",
    "school",
    "I can't sleep, again; my boss wants more. " * 9,
    "   ",
    "Everything costs money (rent, food, the car).",
    "no",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_bert_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture(scope="module")
def models(tmp_path_factory, base):
    """Two adapters of two layers, the first and the last, one of all three, and a full checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    save_adapter(folder / "SAD", "SAD", base)
    save_adapter(folder / "DR", "DR", base, seed=2)
    save_adapter(folder / "CLP", "CLP", base, seed=3, layers=None)
    save_bert_classifier(folder / "CAMS", "CAMS")
    return folder


@pytest.fixture
def broken(models, tmp_path):
    """A copy of the adapter of SAD, to be broken."""
    return shutil.copytree(models / "SAD", tmp_path / "SAD")


def open_all(models, names, **options):
    wanted = [DATASETS[name] for name in names]
    return open_labelers(models, wanted, device="cpu", dtype=torch.float32, **options)


def one_line(folder, dataset, *parts):
    """The one line that a folder gives as soon as it is opened, or when its weights are needed."""
    with pytest.raises(UserError) as caught:
        open_labeler(folder, dataset).label(dataset, TEXTS)
    for part in (str(folder), *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def logits_by_peft(folder, base, layers, dataset, texts):
    """What PEFT's own wrapper gives, unmerged, one text at a time."""
    from peft import PeftModel
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    model = BertForSequenceClassification.from_pretrained(str(base), num_labels=len(dataset.labels))
    if layers is not None:
        model.bert.encoder.layer = torch.nn.ModuleList(model.bert.encoder.layer[index] for index in layers)
    model = PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.no_grad():
        rows = [model(**tokenizer([text], return_tensors="pt", truncation=True, max_length=512)) for text in texts]
    return torch.cat([row.logits for row in rows]).numpy()


@pytest.mark.parametrize(("name", "layers"), [("SAD", (0, 2)), ("CLP", None)])
def test_logits_are_those_of_peft(models, base, name, layers):
    dataset = DATASETS[name]
    expected = logits_by_peft(models / name, base, layers, dataset, TEXTS)
    assert len(set(expected.argmax(axis=1))) >= 2, "the tiny adapter does not tell texts apart"
    found = open_labeler(models / name, dataset).logits(dataset, TEXTS)
    assert found.shape == (len(TEXTS), len(dataset.labels)) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_labels_confidences_and_clearness_follow_from_the_logits(models):
    labeler = open_labeler(models / "SAD", SAD)
    result, logits = labeler.label(SAD, TEXTS), labeler.logits(SAD, TEXTS).astype(float)
    exponents = np.exp(logits / 1.4)
    probabilities = (exponents / exponents.sum(axis=1, keepdims=True)).max(axis=1)
    assert result.labels == [SAD.labels[index].name for index in logits.argmax(axis=1)]
    assert result.confidences == pytest.approx(probabilities, abs=1e-6)
    assert result.clear == [
        value >= 0.35 and bool(text.strip()) for value, text in zip(probabilities, TEXTS, strict=True)
    ]
    assert 0 < result.clear.count(False) < len(TEXTS), "the threshold parts nothing"
    unclear = result.clear.count(False)
    assert result.counts == {"rows": 9, "distinct": 8, "empty": 2, "truncated": 0, "unclear": unclear}


def test_the_threshold_itself_is_clear(models, tmp_path):
    folder = save_adapter(tmp_path / "SAD", "SAD", json.loads((models / "SAD/labeler.json").read_text())["base"])
    (confidence,) = open_labeler(folder, SAD).label(SAD, ["school"]).confidences
    change(folder, unclear_below=confidence)
    assert open_labeler(folder, SAD).label(SAD, ["school"]).clear == [True]
    change(folder, unclear_below=confidence + 1e-4)
    assert open_labeler(folder, SAD).label(SAD, ["school"]).clear == [False]


def test_switching_equals_loading_each_alone(models, monkeypatch):
    loads = []
    load = adapters.load_model
    monkeypatch.setattr(adapters, "load_model", lambda *args, **more: loads.append(more) or load(*args, **more))
    shared = open_all(models, ["SAD", "DR", "CLP"])
    turns = [(dataset, shared[dataset.name].logits(dataset, TEXTS)) for dataset in (SAD, DR, SAD, CLP, DR, SAD)]
    # The base is read once for the two adapters of two layers, and once for the one of all.
    assert len(loads) == 2
    for dataset, logits in turns:
        alone = open_labeler(models / dataset.name, dataset).logits(dataset, TEXTS)
        np.testing.assert_allclose(logits, alone, atol=1e-5)
    assert np.abs(turns[1][1] - logits_of_other_seed(models)).max() > 1e-2, "every adapter gives the same"


def logits_of_other_seed(models):
    return open_labeler(models / "CLP", CLP).logits(CLP, TEXTS)


def test_labelling_leaves_the_base_as_it_was(models):
    labeler = open_labeler(models / "SAD", SAD)
    before = {name: tensor.clone() for name, tensor in labeler.base.loaded[0].state_dict().items()}
    labeler.label(SAD, TEXTS)
    after = labeler.base.loaded[0].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_are_packed_in_the_merged_copy_alone(models):
    labeler = open_labeler(models / "SAD", SAD)
    model, _ = labeler.ready(SAD)
    kinds = [type(module).__name__ for module in model.modules()]
    assert (kinds.count("Linear"), kinds.count("PackedLinear")) in {(0, 14), (14, 0)}
    assert "PackedLinear" not in {type(module).__name__ for module in labeler.base.loaded[0].modules()}


def test_batches_do_not_move_labels(models):
    texts = TEXTS + [f"{'work ' * number}school {number}" for number in range(60)]
    dataset = open_labeler(models / "SAD", SAD).label(SAD, texts)
    tried = [{"batch_size": size} for size in (1, 8, 64)] + [{"token_budget": size} for size in (1, 300, 10**6)]
    for options in tried:
        other = classifier_with(models / "SAD", **options).label(SAD, texts)
        assert (other.labels, other.clear) == (dataset.labels, dataset.clear), options
        assert other.confidences == pytest.approx(dataset.confidences, abs=1e-5)


def classifier_with(folder, **options):
    from dataclasses import replace

    return replace(open_labeler(folder, SAD), **options)


def test_batches_keep_to_the_budget_of_the_device_and_to_the_batch_size(models, monkeypatch):
    shapes = []
    forward = adapters.first_token_logits
    monkeypatch.setattr(
        adapters,
        "first_token_logits",
        lambda model, ids, mask: shapes.append(tuple(ids.shape)) or forward(model, ids, mask),
    )
    texts = [f"{'work ' * 30}{number}" for number in range(100)]
    open_labeler(models / "SAD", SAD).label(SAD, texts)
    assert max(rows * tokens for rows, tokens in shapes) <= classifier.CPU_TOKENS
    assert max(rows for rows, _ in shapes) > 8
    shapes.clear()
    open_labeler(models / "SAD", SAD, batch_size=7).label(SAD, texts)
    assert [rows for rows, _ in shapes] == [7] * 14 + [2]


def test_empty_long_and_foreign_texts(models, base):
    """Each has a defined result: what its first 512 tokens give alone."""
    long = "The poster suffers from stress at work. " * 715
    assert len(long.split()) > 5000
    foreign = ["Der Beitrag zeigt Stress wegen der Arbeit.", "这个帖子显示压力", "стресс из-за школы", "ضغط", "😔😔"]
    texts = ["", long, *foreign]
    result = open_labeler(models / "SAD", SAD).label(SAD, texts)
    assert (result.counts["empty"], result.counts["truncated"]) == (1, 1)
    alone = torch.tensor(logits_by_peft(models / "SAD", base, (0, 2), SAD, texts))
    assert result.labels == [SAD.labels[index].name for index in alone.argmax(dim=-1)]
    expected = (alone / 1.4).softmax(dim=-1).max(dim=-1).values.tolist()
    assert result.confidences == pytest.approx(expected, abs=1e-5)


def test_no_texts_at_all(models):
    labeler = open_labeler(models / "SAD", SAD)
    assert labeler.logits(SAD, []).shape == (0, 9)
    assert labeler.label(SAD, []).labels == []


def change(folder, **settings):
    path = folder / "labeler.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def test_max_tokens_cuts_and_is_counted(broken):
    change(broken, max_tokens=6)
    result = open_labeler(broken, SAD).label(SAD, ["yes no yes no", "yes no yes no work", "yes no yes no school"])
    assert result.counts["truncated"] == 2
    assert result.confidences[0] == pytest.approx(result.confidences[1], abs=1e-5) == result.confidences[2]


def test_a_foreign_adapter_without_settings(base, tmp_path):
    folder = save_adapter(tmp_path / "SAD", "SAD", base, layers=None, labeler=False)
    labeler = open_labeler(folder, SAD)
    logits = torch.tensor(labeler.logits(SAD, TEXTS))
    result = labeler.label(SAD, TEXTS)
    assert result.clear is None and "unclear" not in result.counts
    assert result.confidences == pytest.approx(logits.softmax(dim=-1).max(dim=-1).values.tolist(), abs=1e-6)
    np.testing.assert_allclose(logits, logits_by_peft(folder, base, None, SAD, TEXTS), atol=1e-5)


def test_a_full_checkpoint_with_settings(tmp_path):
    folder = save_bert_classifier(tmp_path / "SAD", "SAD")
    plain = open_labeler(folder, SAD)
    assert set(plain.identity()) == {"labeler", "classifier", "dtype", "max_tokens"}, "labels.json of earlier versions"
    before = plain.label(SAD, TEXTS)
    names = [label.classifier for label in SAD.labels]
    (folder / "labeler.json").write_text(
        json.dumps({"format": 1, "dataset": "SAD", "classes": names, "temperature": 9.0, "unclear_below": 0.9})
    )
    labeler = open_labeler(folder, SAD)
    after = labeler.label(SAD, TEXTS)
    assert labeler.identity() == {**plain.identity(), "temperature": 9.0, "unclear_below": 0.9}
    assert after.labels == before.labels
    assert after.clear == [confidence >= 0.9 for confidence in after.confidences] and not all(after.clear)
    assert all(one < other for one, other in zip(after.confidences, before.confidences, strict=True))


def test_bfloat16(models):
    labeler = open_labeler(models / "SAD", SAD, dtype=torch.bfloat16)
    assert labeler.load(SAD)[0].dtype == torch.bfloat16
    assert labeler.identity()["dtype"] == "bfloat16"
    expected = open_labeler(models / "SAD", SAD).logits(SAD, TEXTS)
    np.testing.assert_allclose(labeler.logits(SAD, TEXTS), expected, atol=0.6)


def test_identity_is_what_labels_depend_on(models, broken, base, tmp_path):
    first = open_labeler(models / "SAD", SAD).identity()
    assert json.loads(json.dumps(first)) == first
    assert open_labeler(broken, SAD).identity() == first, "where the folder lies"
    change(broken, training={"seed": 5}, figures={"accuracy": 0.99})
    (broken / "README.md").write_text("another card")
    assert open_labeler(broken, SAD).identity() == first, "what labelling ignores"
    for name, value in (("temperature", 1.5), ("unclear_below", None), ("max_tokens", 128)):
        kept = json.loads((broken / "labeler.json").read_text())[name]
        change(broken, **{name: value})
        assert open_labeler(broken, SAD).identity() == {**first, name: value}
        change(broken, **{name: kept})
    seeds = [save_adapter(tmp_path / str(seed), "SAD", base, seed=seed) for seed in (10, 2)]
    assert [open_labeler(folder, SAD).identity() == first for folder in seeds] == [True, False]
    other = save_bert_base(tmp_path / "other", seed=9)
    change(broken, base=str(other), base_files={})
    assert open_labeler(broken, SAD).identity() == {**first, "base": open_labeler(broken, SAD).base.files}
    assert open_labeler(broken, SAD).identity() != first


def test_a_mix_of_checkpoints_and_adapters(models):
    found = open_all(models, ["SAD", "CAMS", "DR"])
    kinds = {name: labeler.identity()["labeler"] for name, labeler in found.items()}
    assert kinds == {"SAD": "adapter", "CAMS": "bert", "DR": "adapter"}
    assert found["SAD"].base is found["DR"].base
    cams = DATASETS["CAMS"]
    assert found["CAMS"].label(cams, TEXTS).clear is None


def test_one_adapter_for_one_dataset(models, capsys):
    assert list(open_all(models / "SAD", ["SAD"])) == ["SAD"]
    assert "is one single adapter; taken as the classifier of SAD" in capsys.readouterr().err
    with pytest.raises(UserError, match="one single adapter, but the data holds DR, SAD"):
        open_all(models / "SAD", ["DR", "SAD"])


def test_packaged_adapters_are_the_default(models, monkeypatch, capsys):
    monkeypatch.setattr(folders, "PACKAGED", models)
    assert open_all(None, ["SAD", "DR"]).keys() == {"SAD", "DR"}
    assert "the toolkit's own" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has no classifier of Irf; install the toolkit again, .*--model_path"):
        open_all(None, ["SAD", "Irf"])


def test_embedded_minilm_needs_no_network(tmp_path, monkeypatch):
    import socket

    from imhi.checkpoints import EMBEDDED

    pytest.importorskip(EMBEDDED["embedded:minilm"].package)
    folder = save_adapter(tmp_path / "SAD", "SAD", "embedded:minilm", layers=(5,))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    labeler = open_labeler(folder, SAD)
    expected = logits_by_peft(folder, labeler.base.folder, (5,), SAD, TEXTS)
    np.testing.assert_allclose(labeler.logits(SAD, TEXTS), expected, atol=1e-5)


def test_a_second_labelling_finds_the_first(models, tmp_path, capsys):
    from imhi.data import read_responses, write_table
    from imhi.labelling import label_folder

    write_table(
        tmp_path / "SAD.csv", ("goldens", "generated_text"), [("work. Reasoning: x", "work."), ("school.", "no")]
    )
    responses = {"SAD": read_responses(SAD, tmp_path / "SAD.csv")}
    out = tmp_path / "out"
    out.mkdir()
    for expected in (False, True):
        label_folder(responses, {"SAD": open_labeler(models / "SAD", SAD)}, out, overwrite=False)
        assert ("already labelled" in capsys.readouterr().err) is expected


def edit_tensors(folder, edit):
    from safetensors.torch import load_file, save_file

    path = str(folder / "adapter_model.safetensors")
    save_file(edit(load_file(path)), path, {"format": "pt"})


def without(part):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def not_finite(tensors):
    tensors["base_model.model.classifier.bias"][3] = float("nan")
    return tensors


def other_rank(tensors):
    return {name: tensor[:3].clone() if "lora_A" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (without("classifier"), ["has no head", 'modules_to_save=["classifier"]']),
        (without("layer.1.attention.self.query"), ["lacks weights of its own", "layer.1.attention.self.query.lora_A"]),
        (without("classifier.bias"), ["lacks weights of its own", "classifier.bias"]),
        (renamed("layer.1", "layer.7"), ["has weights without a place in the base", "layer.7", "and 9 more"]),
        (renamed("lora_A", "lora_C"), ["has weights without a place in the base", "lora_C"]),
        (other_rank, ["does not fit", "size mismatch"]),
        (not_finite, ["gives logits that are not finite in float32"]),
    ],
)
def test_weights_that_do_not_fit(broken, edit, parts):
    edit_tensors(broken, edit)
    one_line(broken, SAD, *parts)


def cut(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("breaking", "parts"),
    [
        (cut, ["adapter_model.safetensors does not load"]),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), ["has no adapter_model.safetensors"]),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), ["does not load"]),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), ["adapter_config.json is not JSON"]),
        (
            lambda folder: (folder / "adapter_config.json").write_text("[]"),
            ["adapter_config.json is not a JSON object"],
        ),
        (lambda folder: (folder / "labeler.json").write_text("{"), ["labeler.json is not JSON"]),
        (lambda folder: (folder / "labeler.json").write_text("[1]"), ["labeler.json is not a JSON object"]),
        (lambda folder: (folder / "config.json").write_text("{}"), ["holds a checkpoint (config.json) and an adapter"]),
        (
            lambda folder: change_config_of(folder, task_type="CAUSAL_LM"),
            ["is a LORA adapter for CAUSAL_LM", "the 9 classes of SAD"],
        ),
        (lambda folder: change_config_of(folder, peft_type="IA3"), ["is a IA3 adapter"]),
        (lambda folder: change_config_of(folder, r="four"), ["does not fit"]),
        (lambda folder: change(folder, format=2), ["labeler.json has format 2, this toolkit reads format 1"]),
        (lambda folder: change(folder, temperature=0), ["labeler.json: temperature is 0, expected a number above 0"]),
        (lambda folder: change(folder, unclear_below=1.5), ["unclear_below is 1.5, expected a probability"]),
        (lambda folder: change(folder, max_tokens=2), ["max_tokens is 2, expected"]),
        (lambda folder: change(folder, layers="two"), ['layers is "two", expected a list of layer numbers']),
        (lambda folder: change(folder, layers=[0, 3]), ["was trained on layers 0, 3 of its base", "has 3, from 0"]),
        (lambda folder: change(folder, layers=[1]), ["without a place", "layers (1,)"]),
        (lambda folder: change(folder, num_hidden_layers=2), ["num_hidden_layers is not a setting"]),
        (lambda folder: change(folder, classes=["no", "yes"]), ["has the classes no, yes; SAD has school, financial"]),
        (lambda folder: change(folder, classes="no"), ['classes is "no", expected a list of class names']),
        (lambda folder: change(folder, dataset="DR"), ["is of a classifier of DR, but the data is SAD"]),
        (lambda folder: change(folder, base="embedded:maxilm"), ["no embedded model 'embedded:maxilm'"]),
        (lambda folder: change(folder, base=str(folder / "gone")), [f"no file or folder {'{folder}'}/gone"]),
    ],
)
def test_files_that_do_not_fit(broken, breaking, parts):
    breaking(broken)
    one_line(broken, SAD, *(part.replace("{folder}", str(broken)) for part in parts))


def change_config_of(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_of_other_classes(models, tmp_path):
    shutil.copytree(models / "DR", tmp_path / "SAD")
    (tmp_path / "SAD" / "labeler.json").unlink()
    one_line(tmp_path / "SAD", SAD, "has 2 classes; SAD has 9 (school, financial,")


def test_mistakes_are_told_before_a_model_is_loaded(broken, monkeypatch):
    monkeypatch.setattr(adapters, "load_model", lambda *_, **__: pytest.fail("loaded"))
    change(broken, base_files={"config.json": "sha256:0"})
    with pytest.raises(UserError, match=r"is not the model that .* was trained on \(config.json differ\)"):
        open_labeler(broken, SAD)


@pytest.mark.parametrize(
    ("file", "refused"), [("model.safetensors", True), ("config.json", True), ("tokenizer_config.json", False)]
)
def test_a_base_with_another_file(broken, base, tmp_path, file, refused):
    other = shutil.copytree(base, tmp_path / "other")
    change(broken, base=str(other))
    open_labeler(broken, SAD)
    if file.endswith(".json"):
        (other / file).write_text((other / file).read_text() + "\n")
    else:
        save_bert_base(tmp_path / "retrained", seed=4)
        shutil.copy(tmp_path / "retrained" / file, other / file)
    if refused:
        one_line(broken, SAD, "is not the model that", f"({file} differ)")
    else:
        open_labeler(broken, SAD)


def test_bases_that_cannot_carry_the_adapter(broken, tmp_path, tiny_llama):
    change(broken, base=str(tiny_llama), base_files={})
    one_line(broken, SAD, "is a 'llama' model, not a BERT")
    unpooled = save_bert_base(tmp_path / "unpooled", pooler=False)
    change(broken, base=str(unpooled))
    one_line(broken, SAD, "and its base both lack weights", "bert.pooler.dense.weight")
    change_config_of(broken, base_model_name_or_path=None)
    change(broken, base=None)
    one_line(broken, SAD, "names no base model")
    misfit = change_config(save_bert_base(tmp_path / "misfit"), intermediate_size=48)
    change(broken, base=str(misfit))
    with pytest.raises(UserError, match=r"9 weights in .*misfit do not fit its config.json \(.* and 6 more\)"):
        open_labeler(broken, SAD).label(SAD, TEXTS)


def test_a_base_with_a_head_of_its_own(tmp_path):
    base = save_bert_base(tmp_path / "base", head=True)
    folder = save_adapter(tmp_path / "SAD", "SAD", base)
    np.testing.assert_allclose(
        open_labeler(folder, SAD).logits(SAD, TEXTS), logits_with_mismatch(folder, base), atol=1e-5
    )


def logits_with_mismatch(folder, base):
    """PEFT's logits on the base stripped of its own head."""
    from transformers import BertForSequenceClassification

    stripped = base.parent / "stripped"
    shutil.copytree(base, stripped)
    BertForSequenceClassification.from_pretrained(str(base)).bert.save_pretrained(str(stripped))
    return logits_by_peft(folder, stripped, (0, 2), SAD, TEXTS)
