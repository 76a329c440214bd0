"""`imhi humans`: reading annotations, figures on rows with known answers, the published figures on the real file."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from imhi.cli import main
from imhi.commands import humans as command
from imhi.data import DataRoot, read_table
from imhi.errors import UserError
from imhi.humans import human_agreement, read_annotations, write_agreement
from imhi.humans.annotations import annotation_files
from imhi.humans.columns import Columns, Sample, label_support
from imhi.humans.crossval import out_of_fold
from imhi.humans.figures import Resampling, agreement_figures, rater_figures
from imhi.humans.heatmap import heat_map
from imhi.humans.report import findings, interval_text, summary
from imhi.metrics import METRICS

ASPECTS = ("fluency", "completeness", "reliability", "overall")
HEADER = "text,label,some-model,fluency,completeness,reliability,overall\n"


def write(path: Path, rows: int = 8, *, model: str = "some-model", start: int = 0) -> Path:
    """A file whose longer explanations are rated better."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [HEADER.replace("some-model", model).strip()]
    for at in range(rows):
        rating = f'"[{at % 3}, {min(3, at // 2)}, {min(3, (at + 1) // 2)}]"'
        explanation = "Yes. The poster " + " ".join(["sleeps", "badly", "and", "cries"] * (at + 1))
        lines.append(f"post {start + at} about sleep and badly made bread,1,{explanation},{','.join([rating] * 4)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def root_with(tmp_path: Path, golds: dict[str, str] | None = None) -> DataRoot:
    folder = tmp_path / "root" / "test_data" / "test_instruction"
    folder.mkdir(parents=True, exist_ok=True)
    if golds is not None:
        rows = [
            f'"Consider this post: ""{post}"" Question: Does the poster suffer from depression?",{gold}'
            for post, gold in golds.items()
        ]
        (folder / "DR.csv").write_text("query,gpt-3.5-turbo\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return DataRoot(tmp_path / "root", "test")


def text_metrics():
    return [METRICS["rouge"](), METRICS["bleu"]()]


def measure(tmp_path, **options):
    golds = {f"Post {at} about sleep, and badly made bread!": "Yes. Reasoning: sleeps badly." for at in range(6)}
    files = read_annotations([write(tmp_path / "a.csv"), write(tmp_path / "b.csv", 10, model="other", start=4)])
    return human_agreement(files, root_with(tmp_path, golds), text_metrics(), resamples=200, **options)


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_and_crlf_are_read(tmp_path):
    path = write(tmp_path / "a.csv")
    plain = read_annotations([path])[0]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_annotations([path])[0].ratings == plain.ratings
    assert plain.model == "some-model"
    assert plain.ratings["overall"][3] == (0, 1, 2)


@pytest.mark.parametrize("cell", ["[1, 2]", "[1, 2, 4]", "[1, 2, 3, 3]", "2", ""])
def test_a_rating_that_is_none_is_named_with_its_row(tmp_path, cell):
    path = tmp_path / "a.csv"
    good = '"[1, 2, 3]"'
    path.write_text(
        f'{HEADER}p,1,e,{good},{good},{good},{good}\nq,1,e,{good},{good},"{cell}",{good}\n', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"a\.csv, row 2: reliability is .* expected three integers 0-3"):
        read_annotations([path])


def test_a_file_without_one_explanation_column_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(HEADER.replace("some-model", "one,two"), encoding="utf-8")
    path.write_text(path.read_text() + 'p,1,e,f,"[1,1,1]","[1,1,1]","[1,1,1]","[1,1,1]"\n', encoding="utf-8")
    with pytest.raises(UserError, match="the explanations in the one column MODEL"):
        read_annotations([path])


def test_files_of_one_name_are_told_apart_and_one_file_is_not_read_twice(tmp_path):
    first, second = write(tmp_path / "x" / "a.csv"), write(tmp_path / "y" / "a.csv")
    assert [file.name for file in read_annotations([first, second])] == ["x/a", "y/a"]
    with pytest.raises(UserError, match="named twice"):
        read_annotations([first, first])


def test_a_data_root_without_annotations_says_so(tmp_path):
    with pytest.raises(UserError, match="no annotation file"):
        annotation_files(root_with(tmp_path))


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match="fewer than 5 rows"):
        human_agreement(read_annotations([write(tmp_path / "a.csv", 4)]), root_with(tmp_path), text_metrics())


# --- figures --------------------------------------------------------------------------------------------------------


def test_figures_of_a_file_are_scipys(tmp_path):
    document = measure(tmp_path).document
    file = read_annotations([tmp_path / "b.csv"])[0]
    words = [len(text.split()) for text in file.explanations]
    target = np.mean(file.ratings["overall"], axis=1)
    found = document["references"]["post"]["figures"]["b"]["words"]["overall"]
    for kind, of in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        assert found[kind]["value"] == pytest.approx(of(words, target)[0], abs=1e-4)
    assert found["given_length"] is None  # nothing of length is left, given length
    assert found["against"] == {}  # and a length is no metric


def test_pooled_figures_are_of_order_within_files(tmp_path):
    figures = measure(tmp_path).document["references"]["post"]["figures"]
    z = [
        (rows - 3) * np.arctanh(figures[name]["rouge1"]["overall"]["pearson"]["value"])
        for name, rows in (("a", 8), ("b", 10))
    ]
    assert figures["pooled"]["rouge1"]["overall"]["pearson"]["value"] == pytest.approx(np.tanh(sum(z) / 12), abs=1e-3)
    assert figures["pooled"]["rouge1"]["overall"]["against"]["words"]["williams"] is None
    assert figures["a"]["rouge1"]["overall"]["against"]["words"]["williams"]["degrees"] == 5


def test_gold_explanations_are_found_by_post_whatever_its_punctuation(tmp_path):
    document = measure(tmp_path).document
    assert [document["files"][name]["gold_rows"] for name in ("a", "b")] == [6, 2]
    gold = document["references"]["gold"]
    assert gold["rows"] == 8
    assert list(gold["figures"]) == ["a", "pooled"]  # two rows of b are too few
    assert {"gold_words", "rouge1_post"} <= set(gold["figures"]["pooled"])


def test_without_gold_explanations_that_reference_has_no_figures(tmp_path):
    files = read_annotations([write(tmp_path / "a.csv")])
    document = human_agreement(files, root_with(tmp_path), text_metrics(), resamples=50).document
    assert document["references"]["gold"] == {"rows": 0, "lengths": [], "figures": {}}
    assert "too few rows with this reference" in summary(document)


def planted(rows=120, seed=0):
    """Ratings that follow length and, apart from it, `good`; `echo` follows length alone."""
    rng = np.random.default_rng(seed)
    words, good = rng.normal(size=(2, rows))
    target = words + good + 0.3 * rng.normal(size=rows)
    keys = [str(at) for at in range(rows)]
    ratings = {"overall": np.repeat(target[:, None], 3, axis=1)}
    sample = Sample("post", {"a": np.arange(rows)}, keys, keys, keys, keys, ratings)
    values = {"echo": words + 0.3 * rng.normal(size=rows), "good": good, "noise": rng.normal(size=rows)}
    return sample, Columns({"words": words, "post_words": rng.normal(size=rows)}, values, {})


def test_length_explains_the_metric_that_follows_it_and_not_the_one_that_does_not():
    sample, columns = planted()
    figures = agreement_figures(sample, columns, published=None, setting=Resampling(300))["pooled"]
    echo, good, noise = (figures[name]["overall"] for name in ("echo", "good", "noise"))
    assert echo["pearson"]["value"] > 0.5
    for figures_of in (echo["pearson"], echo["given_length"], echo["against"]["words"]["difference"]):
        assert figures_of["low"] + 0.02 < figures_of["value"] < figures_of["high"] - 0.02
    assert abs(echo["given_length"]["value"]) < 0.2
    assert good["given_lengths"]["value"] > 0.8
    assert echo["against"]["words"]["williams"]["p"] > 0.001 > noise["against"]["words"]["williams"]["p"]
    assert noise["against"]["words"]["p_holm"] >= noise["against"]["words"]["williams"]["p"]
    assert good["against"]["lengths_cv"] is not None
    assert figures["all_cv"]["overall"]["given_lengths"] is None
    assert figures["all_cv"]["overall"]["pearson"]["value"] > figures["lengths_cv"]["overall"]["pearson"]["value"] + 0.1


def test_what_is_told_of_unseen_rows_is_nothing_where_there_is_nothing_to_learn():
    rng = np.random.default_rng(1)
    features, target = rng.normal(size=(90, 12)), rng.normal(size=90)
    files = [np.arange(45), np.arange(45, 90)]
    found = out_of_fold(features, target, posts=[str(at) for at in range(90)], files=files)
    assert abs(stats.pearsonr(found, target)[0]) < 0.3
    learned = out_of_fold(features, features[:, 0], posts=[str(at) for at in range(90)], files=files)
    assert stats.pearsonr(learned, features[:, 0])[0] > 0.98


def test_rows_of_one_post_are_never_on_both_sides():
    # Each post stands twice with a rating of its own that only its first value gives away, as a name would.
    rng = np.random.default_rng(2)
    target = np.repeat(rng.normal(size=40), 2)
    features = np.repeat(np.eye(40), 2, axis=0)
    apart = out_of_fold(features, target, posts=[str(at // 2) for at in range(80)], files=[np.arange(80)])
    mixed = out_of_fold(features, target, posts=[str(at) for at in range(80)], files=[np.arange(80)])
    assert stats.pearsonr(mixed, target)[0] > 0.5 > stats.pearsonr(apart, target)[0]


def test_agreement_of_the_raters_is_the_ceiling():
    rng = np.random.default_rng(3)
    truth = rng.normal(size=4000)
    given = truth[:, None] + 2 * rng.normal(size=(4000, 3))
    keys = [str(at) for at in range(4000)]
    found = rater_figures({"overall": np.round(given)}, keys, Resampling(20))["overall"]
    assert found["pairwise"]["value"] == pytest.approx(0.2, abs=0.03)
    assert found["attainable"] == pytest.approx(stats.pearsonr(truth, given.mean(axis=1))[0], abs=0.04)


def test_annotators_who_never_differ_in_an_aspect_have_no_agreement_to_measure():
    given = np.full((10, 3), 3.0)
    found = rater_figures({"fluency": given}, list("abcdefghij"), Resampling(20))["fluency"]
    assert found["alpha_ordinal"] is None
    assert found["pairwise"] is None
    assert found["attainable"] is None
    assert found["at_top"] == 1.0


def test_equal_seeds_give_equal_documents(tmp_path):
    assert measure(tmp_path).document == measure(tmp_path).document
    assert measure(tmp_path, seed=1).document != measure(tmp_path).document


def test_support_falls_where_the_explanation_contradicts_its_first_sentence():
    import torch

    from imhi.humans.annotations import DATASET
    from imhi.labelers.folders import open_labelers

    classifier = open_labelers(None, [DATASET], device="cpu", dtype=torch.float32)[DATASET.name]
    for_it = "Yes. The post shows hopelessness and a loss of interest, which are symptoms of depression."
    against = "Yes. The post shows no signs of depression; the poster is cheerful and does not suffer from it."
    support, contradiction = label_support(classifier, [for_it, against])
    assert support > 0.8 > contradiction


# --- what is written ------------------------------------------------------------------------------------------------


def test_what_is_written_holds_figures_and_no_text(tmp_path):
    measured = measure(tmp_path)
    paths = write_agreement(measured, tmp_path / "out")
    assert {path.name for path in paths} == {
        "humans.json",
        "humans.md",
        "humans.svg",
        "values_post.csv",
        "values_gold.csv",
    }
    assert json.loads((tmp_path / "out" / "humans.json").read_text(encoding="utf-8")) == measured.document
    for path in paths:
        assert "sleeps" not in path.read_text(encoding="utf-8")
    rows = read_table(tmp_path / "out" / "values_post.csv")
    assert len(rows) == 18
    assert rows.column("file").count("b") == 10


def test_the_heat_map_is_a_document_of_its_own(tmp_path):
    text = heat_map(measure(tmp_path).document)
    tree = ElementTree.fromstring(text)
    assert tree.tag.endswith("svg")
    assert "href" not in text and "url(" not in text
    titles = [element.text for element in tree.iter() if element.tag.endswith("title")]
    # Two panels of lengths and metrics, four aspects each.
    assert len(titles) == 4 * (6 + 8)
    assert all(re.match(r".+, \w+: (not defined|-?[.\d]+)", title) for title in titles)


def test_a_model_with_markup_in_its_name_does_not_reach_the_picture_as_markup(tmp_path):
    measured = measure(tmp_path)
    scoped = measured.document["references"]["post"]["figures"]["pooled"]
    scoped["<script>"] = scoped.pop("rouge1")
    ElementTree.fromstring(heat_map(measured.document))


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ({"value": 0.351, "low": 0.18, "high": 0.5}, ".35 [.18, .50]"),
        ({"value": -0.04, "low": None, "high": None}, "-.04"),
        ({"value": 0.995, "low": -0.994, "high": 0.996}, ".99 [-.99, 1.00]"),
        ({"value": 1.0, "low": 0.999, "high": 1.0}, "1.00 [1.00, 1.00]"),
        (None, "–"),
    ],
)
def test_intervals_are_written_as_papers_do(interval, expected):
    assert interval_text(interval) == expected


# --- the command ----------------------------------------------------------------------------------------------------


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(given)


def test_the_command_reads_the_samples_by_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("IMHI_DATA", raising=False)
    assert (
        command.run(arguments("--metrics", "rouge", "bleu", "--resamples", "50", "--out", str(tmp_path / "out"))) == 0
    )
    shown = capsys.readouterr()
    assert "ROUGE-1" in shown.out and "annotators of gpt3_data" in shown.out
    assert "made-up sample rows" in shown.out
    assert "30 are needed" in shown.out
    assert (tmp_path / "out" / "humans.svg").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--metrics", "bart_score"], "needs --bart_model"),
        (["--bart_weights", "x.pth"], "needs --bart_model"),
        (["--metrics", "rouge", "--bert_model", "m"], "--bert_model has no effect"),
        (["--metrics", "rouge", "--causal_model", "m"], "--causal_model has no effect"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        command.run(arguments(*given))


def test_the_page_in_docs_says_what_its_figures_say():
    tool = Path(__file__).parents[1] / "tools" / "make_human_tables.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the real file --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(real_data):
    path = real_data / "human_evaluation" / "DR_annotation" / "chatgpt_data.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    metrics = [*text_metrics(), METRICS["bert_score"](), METRICS["coverage"]()]
    return human_agreement(read_annotations([path]), DataRoot(real_data, "test"), metrics, resamples=500).document


@pytest.mark.parametrize(
    ("column", "pearson", "spearman"), [("rouge1", 0.35, 0.28), ("bleu", 0.21, 0.07), ("words", 0.27, 0.28)]
)
def test_the_known_figures_are_met(real, column, pearson, spearman):
    found = real["references"]["post"]["figures"]["pooled"][column]["overall"]
    assert found["pearson"]["value"] == pytest.approx(pearson, abs=0.01)
    assert found["spearman"]["value"] == pytest.approx(spearman, abs=0.01)


def test_the_lengths_explain_rouge_and_not_the_recall_of_gold(real):
    post, gold = (real["references"][name]["figures"]["pooled"] for name in ("post", "gold"))
    assert post["rouge1"]["overall"]["given_lengths"]["low"] < 0 < post["rouge1"]["overall"]["given_lengths"]["high"]
    for column in ("bert_recall", "coverage"):
        assert gold[column]["overall"]["given_lengths"]["low"] > 0
        assert post[column]["overall"]["given_lengths"]["value"] > 0.15
    assert any("nothing that can be told from an effect of the two lengths" in line for line in findings(real))


def test_coverage_agrees_better_with_people_than_rouge_and_length(real):
    for reference in ("post", "gold"):
        pooled = real["references"][reference]["figures"]["pooled"]
        for kind in ("pearson", "spearman"):
            coverage = pooled["coverage"]["overall"][kind]["value"]
            rivals = [pooled[name]["overall"][kind]["value"] for name in ("words", "rouge1")]
            assert coverage > max(rivals) + 0.1


def test_every_annotated_row_has_a_gold_explanation(real):
    file = real["files"]["chatgpt_data"]
    assert (file["rows"], file["gold_rows"], file["gold_rows_test"], file["gold_rows_expert"]) == (121, 121, 121, 11)


def test_a_file_for_a_folder_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main(["humans", "--out", str(tmp_path / "out"), "nowhere.csv"]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err
