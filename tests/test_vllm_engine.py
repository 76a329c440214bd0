"""The vLLM engine: its bookkeeping with a stand-in for vLLM; the real one, where $IMHI_TEST_VLLM_PYTHON has it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

import pytest
from tiny import ROOT, sample_texts, save_llama

from imhi.checkpoints import load_generator, load_tokenizer, locate_generator
from imhi.commands import run_script
from imhi.data import samples_root
from imhi.engines import Completion, Decoding, EngineRequest, Prompt, Shot, vllm_engine
from imhi.engines.transformers_engine import TransformersEngine
from imhi.engines.vllm_engine import VllmEngine, adapter_rank, allowed_rank, end_tokens, prepare
from imhi.errors import UserError

END = 1  # </s> of the tiny LLaMA
# Seconds that a run with the real vLLM may take: on a busy machine, ten times those of an idle one.
PATIENCE = 1500


class StandIn:
    """vLLM's engine as far as ours uses it: answers the prompt's ids backwards, a few tokens a step, then the end."""

    latest: StandIn

    def __init__(self, arguments: SimpleNamespace):
        StandIn.latest = self
        self.arguments = arguments
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=arguments.max_model_len or 1024, dtype="torch.float32"),
            scheduler_config=SimpleNamespace(max_num_seqs=getattr(arguments, "max_num_seqs", 4)),
            cache_config=SimpleNamespace(enable_prefix_caching=arguments.enable_prefix_caching),
        )
        self.engine_core = SimpleNamespace(shutdown=lambda: self.ended.append("shutdown"))
        self.running: dict[str, SimpleNamespace] = {}
        self.order: list[str] = []
        self.most = 0
        self.ended: list[str] = []
        self.refuse: set[str] = set()
        self.fail: set[str] = set()
        self.dies = False
        self.adapter_counts = True

    @classmethod
    def from_engine_args(cls, arguments: SimpleNamespace) -> StandIn:
        return cls(arguments)

    def add_lora(self, adapter: SimpleNamespace) -> bool:
        return True

    def add_request(self, name, prompt, sampling, lora_request=None):
        if name in self.refuse:
            raise ValueError("token id 9999 is out of the vocabulary\nmore")
        ids = [*reversed(prompt["prompt_token_ids"]), *sampling.stop_token_ids][: sampling.max_tokens]
        self.running[name] = SimpleNamespace(left=ids, sampling=sampling, lora=lora_request)
        self.order.append(name)
        self.most = max(self.most, len(self.running))

    def abort_request(self, names):
        self.ended += names

    def step(self):
        if self.dies:
            raise RuntimeError("EngineCore encountered an issue")
        outputs = []
        for name, row in list(self.running.items())[: self.vllm_config.scheduler_config.max_num_seqs]:
            new, row.left = row.left[:5], row.left[5:]
            reason = None
            if name in self.fail:
                reason = "error"
            elif not row.left:
                reason = "stop" if new[-1] == END else "length"
            scores = [{3: SimpleNamespace(logprob=-1.5 if row.lora and self.adapter_counts else -1.0)}]
            answer = SimpleNamespace(token_ids=new, finish_reason=reason, logprobs=scores)
            outputs.append(SimpleNamespace(request_id=name, outputs=[answer], finished=reason is not None))
            if reason:
                del self.running[name]
        return outputs


@pytest.fixture
def stand_in(monkeypatch):
    """Modules named as vLLM's, so that ours finds what it imports."""
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.engine.arg_utils")}
    modules |= {name: ModuleType(name) for name in ("vllm.lora.request", "vllm.config.lora")}
    modules["vllm"].LLMEngine = StandIn
    modules["vllm"].SamplingParams = lambda **options: SimpleNamespace(**{"stop_token_ids": [], **options})
    modules["vllm.sampling_params"].RequestOutputKind = SimpleNamespace(DELTA="delta")
    modules["vllm.engine.arg_utils"].EngineArgs = lambda **options: SimpleNamespace(**options)
    modules["vllm.lora.request"].LoRARequest = lambda *values: SimpleNamespace(values=values)
    modules["vllm.config.lora"].MaxLoRARanks = Literal[1, 8, 16]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(vllm_engine, "_installed", lambda: "0.32.0+cpu")
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


def engine_of(folder: Path, decoding: Decoding | None = None, **request) -> VllmEngine:
    decoding = decoding or Decoding(max_new_tokens=400)
    return prepare(EngineRequest(model=str(folder), dtype="float32", decoding=decoding, **request)).load()


