"""Which device and which number format a model runs in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imhi.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "pick_device", "pick_dtype"]

DTYPES = ("auto", "float32", "bfloat16", "float16")


def pick_device(*, cuda: bool = False, device: str | None = None) -> str:
    """The device to run on: ``--device`` as given, else ``cuda:0`` for ``--cuda``, else ``cpu``.

    Raises UserError where a GPU is asked for and there is none: hours on the wrong device are not a fallback.
    """
    if cuda and device and not device.startswith("cuda"):
        raise UserError(f"--cuda and --device {device} name two devices; leave one out")
    chosen = device or ("cuda:0" if cuda else "cpu")
    kind = chosen.partition(":")[0]
    if kind not in {"cpu", "cuda", "mps"} or (kind != "cuda" and chosen != kind):
        raise UserError(f"--device: {chosen!r} is not cpu, cuda, cuda:N or mps")
    if kind != "cpu":
        import torch

        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(
                f"{chosen}: no CUDA GPU is visible to torch {torch.__version__}; leave --cuda out to run on the CPU"
            )
        if kind == "mps" and not torch.backends.mps.is_available():
            raise UserError("--device mps: this torch sees no Apple GPU")
        index = chosen.partition(":")[2]
        if kind == "cuda" and index and (not index.isdigit() or int(index) >= torch.cuda.device_count()):
            raise UserError(f"--device {chosen}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return chosen


def pick_dtype(name: str, device: str) -> torch.dtype:
    """The torch dtype for ``--dtype``.

    "auto" is bfloat16 where the hardware computes in it (CUDA capability 8.0 and up; CPUs with avx512_bf16 or
    AMX), else float32.  The published scripts ran whatever the checkpoint was saved in, mostly float32.
    """
    import torch

    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.startswith("cuda"):
        fast = torch.cuda.get_device_capability(torch.device(device)) >= (8, 0)
    else:
        fast = device == "cpu" and _cpu_computes_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def _cpu_computes_bfloat16() -> bool:
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
