"""What makes a model run fast on a CPU: weights in oneDNN's own layout, and freed memory kept for the next batch.

Both keep the arithmetic: the same sums in the same number format, in oneDNN's order of summation; where an activation
follows in the same call, it is taken before rounding instead of after.  On this layout a row's result does not depend
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
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if _is_gated(child):
                setattr(parent, name, _gated_feed_forward()(child))
            elif _is_rms_norm(child):
                setattr(parent, name, _rms_norm()(child))
    packed = sum(3 for module in model.modules() if type(module) is _gated_feed_forward())
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
    return packed + len(named)


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

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
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

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            gate = torch.ops.mkldnn._linear_pointwise(
                inputs, self.gate_proj.weight, self.gate_proj.bias, "swish", [], ""
            )
            both = torch.ops.mkldnn._linear_pointwise.binary(
                inputs, gate, self.up_proj.weight, self.up_proj.bias, "mul"
            )
            found: torch.Tensor = self.down_proj(both)
            return found

    return GatedFeedForward


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