def made_up_prompts(count: int) -> list[Prompt]:
    return [Prompt(f"DR/{index}", text) for index, text in enumerate(sample_texts()[:count])]


def answers(engine: VllmEngine, prompts: list[Prompt], done: frozenset[str] = frozenset()) -> dict[str, Completion]:
    found = [completion for group in engine.complete(prompts, done=done) for completion in group]
    assert len(found) == len({completion.id for completion in found})
    return {completion.id: completion for completion in found}


def save_lora(folder: Path, base: Path, *, trained: bool = True, **options) -> Path:
    """A LoRA adapter of the tiny LLaMA; untrained, its second factor is zero and changes nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(str(base))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)
    wrapped = get_peft_model(model, config)
    for name, weight in wrapped.named_parameters():
        if trained and "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    wrapped.save_pretrained(str(folder))
    return folder


def test_without_vllm_one_line_tells_how_to_install_it(tiny_llama, monkeypatch):
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; pip install 'imhi\[vllm\]'"):
        prepare(EngineRequest(model=str(tiny_llama)))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"deterministic": True}, "--deterministic has no effect with --engine vllm"),
        ({"batching": "buckets"}, "--batching has no effect with --engine vllm"),
        ({"cuda": True}, "--cuda: the vLLM installed here .* is its CPU build"),
        ({"device": "cuda:1"}, "--device cuda:1: the vLLM installed here .* is its CPU build"),
        ({"decoding": Decoding(do_sample=True, temperature=0.001)}, "vLLM draws at 0.01 or more"),
    ],
)
def test_flags_without_effect_are_refused(request_, message, stand_in, tiny_llama):
    with pytest.raises(UserError, match=message):
        prepare(EngineRequest(model=str(tiny_llama), **request_))


def test_a_build_for_gpus_does_not_run_on_a_cpu(stand_in, tiny_llama, monkeypatch):
    monkeypatch.setattr(vllm_engine, "_installed", lambda: "0.32.0")
    with pytest.raises(UserError, match=r"--device cpu: the vLLM installed here .* runs on GPUs"):
        prepare(EngineRequest(model=str(tiny_llama), device="cpu"))
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES"):
        prepare(EngineRequest(model=str(tiny_llama), device="cuda:1"))


def test_an_encoder_decoder_is_refused(stand_in, tiny_bart):
    with pytest.raises(UserError, match="encoder-decoder"):
        prepare(EngineRequest(model=str(tiny_bart)))


def test_answers_come_with_counts_and_the_reason_why_they_ended(stand_in, tiny_llama):
    prompts = made_up_prompts(12)
    engine = engine_of(tiny_llama, Decoding(max_new_tokens=30))
    tokenizer = load_tokenizer(tiny_llama)
    for prompt in prompts:
        answer, ids = answers(engine, [prompt])[prompt.id], tokenizer(prompt.text)["input_ids"]
        backwards = list(reversed(ids))[:30]
        assert answer.prompt_tokens == len(ids)
        assert answer.text == tokenizer.decode(backwards, skip_special_tokens=True).strip()
        assert (answer.new_tokens, answer.finish_reason) == (len(backwards), "stop" if len(ids) < 30 else "length")
    assert {answer.finish_reason for answer in answers(engine, prompts).values()} == {"length"}
    assert answers(engine, [Prompt("DR/0", "fine")])["DR/0"].finish_reason == "stop"


def test_prompts_are_the_transformers_engines_and_so_are_the_tokens_that_end(stand_in, tiny_llama):
    import torch

    generator = load_generator(locate_generator(str(tiny_llama)), device="cpu", dtype=torch.float32)
    prompt = Prompt("DR/0", "Question: why? ", (Shot("Post: a quiet day", "No"), Shot("Post: ", "Yes")))
    other = TransformersEngine(generator, Decoding())
    engine = engine_of(tiny_llama)
    assert engine.prompt_token_ids(prompt) == other.prompt_token_ids(prompt)
    assert engine.prompt_token_ids(prompt)[:2] != [0, 0]
    assert engine.ends == frozenset(generator.model.generation_config.eos_token_id) == {END}
    assert engine.context == generator.context


def test_the_tokens_that_end_are_gathered_as_for_a_loaded_model(tmp_path):
    import torch

    folder = save_llama(tmp_path, eos_token_id=[1, 7])
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9], "num_beams": 4}))
    loaded = load_generator(locate_generator(str(folder)), device="cpu", dtype=torch.float32)
    assert end_tokens(folder, load_tokenizer(folder)) == {1, 7, 9}
    assert set(loaded.model.generation_config.eos_token_id) == {1, 7, 9}


def test_done_rows_are_left_out_and_prompts_that_begin_alike_stand_together(stand_in, tiny_llama):
    beginnings = ["a quiet evening at home", "the exam went badly again"]
    prompts = [Prompt(f"DR/{at}", f"{beginnings[at % 2]}, {at}") for at in range(10)]
    found = answers(engine_of(tiny_llama), prompts, done=frozenset({"DR/3", "DR/4"}))
    assert found.keys() == {prompt.id for prompt in prompts} - {"DR/3", "DR/4"}
    assert StandIn.latest.order == [f"DR/{at}" for at in (0, 2, 6, 8, 1, 5, 7, 9)]


def test_vllm_never_holds_more_than_twice_the_rows_that_it_answers_at_once(stand_in, tiny_llama):
    prompts = [Prompt(f"DR/{at}", sample_texts()[at % 40]) for at in range(200)]
    assert len(answers(engine_of(tiny_llama, batch_size=3), prompts)) == 200
    assert StandIn.latest.arguments.max_num_seqs == 3
    assert StandIn.latest.most == 6


def test_a_row_that_fails_costs_no_other_row(stand_in, tiny_llama):
    prompts = [*made_up_prompts(8), Prompt("DR/8", "nobody asked me how the week went " * 200)]
    engine = engine_of(tiny_llama)
    StandIn.latest.refuse, StandIn.latest.fail = {"DR/2"}, {"DR/5"}
    found = answers(engine, prompts)
    assert {id for id, answer in found.items() if answer.error} == {"DR/2", "DR/5", "DR/8"}
    assert found["DR/2"].error == "ValueError: token id 9999 is out of the vocabulary"
    assert found["DR/5"].error == "RuntimeError: vLLM ended the row: error"
    assert found["DR/8"].finish_reason == "no_room"
    assert "context 1024" in found["DR/8"].error


def test_max_length_bounds_prompt_and_answer(stand_in, tiny_llama):
    prompts = made_up_prompts(6)
    engine = engine_of(tiny_llama, Decoding(max_new_tokens=100, max_length=90))
    assert StandIn.latest.arguments.max_model_len == 90
    found = answers(engine, prompts)
    assert all(answer.prompt_tokens + answer.new_tokens <= 90 or answer.error for answer in found.values())


def test_when_vllm_stops_the_run_ends_with_one_line(stand_in, tiny_llama):
    engine = engine_of(tiny_llama)
    StandIn.latest.dies = True
    with pytest.raises(UserError, match=r"vLLM stopped .*the same command goes on") as caught:
        answers(engine, made_up_prompts(3))
    assert caught.value.code == 1
    assert StandIn.latest.ended == []
    engine.close()
    assert StandIn.latest.ended == ["shutdown"]


def test_ctrl_c_in_a_step_asks_vllm_for_nothing_more(stand_in, tiny_llama, monkeypatch):
    engine = engine_of(tiny_llama, batch_size=2)
    groups = engine.complete(made_up_prompts(12))
    next(groups)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(StandIn.latest, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(groups)
    assert StandIn.latest.ended == []


def test_who_stops_listening_takes_the_rows_at_work_back(stand_in, tiny_llama):
    engine = engine_of(tiny_llama, batch_size=2)
    groups = engine.complete(made_up_prompts(12))
    next(groups)
    groups.close()
    assert 0 < len(StandIn.latest.ended) <= 4


def test_the_bar_is_told_rows_and_tokens(stand_in, tiny_llama):
    told = []
    for _ in engine_of(tiny_llama, batch_size=2).complete(made_up_prompts(6), on_step=lambda *what: told.append(what)):
        pass
    assert told and all(0 < rows <= 4 for rows, _ in told)
    assert any(tokens > 0 for _, tokens in told)


def test_rows_are_greedy_or_drawn_with_a_seed_of_their_own(stand_in, tiny_llama):
    decoding = Decoding(do_sample=True, temperature=0.7, top_p=0.9, top_k=5, seed=3)
    drawn = engine_of(tiny_llama, decoding)
    first, again, other = (drawn._sampling(key, 9) for key in ("DR/0", "DR/0", "DR/1"))
    assert (first.temperature, first.top_p, first.top_k, first.max_tokens) == (0.7, 0.9, 5, 9)
    assert first.seed == again.seed != other.seed
    greedy = engine_of(tiny_llama)._sampling("DR/0", 9)
    assert greedy.temperature == 0.0 and not hasattr(greedy, "seed")


def test_vllm_is_started_without_settings_of_the_checkpoint_or_of_its_own(stand_in, tiny_llama, monkeypatch):
    engine = engine_of(tiny_llama, options={"tensor_parallel_size": 2})
    given = StandIn.latest.arguments
    assert (given.dtype, given.enforce_eager, given.enable_prefix_caching) == ("float32", True, True)
    assert (given.generation_config, given.skip_tokenizer_init, given.trust_remote_code) == ("vllm", True, False)
    assert given.tensor_parallel_size == 2
    assert 0 < given.kv_cache_memory_bytes <= 4 << 30
    assert (os.environ["VLLM_NO_USAGE_STATS"], os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]) == ("1", "0")
    assert engine.describe()["vllm"] == "0.32.0+cpu"
    assert engine.prepared.configuration()["engine_version"] == "0.32.0+cpu"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
    engine_of(tiny_llama)
    assert not hasattr(StandIn.latest.arguments, "kv_cache_memory_bytes")


def test_what_vllm_says_of_a_model_that_it_lacks_is_one_line(stand_in, tiny_llama, monkeypatch):
    def fails(arguments):
        raise ValueError("Model architectures ['X'] are not supported for now\nSupported architectures: ...")

    monkeypatch.setattr(StandIn, "from_engine_args", fails)
    with pytest.raises(UserError, match=r"does not load \(Model architectures \['X'\] are not supported for now\)"):
        engine_of(tiny_llama)


def test_the_rank_of_an_adapter_is_read_and_rounded_up(stand_in, tiny_llama, tmp_path):
    adapter = save_lora(tmp_path / "a", tiny_llama, rank_pattern={"layers.0.self_attn.q_proj": 9})
    assert adapter_rank(adapter) == 9
    engine = engine_of(tiny_llama, lora_path=str(adapter))
    given = StandIn.latest.arguments
    assert (given.enable_lora, given.max_loras, given.max_lora_rank) == (True, 1, 16)
    assert engine.describe()["adapter_rank"] == 9
    answers(engine, made_up_prompts(2))
    assert [allowed_rank(rank, (1, 8, 16), adapter) for rank in (1, 2, 8, 9, 16)] == [1, 8, 8, 16, 16]
    with pytest.raises(UserError, match="has rank 17, vLLM takes up to 16"):
        allowed_rank(17, (1, 8, 16), adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UserError, match="gives no rank"):
        adapter_rank(adapter)


def test_an_adapter_that_changes_nothing_is_refused(stand_in, tiny_llama, tmp_path, monkeypatch):
    adapter = save_lora(tmp_path / "a", tiny_llama)
    start = StandIn.from_engine_args

    def deaf(arguments):
        started = start(arguments)
        started.adapter_counts = False
        return started

    monkeypatch.setattr(StandIn, "from_engine_args", deaf)
    with pytest.raises(UserError, match="does not change the model's scores"):
        engine_of(tiny_llama, lora_path=str(adapter))
    assert StandIn.latest.ended == ["shutdown"]


# --- the real vLLM ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def vllm_python() -> str:
    found = os.environ.get("IMHI_TEST_VLLM_PYTHON")
    if not found:
        pytest.skip("$IMHI_TEST_VLLM_PYTHON names no Python with vLLM (make test-vllm)")
    return found


@pytest.fixture(scope="session")
def wide_llama(tmp_path_factory) -> Path:
    """A tiny LLaMA with heads as wide as vLLM's kernels ask for."""
    return save_llama(
        tmp_path_factory.mktemp("wide_llama"), hidden_size=128, num_attention_heads=2, initializer_range=0.2
    )


