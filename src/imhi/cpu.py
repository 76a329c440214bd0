"""What makes a model run fast on a CPU: weights in oneDNN's own layout, fewer calls, freed memory kept for the next batch.

All keep the arithmetic: the same sums in the same number format, in oneDNN's order of summation; where an activation or
a sum follows in the same call, it is taken before rounding instead of after.  On this layout a row's result does not depend
on how many rows stand beside it (tests/test_cpu.py), as it does in a plain matrix product.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["keep_freed_memory", "pack_linears"]

# mallopt(3): the sizes from which glibc asks the kernel for fresh pages, and gives freed ones back.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_TRIM_THRESHOLD = 1 << 30

# Classes of transformers whose forward is known to be the formula that stands here.
GATED = frozenset(["LlamaMLP", "MistralMLP", "Qwen2MLP"])
ACTIVATED = frozenset(["BertIntermediate", "RobertaIntermediate"])
ADDED = frozenset(["BertSelfOutput", "BertOutput", "RobertaSelfOutput", "RobertaOutput"])
ATTENTIONS = frozenset(["LlamaAttention", "MistralAttention", "Qwen2Attention"])
DECODER_LAYERS = frozenset(["LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"])
RMS_NORMS = frozenset(["LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm"])


@cache
def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of fetching fresh pages for every large tensor; whether it agreed.

    A batch's intermediate tensors of some megabytes would each be mapped, zeroed page by page by the kernel and
    unmapped: a quarter of the time of a forward pass.  Up to 1 GiB of freed memory stays with the process.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))


def pack_linears(model: Any) -> int:
    """Move the weights of a model's linear layers into oneDNN's layout, in place; how many layers were packed.

    For inference on an x86 CPU in float32 or bfloat16; 0 where oneDNN does not compute in the model's format.  The
    packed layers have no parameters: a packed model can be neither trained nor saved.
    """
    import torch

    if not _computes(next((weight.dtype for weight in model.parameters()), torch.float64)):
        return 0
    before = _linears(model)
    # Inner modules first: a whole decoder layer is exchanged only where its parts could be.
    for parent in reversed(list(model.modules())):
        for name, child in parent.named_children():
            for suits, faster in _EXCHANGES:
                if suits(child):
                    setattr(parent, name, faster()(child))
                    break
    exchanged = before - _linears(model)
    named = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
        and child.weight.device.type == "cpu"
        and _computes(child.weight.dtype)
        # State-space layers multiply with their weights themselves.
        and not type(parent).__name__.endswith("Mixer")
    ]
    kind = _packed_linear()
    for parent, name, child in named:
        setattr(parent, name, kind(child))
    return exchanged + len(named)


def _linears(model: Any) -> int:
    import torch

    return sum(type(module) is torch.nn.Linear for module in model.modules())


def _is_gated(module: Any) -> bool:
    """Whether a module is a feed-forward layer as LLaMA has it: down(silu(gate(x)) * up(x))."""
    import torch

    names = {name for name, _ in module.named_children()}
    return (
        type(module).__name__ in GATED
        and names == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and type(module.act_fn).__name__ in {"SiLU", "SiLUActivation"}
        and all(type(getattr(module, name)) is torch.nn.Linear for name in names - {"act_fn"})
    )


def _is_activated(module: Any) -> bool:
    """Whether a module is the first half of BERT's feed-forward layer: gelu(dense(x)), gelu by the error function."""
    import torch

    return (
        type(module).__name__ in ACTIVATED
        and type(module.intermediate_act_fn).__name__ == "GELUActivation"
        and type(module.dense) is torch.nn.Linear
    )


def _is_added(module: Any) -> bool:
    """Whether a module is the end of half a BERT layer: norm(dense(x) + what goes past the half)."""
    import torch

    names = {name for name, _ in module.named_children()}
    return (
        type(module).__name__ in ADDED
        and names == {"dense", "LayerNorm", "dropout"}
        and type(module.dense) is torch.nn.Linear
        and type(module.LayerNorm) is torch.nn.LayerNorm
    )


