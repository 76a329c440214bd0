"""Packed linear layers: the same values as torch's, and no row's value moves with the rows beside it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def layer(request):
    import torch

    from imhi.cpu import pack_linears

    torch.manual_seed(0)
    dtype = getattr(torch, request.param)
    model = torch.nn.Sequential(torch.nn.Linear(576, 1536, bias=False), torch.nn.Linear(1536, 192)).to(dtype)
    plain = torch.nn.Sequential(torch.nn.Linear(576, 1536, bias=False), torch.nn.Linear(1536, 192)).to(dtype)
    plain.load_state_dict(model.state_dict())
    if pack_linears(model) == 0:
        pytest.skip(f"oneDNN does not compute in {request.param} on this machine")
    return model, plain, dtype


def test_packed_layers_compute_what_torch_computes(layer):
    import torch

    model, plain, dtype = layer
    inputs = torch.randn(3, 5, 576, dtype=dtype)
    with torch.inference_mode():
        found, expected = model(inputs), plain(inputs)
    assert found.shape == (3, 5, 192)
    torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    assert not torch.equal(expected, torch.zeros_like(expected))


def test_a_rows_value_does_not_depend_on_the_rows_beside_it(layer):
    import torch

    model, _, dtype = layer
    inputs = torch.randn(512, 576, dtype=dtype)
    with torch.inference_mode():
        whole = model(inputs)
        for first, rows in ((0, 2), (7, 3), (100, 16), (31, 64), (5, 77), (200, 250)):
            assert torch.equal(model(inputs[first : first + rows].contiguous()), whole[first : first + rows]), rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_llama_computes_what_transformers_computes(tiny_llama, dtype):
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    from imhi.cpu import pack_linears

    plain = AutoModelForCausalLM.from_pretrained(str(tiny_llama), dtype=getattr(torch, dtype)).eval()
    model = copy.deepcopy(plain)
    if pack_linears(model) == 0:
        pytest.skip(f"oneDNN does not compute in {dtype} on this machine")
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"GatedFeedForward", "RootMeanSquareNorm", "RotaryAttention", "DecoderLayer", "PackedLinear"} <= kinds
    assert not {"LlamaMLP", "LlamaRMSNorm", "LlamaAttention", "LlamaDecoderLayer", "Linear"} & kinds
    exact = AutoModelForCausalLM.from_pretrained(str(tiny_llama), dtype=torch.float32).eval()
    ids = torch.randint(600, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, theirs, reference = (one(input_ids=ids).logits.float() for one in (model, plain, exact))
    if dtype == "float32":
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    # Not farther from float32 than transformers' own layers in the same format.
    assert (found - reference).square().mean() <= 1.1 * (theirs - reference).square().mean() + 1e-9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_bert_computes_what_transformers_computes(dtype):
    import copy

    import torch
    from transformers import BertConfig, BertModel

    from imhi.cpu import pack_linears

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 3}
    exact = BertModel(BertConfig(vocab_size=600, initializer_range=0.4, **shape)).eval()
    plain = copy.deepcopy(exact).to(getattr(torch, dtype))
    model = copy.deepcopy(plain)
    if pack_linears(model) == 0:
        pytest.skip(f"oneDNN does not compute in {dtype} on this machine")
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"ActivatedLinear", "AddedLinear"} <= kinds
    assert not {"BertIntermediate", "BertSelfOutput", "BertOutput", "Linear"} & kinds
    ids = torch.randint(600, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, theirs, reference = (one(input_ids=ids).last_hidden_state.float() for one in (model, plain, exact))
    if dtype == "float32":
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)
    assert (found - reference).square().mean() <= 1.1 * (theirs - reference).square().mean() + 1e-9


def test_only_plain_linear_layers_on_the_cpu_are_packed():
    import torch

    from imhi.cpu import pack_linears

    class Own(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(Own(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 8).half())
    assert pack_linears(model) == 0
    assert type(model[0]) is Own


def test_freed_memory_is_kept_where_glibc_allocates():
    import platform

    from imhi.cpu import keep_freed_memory

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
