"""The arithmetic of docs/training.md: against published parameter counts, transformers' own and what autograd keeps."""

from __future__ import annotations

import argparse
import importlib.util
import re
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from imhi.commands import train
from imhi.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("training_memory", ROOT / "tools" / "training_memory.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_memory"] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["training_memory"]


def test_every_table_of_the_document_is_what_the_formulas_give(tool):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert tool.filled(text) == text
    assert text.count(": tools/training_memory.py -->") == len(tool.TABLES)


def test_another_figure_in_the_document_is_found(tool):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert tool.filled(text.replace("6.738e9", "7.000e9")) == text


def test_a_table_that_is_not_there_is_refused(tool):
    marks = "<!-- speed: tools/training_memory.py -->\n<!-- end of speed -->"
    with pytest.raises(UserError, match="no table is called speed"):
        tool.filled(marks)


def test_parameter_counts_are_the_published_ones(tool):
    # Of the checkpoints' own files: Llama-2 7B and 13B, LLaMA 33B, SmolLM2-135M, BART-large.
    assert tool.LLAMA_7B.parameters == 6_738_415_616
    assert tool.LLAMA_13B.parameters == 13_015_864_320
    assert tool.LLAMA_33B.parameters == 32_528_943_616
    assert tool.SMOLLM2.parameters == 134_515_008
    assert tool.bart_parameters(layers=12, d=1024, f=4096) == 406_291_456


def test_parameter_counts_are_those_of_transformers_models(tool):
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

    def count(model):
        return sum(one.numel() for one in model.parameters())

    for one in tool.SHAPES:
        config = LlamaConfig(
            vocab_size=one.V,
            hidden_size=one.d,
            intermediate_size=one.f,
            num_hidden_layers=one.L,
            num_attention_heads=one.a,
            num_key_value_heads=one.kv_heads,
            tie_word_embeddings=one.tied,
        )
        with torch.device("meta"):
            assert count(LlamaForCausalLM(config)) == one.parameters, one.name
    with torch.device("meta"):
        assert count(BartForConditionalGeneration(BartConfig())) == tool.bart_parameters(layers=12, d=1024, f=4096)


def kept_by_autograd(tool, way, cast, layers, tokens, *, d=128, f=352, a=4, kv=2):
    """(bytes that the backward pass of a small LLaMA keeps, its LoRA parameters)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.helpers import disable_input_dtype_casting
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=d,
        intermediate_size=f,
        num_hidden_layers=layers,
        num_attention_heads=a,
        num_key_value_heads=kv,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    if way == "LoRA":
        model = get_peft_model(model, LoraConfig(r=tool.RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    uncast = nullcontext() if cast else disable_input_dtype_casting(model)  # as `make_trainer` does
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=way == "LoRA"), uncast:
        model(input_ids=torch.ones((2, tokens // 2), dtype=torch.long), logits_to_keep=1, use_cache=False)
    return sum(size for size, _ in kept.values()), sum(one.numel() for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize(("way", "cast"), [("full", True), ("LoRA", True), ("LoRA", False)])
def test_a_block_keeps_as_many_bytes_as_the_formula_says(tool, way, cast):
    tokens = 2048  # many, against the casts of the LoRA matrices, which are kept once
    few, few_lora = kept_by_autograd(tool, way, cast, 1, tokens)
    many, many_lora = kept_by_autograd(tool, way, cast, 3, tokens)
    shape = tool.Llama("small", 2, 128, 352, 4, V=64, kv_heads=2)
    if way == "LoRA":
        assert many_lora - few_lora == shape.lora(tool.RANK)
    formula = tool.SetUp(shape, way, 1, 1, checkpointing=cast).inside()
    assert (many - few) / 2 / tokens == pytest.approx(formula, rel=0.01)


def test_states_are_sixteen_bytes_a_parameter_shared_by_the_gpus(tool):
    assert tool.SetUp(tool.LLAMA_7B, "full", 8, 1).states() == pytest.approx(13.477e9, rel=1e-4)
    assert tool.SetUp(tool.LLAMA_13B, "full", 8, 1).states() == pytest.approx(26.032e9, rel=1e-4)


def test_a_4_bit_base_has_the_bits_of_the_qlora_paper(tool):
    assert round(tool.NF4_BITS, 3) == 4.127
    base = tool.SetUp(tool.LLAMA_33B, "QLoRA", 1, 1).states() - 16 * tool.LLAMA_33B.lora(tool.RANK)
    assert 32.5e9 * 4.127 / 8 < base < 19e9  # embedding and head stay in float32


def test_verdicts_leave_a_margin(tool):
    assert tool.verdict(68e9, 80) == "fits (85 %)"
    assert tool.verdict(70e9, 80).startswith("tight")
    assert tool.verdict(79e9, 80).startswith("no")


def test_the_counts_of_the_mixture_are_those_of_the_released_files(tool, real_data):
    from imhi.data import resolve_data_root
    from imhi.training.responder.rows import read_training_rows

    for form in ("instruction", "completion"):
        rows = read_training_rows(resolve_data_root(str(real_data)), form)
        assert {name: len(found) for name, found in rows.training.items()} == tool.RELEASED
        for name in tool.RELEASED:
            left_out = {reason: counts.get(name, 0) for reason, counts in rows.left_out.items()}
            assert left_out.get("leaked", 0) + left_out.get("explained", 0) == tool.HELD_OUT[name]
            assert left_out.get("repeated", 0) == tool.REPEATED[name]


def test_accelerate_takes_the_fsdp_configuration(tmp_path):
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    file = tmp_path / "fsdp.yaml"
    file.write_text(text.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    settings = ClusterConfig.from_yaml_file(yaml_file=str(file))  # stops on keys that it does not know
    flags = {flag for action in launch_command_parser()._actions for flag in action.option_strings}
    assert settings.distributed_type.value == "FSDP"
    assert set(settings.fsdp_config) <= {flag.removeprefix("--") for flag in flags}


def test_every_training_command_of_the_document_is_understood():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(
        r"^(?:accelerate .*)?(?:imhi|\$\(which imhi\)) train responder (.*)$", text, flags=re.MULTILINE
    )
    assert len(commands) == 5
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    for command in commands:
        parser.parse_args(["responder", *shlex.split(command)])