def _is_attention(module: Any) -> bool:
    """Whether a module is attention as LLaMA has it: three projections, rotary positions, one projection."""
    import torch

    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if type(module).__name__ not in ATTENTIONS or {name for name, _ in module.named_children()} != set(names):
        return False
    layers = [getattr(module, name) for name in names]
    return all(type(layer) is torch.nn.Linear for layer in layers) and (
        len({layer.bias is None for layer in layers[:3]}) == 1
    )


def _is_decoder_layer(module: Any) -> bool:
    """Whether a module is LLaMA's decoder layer, its two halves exchanged already."""
    names = {name for name, _ in module.named_children()}
    return (
        type(module).__name__ in DECODER_LAYERS
        and names == {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
        and type(module.self_attn) is _attention()
        and type(module.mlp) is _gated_feed_forward()
    )


def _is_rms_norm(module: Any) -> bool:
    return type(module).__name__ in RMS_NORMS and hasattr(module, "weight") and hasattr(module, "variance_epsilon")


def _computes(dtype: torch.dtype) -> bool:
    import torch

    if platform.machine() not in {"x86_64", "AMD64"} or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@cache
def _packed_linear() -> Any:
    import torch

    class PackedLinear(torch.nn.Module):
        """A linear layer for inference, its weight in oneDNN's layout."""

        def __init__(self, linear: torch.nn.Linear):
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            # No parameter: the packed tensor has no storage that could be saved or moved.
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
            self.bias = None if linear.bias is None else linear.bias.detach()

        def forward(self, inputs: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            """The layer's outputs, with `residual`, shape as theirs, added before they are rounded."""
            found: torch.Tensor
            if residual is None:
                found = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
            else:
                found = torch.ops.mkldnn._linear_pointwise.binary(inputs, residual, self.weight, self.bias, "add")
            return found

    return PackedLinear


@cache
def _gated_feed_forward() -> Any:
    import torch

    packed = _packed_linear()

    class GatedFeedForward(torch.nn.Module):
        """LLaMA's feed-forward layer in three calls, without intermediate tensors for activation and product.

        Shazeer, "GLU Variants Improve Transformer", 2020: down(silu(gate(x)) * up(x)).
        """

        def __init__(self, layer: Any):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = map(
                packed, (layer.gate_proj, layer.up_proj, layer.down_proj)
            )

        def forward(self, inputs: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
            gate = torch.ops.mkldnn._linear_pointwise(
                inputs, self.gate_proj.weight, self.gate_proj.bias, "swish", [], ""
            )
            both = torch.ops.mkldnn._linear_pointwise.binary(
                inputs, gate, self.up_proj.weight, self.up_proj.bias, "mul"
            )
            found: torch.Tensor = self.down_proj(both, residual)
            return found

    return GatedFeedForward


@cache
def _activated() -> Any:
    import torch

    packed = _packed_linear()

    class ActivatedLinear(torch.nn.Module):
        """gelu(dense(x)) in one call: Hendrycks, Gimpel, "Gaussian Error Linear Units", 2016."""

        def __init__(self, layer: Any):
            super().__init__()
            self.dense = packed(layer.dense)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                inputs, self.dense.weight, self.dense.bias, "gelu", [], "none"
            )
            return found

    return ActivatedLinear


@cache
def _added() -> Any:
    import torch

    packed = _packed_linear()

    class AddedLinear(torch.nn.Module):
        """norm(dense(x) + what goes past it), the sum taken in the product."""

        def __init__(self, layer: Any):
            super().__init__()
            self.dense, self.LayerNorm = packed(layer.dense), layer.LayerNorm

        def forward(self, inputs: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.LayerNorm(self.dense(inputs, residual))
            return found

    return AddedLinear


@cache
def _attention() -> Any:
    import torch

    packed = _packed_linear()

    class RotaryAttention(torch.nn.Module):
        """LLaMA's attention: queries, keys and values from one product, queries and keys turned in one go.

        Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, the halves of a head as pairs.
        """

        def __init__(self, layer: Any):
            super().__init__()
            self.config, self.layer_idx, self.head_dim = layer.config, layer.layer_idx, layer.head_dim
            self.scaling, self.num_key_value_groups = layer.scaling, layer.num_key_value_groups
            self.is_causal = layer.is_causal
            self.window = _window(layer)
            # transformers' own attention for implementations that are not registered.
            self.eager = sys.modules[type(layer).__module__].eager_attention_forward
            self.heads = layer.q_proj.out_features // layer.head_dim
            self.key_heads = layer.k_proj.out_features // layer.head_dim
            self.projections = packed(_joined(layer.q_proj, layer.k_proj, layer.v_proj))
            self.o_proj = packed(layer.o_proj)

        def forward(
            self,
            hidden_states: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, torch.Tensor],
            attention_mask: torch.Tensor | None = None,
            past_key_values: Any = None,
            residual: torch.Tensor | None = None,
            **options: Any,
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

            shape = hidden_states.shape[:-1]
            projected = self.projections(hidden_states).view(*shape, -1, self.head_dim)
            turned = _turned(projected[:, :, : self.heads + self.key_heads], *position_embeddings).transpose(1, 2)
            queries, keys = turned[:, : self.heads], turned[:, self.heads :]
            values = projected[:, :, self.heads + self.key_heads :].transpose(1, 2)
            if past_key_values is not None:
                keys, values = past_key_values.update(keys, values, self.layer_idx)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, self.eager)
            states, weights = attend(
                self,
                queries,
                keys,
                values,
                attention_mask,
                dropout=0.0,
                scaling=self.scaling,
                sliding_window=self.window,
                **options,
            )
            return self.o_proj(states.reshape(*shape, -1).contiguous(), residual), weights

    return RotaryAttention


def _window(layer: Any) -> int | None:
    """How far an attention layer looks back, as its own forward hands it on."""
    if hasattr(layer, "sliding_window"):
        return layer.sliding_window
    return getattr(layer.config, "sliding_window", None)


def _joined(*linears: Any) -> Any:
    """One linear layer whose outputs are those of several, one behind the other."""
    import torch

    with torch.device("meta"):
        one = torch.nn.Linear(linears[0].in_features, sum(linear.out_features for linear in linears))
    one.weight = torch.nn.Parameter(torch.cat([linear.weight.detach() for linear in linears]), requires_grad=False)
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    one.bias = torch.nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
    return one


def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Heads turned to their positions; `heads`: shape (rows, tokens, heads, width), `cos`, `sin`: without heads."""
    half = heads.shape[-1] // 2
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return turned


@cache
def _decoder_layer() -> Any:
    import torch

    class DecoderLayer(torch.nn.Module):
        """LLaMA's decoder layer, what goes past each half added in the half's last product."""

        def __init__(self, layer: Any):
            super().__init__()
            self.self_attn, self.mlp = layer.self_attn, layer.mlp
            self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm

        def forward(self, hidden_states: torch.Tensor, **options: Any) -> torch.Tensor:
            normed = self.input_layernorm(hidden_states)
            states, _ = self.self_attn(hidden_states=normed, residual=hidden_states, **options)
            found: torch.Tensor = self.mlp(self.post_attention_layernorm(states), states)
            return found

    return DecoderLayer


@cache
def _rms_norm() -> Any:
    import torch

    class RootMeanSquareNorm(torch.nn.Module):
        """LLaMA's norm, its sum of squares taken in float32 in one pass.

        Zhang, Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019: weight * x / sqrt(mean(x^2) + epsilon).
        """

        def __init__(self, layer: Any):
            super().__init__()
            self.weight, self.epsilon = layer.weight, layer.variance_epsilon

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            norms = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True, dtype=torch.float32)
            scales = norms.square_().div_(inputs.shape[-1]).add_(self.epsilon).rsqrt_()
            found: torch.Tensor = self.weight * (inputs * scales).to(inputs.dtype)
            return found

    return RootMeanSquareNorm


# What is looked for in a model, and what is put in its place.
_EXCHANGES = (
    (_is_gated, _gated_feed_forward),
    (_is_activated, _activated),
    (_is_added, _added),
    (_is_attention, _attention),
    (_is_rms_norm, _rms_norm),
    (_is_decoder_layer, _decoder_layer),
)
