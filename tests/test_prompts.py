"""Prompt styles: the benchmark's queries in other words, and what a run records of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import random_rows, save_run
from stub_server import MODEL, Stub

from imhi.benchmark import DATASETS, FORMS, SUITES, gold_answer, query, question
from imhi.checkpoints import load_generator, locate_generator
from imhi.commands import run_script
from imhi.comparison import compare_runs
from imhi.data import DataRoot, load_suite, samples_root
from imhi.engines import Decoding, Prompt, Shot
from imhi.engines.prompt_ids import chat_turns
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError
from imhi.labelers.rules import label_by_rule
from imhi.prompts import DEFAULT_STYLE, STYLES, split_query, style_facts, styled, styled_shots
from imhi.report.setting import differences, facts_of
from imhi.results import read_results

DR, SAD, IRF = DATASETS["DR"], DATASETS["SAD"], DATASETS["Irf"]
OTHER_STYLES = [name for name in STYLES if name != DEFAULT_STYLE]


# --- the wording ------------------------------------------------------------------------------------------------------


def test_the_default_style_is_the_benchmarks_own_table():
    for form, frame in FORMS.items():
        worded = STYLES[DEFAULT_STYLE].templates[form].replace("{stem}", "{question}")
        assert worded == frame


@pytest.mark.parametrize("suite", SUITES)
def test_a_released_query_comes_back_to_the_letter(real_data, suite):
    loaded = load_suite(DataRoot(real_data, "test"), suite)
    for row in loaded.rows:
        dataset = DATASETS[row.dataset]
        assert styled(row.query, dataset, loaded.form, DEFAULT_STYLE) == row.query, row.id
    assert {row.dataset for row in loaded.rows} == set(loaded.files)


@pytest.mark.parametrize("style", OTHER_STYLES)
@pytest.mark.parametrize("suite", SUITES)
def test_every_released_row_can_be_worded_anew_and_keeps_its_post(real_data, suite, style):
    loaded = load_suite(DataRoot(real_data, "test"), suite)
    for row in loaded.rows:
        post, aspect = split_query(row.query, DATASETS[row.dataset], loaded.form)
        worded = styled(row.query, DATASETS[row.dataset], loaded.form, style)
        assert worded.startswith(f'Post: "{post}". Consider ')
        assert question(DATASETS[row.dataset], "instruction", aspect) in worded


def test_the_wording_is_the_papers_with_the_benchmarks_question():
    asked = query(DR, "instruction", 'I said "no" {twice}. Question: why?  ')
    assert styled(asked, DR, "instruction", "zs") == (
        'Post: "I said "no" {twice}. Question: why?  ". Consider this post to answer the question: '
        "Does the poster suffer from depression? Only return Yes or No."
    )
    assert styled(asked, DR, "instruction", "cot").endswith(
        "suffer from depression? Only return Yes or No, then explain your reasoning step by step."
    )
    assert ". Consider the emotions expressed from this post to answer the question: Does" in styled(
        asked, DR, "instruction", "cot_emo"
    )


def test_a_prompt_of_the_completion_form_still_ends_where_the_answer_begins():
    asked = query(IRF, "completion", "nobody came", "perceived burdensomeness")
    worded = styled(asked, IRF, "completion", "cot")
    assert "Does the post show risk of perceived burdensomeness? Only return Yes or No, then" in worded
    assert worded.endswith(" " + question(IRF, "completion", "perceived burdensomeness"))
    assert worded.endswith(" is ")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DATASETS)
def test_the_labels_that_a_style_names_are_read_by_the_rule(name, form):
    dataset = DATASETS[name]
    worded = styled(query(dataset, form, "a post", dataset.aspects[0]), dataset, form, "zs")
    offered = re.search(r"Only return (.*?)\.(?: |$)", worded).group(1)
    named = re.findall(r'"([^"]+)"', offered) or offered.split(" or ")
    assert sorted(label_by_rule(dataset, label) for label in named) == sorted(dataset.label_names)
    assert [label_by_rule(dataset, f'"{label}". Step by step: the poster says so.') for label in named] == [
        label_by_rule(dataset, label) for label in named
    ]


@pytest.mark.parametrize("style", STYLES)
def test_a_style_names_its_source_and_says_where_it_departs_from_it(style):
    assert "Yang et al." in STYLES[style].source
    assert bool(STYLES[style].adapted) == (style != DEFAULT_STYLE)
    assert set(STYLES[style].templates) == set(FORMS)


def test_a_query_of_another_form_or_set_is_refused_without_its_post():
    for text, form in (
        (query(DR, "completion", "my secret"), "instruction"),
        (query(SAD, "instruction", "my secret"), "instruction"),
        ("my secret", "instruction"),
        ('Consider this post: "my secret', "instruction"),
    ):
        with pytest.raises(UserError, match="DR: a query is not of the instruction form") as refused:
            styled(text, DR, form, "cot")
        assert "secret" not in str(refused.value)


def test_examples_are_worded_alike_and_answer_what_they_are_asked():
    shot = Shot(query(DR, "instruction", "a post"), gold_answer(DR.label_named("yes"), "instruction", "It says so."))
    assert styled_shots([shot], DR, "instruction", DEFAULT_STYLE) == (shot,)
    (cot,) = styled_shots([shot], DR, "instruction", "cot")
    assert cot == Shot(styled(shot.query, DR, "instruction", "cot"), shot.answer)
    (zero,) = styled_shots([shot], DR, "instruction", "zs")
    assert zero.answer == "Yes, the poster suffers from depression."


def test_the_record_of_a_style_moves_with_its_wording(monkeypatch):
    facts = {(style, form): style_facts(style, form)["template_sha256"] for style in STYLES for form in FORMS}
    assert len(set(facts.values())) == len(facts)
    template = STYLES["cot"].templates["instruction"]
    monkeypatch.setitem(STYLES, "cot", replace(STYLES["cot"], templates={"instruction": template + " "}))
    assert style_facts("cot", "instruction")["template_sha256"] != facts["cot", "instruction"]
    assert style_facts("cot_emo", "instruction")["template_sha256"] == facts["cot_emo", "instruction"]


# --- a run ------------------------------------------------------------------------------------------------------------

GENERATE = ["--data_root", str(samples_root()), "--max_new_tokens", "4", "--datasets", "DR", "SAD", "--limit", "2"]


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for examples."""
    from tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("roomy"), max_position_embeddings=8192)