def arguments_of(model: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--data_root", str(samples_root()), "--dtype", "float32", "--max_new_tokens", "24"]
    return ["--model_path", str(model), "--model_output_path", f"{out}", *fixed, *more]


def command(python: str, model: Path, out: Path, *more: str) -> list[str]:
    return [python, str(ROOT / "src" / "IMHI.py"), *arguments_of(model, out, "--engine", "vllm", *more)]


def environment() -> dict[str, str]:
    """As a user's, with a small cache of keys and values; a port that another run on this machine has is not taken."""
    # Not what the stand-in's engines have set in this process.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM", "TORCH"))}
    # Nor any C++ compiler: not every machine has one.
    return {**kept, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "CXX": "/bin/false"}


def vllm_run(python: str, model: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(python, model, out, *more), env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )


def texts(folder: Path) -> dict[str, list[list[str]]]:
    return {path.name: list(csv.reader(path.open(encoding="utf-8"))) for path in sorted(folder.glob("*.csv"))}


def records(folder: Path) -> list[dict]:
    path = folder / "responses.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_real_vllm_answers_as_the_transformers_engine_does(vllm_python, wide_llama, tmp_path):
    assert run_script("generate", arguments_of(wide_llama, tmp_path / "ours")) == 0
    done = vllm_run(vllm_python, wide_llama, tmp_path / "theirs")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""
    assert texts(tmp_path / "theirs") == texts(tmp_path / "ours")
    ours, theirs = ({row["id"]: row for row in records(tmp_path / side)} for side in ("ours", "theirs"))
    assert ours == theirs
    assert len({row["text"] for row in theirs.values()}) > 20
    manifest = json.loads((tmp_path / "theirs" / "manifest.json").read_text())
    assert manifest["configuration"]["engine"] == "vllm"
    assert manifest["sessions"][-1]["engine"]["vllm"] == manifest["configuration"]["engine_version"]
    first = json.loads((tmp_path / "ours" / "manifest.json").read_text())["first_prompt"]
    assert manifest["first_prompt"] == first


def test_real_vllm_killed_goes_on_and_leaves_no_process(vllm_python, wide_llama, tmp_path):
    whole = vllm_run(vllm_python, wide_llama, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    out = tmp_path / "killed"
    flags = ("--batch_size", "2")
    with subprocess.Popen(
        command(vllm_python, wide_llama, out, *flags),
        env=environment(),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while len(records(out)) < 5 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    before = records(out)
    assert 5 <= len(before) < 91
    deadline = time.monotonic() + 60
    while _session_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert _session_of(process.pid) == []
    rest = vllm_run(vllm_python, wide_llama, out, *flags)
    assert rest.returncode == 0, rest.stderr[-3000:]
    after = records(out)
    assert after[: len(before)] == before
    assert len(after) == len({row["id"] for row in after}) == 91
    assert texts(out) == texts(tmp_path / "whole")


def _session_of(leader: int) -> list[int]:
    """Living processes of the session that a process began: what it started and what those started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_real_vllm_applies_an_adapter_and_refuses_an_untrained_one(vllm_python, wide_llama, tmp_path):
    adapter = save_lora(tmp_path / "adapter", wide_llama)
    flags = ("--lora_path", str(adapter), "--datasets", "DR", "SAD")
    assert run_script("generate", arguments_of(wide_llama, tmp_path / "ours", *flags)) == 0
    done = vllm_run(vllm_python, wide_llama, tmp_path / "theirs", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert texts(tmp_path / "theirs") == texts(tmp_path / "ours")
    assert run_script("generate", arguments_of(wide_llama, tmp_path / "base", "--datasets", "DR", "SAD")) == 0
    assert texts(tmp_path / "base") != texts(tmp_path / "ours")
    untrained = save_lora(tmp_path / "untrained", wide_llama, trained=False)
    refused = vllm_run(vllm_python, wide_llama, tmp_path / "refused", "--lora_path", str(untrained), "--limit", "1")
    assert refused.returncode == 2
    assert "does not change the model's scores" in refused.stderr.splitlines()[-1]


def test_real_vllm_draws_by_the_seed(vllm_python, wide_llama, tmp_path):
    flags = ("--do_sample", "--datasets", "DR")
    runs = [("a", "1"), ("b", "1"), ("c", "2")]
    for name, seed in runs:
        done = vllm_run(vllm_python, wide_llama, tmp_path / name, *flags, "--seed", seed)
        assert done.returncode == 0, done.stderr[-3000:]
    a, b, c = (texts(tmp_path / name) for name, _ in runs)
    assert a == b != c


def test_real_vllm_is_interrupted_without_a_stack_trace(vllm_python, wide_llama, tmp_path):
    with subprocess.Popen(
        command(vllm_python, wide_llama, tmp_path, "--batch_size", "1"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE
        while not records(tmp_path) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        # As a terminal does: to all processes of the run.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted: what was finished is saved" in said