def generate(command: str, output: Path, model: Path, *more: str) -> int:
    return run_script(command, ["--model_path", str(model), "--model_output_path", f"{output}", *GENERATE, *more])


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["generate", "run"])
def test_a_run_asks_in_its_style_with_its_examples_and_is_resumed_with_it_alone(command, roomy, tmp_path, capsys):
    import torch

    folder = tmp_path / "run"
    stop = ["--to", "generate"] if command == "run" else []
    flags = ["--prompt_style", "cot_emo", "--shots", "1", *stop]
    assert generate(command, folder, roomy, *flags) == 0
    assert "worded as --prompt_style cot_emo" in capsys.readouterr().err
    manifest = manifest_of(folder)
    assert manifest["configuration"]["prompt_style"] == style_facts("cot_emo", "instruction")

    from imhi.shots import shots_of_datasets

    root = DataRoot(samples_root(), "test")
    first = load_suite(root, "IMHI", datasets=["DR"]).rows[0]
    shots = shots_of_datasets(root, ["DR"], "instruction", 1, 0)["DR"].before(first.query)
    prompt = Prompt(
        first.id,
        styled(first.query, DR, "instruction", "cot_emo"),
        styled_shots(shots, DR, "instruction", "cot_emo"),
    )
    engine = TransformersEngine(
        load_generator(locate_generator(str(roomy)), device="cpu", dtype=torch.float32), Decoding()
    )
    assert manifest["first_prompt"] == {"id": first.id, "token_ids": engine.prompt_token_ids(prompt)}

    assert generate(command, folder, roomy, *flags) == 0
    assert "nothing to do" in capsys.readouterr().err
    for other in ([], ["--prompt_style", "cot"]):
        assert generate(command, folder, roomy, "--shots", "1", *stop, *other) == 2
        assert "prompt_style" in capsys.readouterr().err


def test_nothing_is_recorded_of_the_benchmarks_own_words(roomy, tmp_path, capsys):
    assert generate("generate", tmp_path / "run", roomy) == 0
    assert "prompt_style" not in manifest_of(tmp_path / "run")["configuration"]
    assert generate("generate", tmp_path / "run", roomy, "--prompt_style", DEFAULT_STYLE) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_rows_that_cannot_be_worded_anew_stop_a_run_before_its_folder_is_made(roomy, tmp_path, capsys):
    from imhi.data import write_table

    table = tmp_path / "root" / SUITES["IMHI"].folder / "DR.csv"
    table.parent.mkdir(parents=True)
    write_table(table, ("query", "gpt-3.5-turbo"), [("How is the poster?", "Yes. Reasoning: it says so.")])
    arguments = ["--model_path", str(roomy), "--data_root", str(tmp_path / "root"), "--max_new_tokens", "4"]
    arguments += ["--model_output_path", f"{tmp_path / 'run'}"]
    assert run_script("generate", [*arguments, "--prompt_style", "cot"]) == 2
    assert "DR: a query is not of the instruction form" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run_script("generate", arguments) == 0


def test_a_style_is_told_in_report_and_comparison(tmp_path):
    settings = {"imhi": {}, "cot": {"prompt_style": style_facts("cot", "instruction")}}
    settings["other"] = {"prompt_style": {"name": "cot", "template_sha256": "sha256:0"}}
    settings["later"] = {"prompt_style": {"name": "tomorrow", "template_sha256": "sha256:1"}}
    runs = {}
    for name, configuration in settings.items():
        save_run(tmp_path / name, {"SAD": random_rows("SAD", 40)}, configuration=configuration, score=False)
        runs[name] = read_results(tmp_path / name)
    assert differences(runs["imhi"]) == []
    (found,) = differences(runs["cot"])
    assert (found.what, found.here) == ("wording of the prompts", "cot, chain of thought (CoT)")
    assert ("wording of the prompts", "tomorrow") in facts_of(runs["later"])

    def told(one: str, other: str) -> str:
        return "\n".join(compare_runs(runs[one], runs[other], resamples=10).cautions)

    assert "prompts are worded differently: --prompt_style imhi / cot" in told("imhi", "cot")
    assert "--prompt_style cot, of two versions of the toolkit" in told("cot", "other")
    assert "worded differently" not in told("cot", "cot")


def test_a_server_gets_style_and_examples_and_runs_of_two_styles_are_told_apart(tmp_path, capsys):
    from imhi.shots import shots_of_datasets

    root = DataRoot(samples_root(), "test")
    rows = load_suite(root, "IMHI", datasets=["DR", "SAD"], limit=2).rows
    examples = shots_of_datasets(root, ["DR", "SAD"], "instruction", 1, 0)

    def turns(row, style: str) -> list[dict[str, str]]:
        dataset = DATASETS[row.dataset]
        shots = styled_shots(examples[row.dataset].before(row.query), dataset, "instruction", style)
        return chat_turns(Prompt(row.id, styled(row.query, dataset, "instruction", style), shots))

    def ask(stub: Stub, folder: str, style: str) -> int:
        server = ["--engine", "openai", "--api_base", stub.url, "--model", MODEL]
        flags = ["--model_output_path", f"{tmp_path / folder}", "--prompt_style", style, "--shots", "1"]
        return run_script("generate", [*server, *flags, *GENERATE])

    with Stub() as stub:
        for style in ("cot", "cot_emo"):
            assert ask(stub, style, style) == 0
            asked = sorted(json.dumps(one.body["messages"]) for one in stub.log)
            assert asked == sorted(json.dumps(turns(row, style)) for row in rows)
            stub.log.clear()
        assert ask(stub, "cot", "cot_emo") == 2
        assert "prompt_style.name" in capsys.readouterr().err
        assert stub.log == []
    assert run_script("compare", [f"{tmp_path / 'cot'}", f"{tmp_path / 'cot_emo'}", "--resamples", "10"]) == 0
    assert "prompts are worded differently: --prompt_style cot / cot_emo" in capsys.readouterr().out
