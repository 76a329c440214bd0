"""Generate a response to every test item: data root and model in, a run folder out."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from imhi.checkpoints import GeneratorSpec, load_generator, locate_generator
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.data import DataRoot, LoadedSuite, load_suite, resolve_data_root, sha256_of
from imhi.devices import pick_device, pick_dtype
from imhi.engines import Completion, Decoding, Engine, Prompt
from imhi.engines.transformers_engine import TransformersEngine
from imhi.errors import UserError
from imhi.provenance import library_versions
from imhi.runs import Run, open_run
from imhi.shots import MADE_UP, DatasetShots, shots_of_datasets
from imhi.talk import progress_bar, say

__all__ = ["GenerationOutcome", "GenerationRequest", "generate_responses", "load_engine"]


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate, with what, where to.  Paths and names as the user gave them.

    `shots` is the number of examples of every label before a prompt (`imhi.shots`), chosen by `shots_seed`.
    """

    output: Path
    model: str | None = None
    lora_path: str | None = None
    llama: bool = False
    suite: str = "IMHI"
    datasets: Sequence[str] = ()
    limit: int | None = None
    data_root: str | None = None
    cuda: bool = False
    device: str | None = None
    dtype: str = "auto"
    batch_size: int | None = None
    batching: str | None = None
    deterministic: bool = False
    decoding: Decoding = field(default_factory=Decoding)
    shots: int = 0
    shots_seed: int = 0
    max_errors: int = 10
    overwrite: bool = False


def load_engine(
    spec: GeneratorSpec,
    decoding: Decoding,
    *,
    device: str,
    dtype: str,
    batch_size: int | None = None,
    batching: str | None = None,
    deterministic: bool = False,
    answer_lengths: Mapping[str, int] | None = None,
) -> TransformersEngine:
    """Load a located generator into the transformers engine, in the form that suits the device."""
    generator = load_generator(spec, device=device, dtype=pick_dtype(dtype, device))
    if device == "cpu":
        keep_freed_memory()
        generator.facts["packed_linear_layers"] = pack_linears(generator.model)
    return TransformersEngine(
        generator,
        decoding,
        batch_size=batch_size,
        batching=batching,
        deterministic=deterministic,
        answer_lengths=answer_lengths,
    )


@dataclass(frozen=True)
class GenerationOutcome:
    """A run that came to its end: where it lies, its datasets, and the rows that failed (their answer is empty)."""

    folder: Path
    datasets: list[str]
    rows: int
    failed: list[Completion]

    def complaint(self) -> str:
        """One line about the failed rows."""
        first = self.failed[0]
        lasting = all(completion.finish_reason == "no_room" for completion in self.failed)
        remedy = "a longer --max_length or another model has room" if lasting else "the same command tries them again"
        return (
            f"{len(self.failed)} of {self.rows} rows failed and have an empty answer in {self.folder}, "
            f"the first {first.id}: {first.error}; {remedy}"
        )


def generate_responses(request: GenerationRequest) -> GenerationOutcome:
    """Run `request` to its end, or go on with an interrupted run of it.

    Raises
    ------
    UserError
        On anything the user can mend; with exit code 1 where more than ``max_errors`` rows failed.
    """
    device = pick_device(cuda=request.cuda, device=request.device)
    root = resolve_data_root(request.data_root)
    say(root.describe())
    suite = load_suite(root, request.suite, datasets=request.datasets, limit=request.limit)
    _say_rows(suite)
    spec = locate_generator(request.model, lora_path=request.lora_path, llama=request.llama)
    shots = _choose_shots(root, suite, request)
    if otherwise := spec.taught_otherwise(form=suite.form, chat_template=request.decoding.chat_template):
        say(f"note: {spec.adapter_name or spec.name}: {otherwise}; its answers may be no use")
    configuration = _configuration(request, suite, spec, str(pick_dtype(request.dtype, device)), shots)
    with open_run(request.output, configuration, overwrite=request.overwrite) as run:
        run.manifest["data_root"] = {"path": str(root.path), "source": root.source, "made_up_samples": root.is_samples}
        done = run.done
        session = {
            "model": spec.name,
            "adapter": spec.adapter_name,
            "device": device,
            "batch_size": request.batch_size,
            "batching": request.batching,
        }
        if all(row.id in done for row in suite.rows):
            say(f"{request.output}: all {len(suite.rows)} rows were generated before; nothing to do")
            run.begin_session(session)
            run.finish(suite.rows, {})
        else:
            if done:
                say(f"{request.output}: going on, {len(done)} of {len(suite.rows)} rows are done")
                _say_differences(run.manifest["sessions"], session)
            engine = load_engine(
                spec,
                request.decoding,
                device=device,
                dtype=request.dtype,
                batch_size=request.batch_size,
                batching=request.batching,
                deterministic=request.deterministic,
            )
            prompts = [
                Prompt(row.id, row.query, shots[row.dataset].before(row.query) if shots else ()) for row in suite.rows
            ]
            engine.check(prompts)
            _generate_into(run, engine, suite, prompts, request, session)
        return GenerationOutcome(request.output, list(suite.files), len(suite.rows), run.failed)


def _generate_into(
    run: Run,
    engine: Engine,
    suite: LoadedSuite,
    prompts: Sequence[Prompt],
    request: GenerationRequest,
    session: dict[str, Any],
) -> None:
    first = engine.prompt_token_ids(prompts[0])
    run.begin_session({**session, "engine": engine.describe()})
    run.manifest.setdefault("first_prompt", {"id": prompts[0].id, "token_ids": first})
    if run.manifest["first_prompt"]["token_ids"] != first:
        raise UserError(
            f"{run.folder}: the first prompt's token ids differ from the earlier session's; "
            "the tokenizer or its library changed, so answers would not be comparable: --overwrite starts anew"
        )
    batching = engine.describe().get("batch_plan", {}).get("batching")
    if request.decoding.do_sample and run.manifest.setdefault("batching", batching) != batching:
        raise UserError(
            f"{run.folder}: sampled {run.manifest['batching']}, where answers are drawn otherwise than {batching}; "
            f"--batching {run.manifest['batching']} goes on, --overwrite starts anew"
        )
    run.write_manifest()
    started, new_tokens, failures = time.monotonic(), 0, 0
    with progress_bar(len(prompts), "generating", initial=len(run.done)) as bar:
        shown = started

        def step(rows: int, tokens: int) -> None:
            # By the clock: tqdm itself draws only where the count of rows moves.
            nonlocal shown
            if time.monotonic() - shown > 2:
                shown = time.monotonic()
                bar.set_postfix_str(f"{_rate(new_tokens + tokens, started)}, {rows} rows at work")

        refused = {completion.id: completion for completion in run.failed if completion.finish_reason == "no_room"}
        for answered in engine.complete(prompts, done=run.done, on_step=step):
            # A prompt without room is refused again in every session; once is enough in the journal.
            group = [completion for completion in answered if refused.get(completion.id) != completion]
            if not group:
                continue
            run.append(group)
            failures += sum(completion.finish_reason == "error" for completion in group)
            new_tokens += sum(completion.new_tokens for completion in group)
            bar.update(len(group))
            bar.set_postfix_str(_rate(new_tokens, started))
            if failures > request.max_errors:
                break
    seconds = round(time.monotonic() - started, 3)
    facts = {"seconds": seconds, "new_tokens": new_tokens, "engine": engine.describe()}
    if failures > request.max_errors:
        run.end_session(suite.rows, facts)
        raise UserError(
            f"stopped after {failures} failed rows (--max_errors {request.max_errors}), the last one "
            f"{run.failed[-1].id}: {run.failed[-1].error}; what was generated is kept in {run.folder}",
            code=1,
        )
    run.finish(suite.rows, facts)
    _say_outcome(run, suite)


def _rate(tokens: int, started: float) -> str:
    return f"{tokens / max(time.monotonic() - started, 1e-6):.0f} tokens/s"


def _configuration(
    request: GenerationRequest,
    suite: LoadedSuite,
    spec: GeneratorSpec,
    dtype: str,
    shots: Mapping[str, DatasetShots],
) -> dict[str, Any]:
    """Everything that decides the responses.  Batch size, device and error limit are recorded per session instead."""
    return {
        "engine": TransformersEngine.name,
        "test_dataset": suite.suite,
        "rows": suite.counts(),
        "data_files": {name: "sha256:" + sha256_of(path) for name, path in suite.files.items()},
        **spec.identity(),
        "dtype": dtype.removeprefix("torch."),
        "decoding": asdict(request.decoding),
        **({"shots": _shots_facts(request, shots)} if shots else {}),
        **({"deterministic": True} if request.deterministic else {}),
        # In whole batches, answers are drawn batch by batch.
        **({"batch_size": request.batch_size} if request.decoding.do_sample else {}),
    }


def _shots_facts(request: GenerationRequest, shots: Mapping[str, DatasetShots]) -> dict[str, Any]:
    return {
        "per_label": request.shots,
        "seed": request.shots_seed,
        "datasets": {name: chosen.facts() for name, chosen in shots.items()},
    }


def _choose_shots(root: DataRoot, suite: LoadedSuite, request: GenerationRequest) -> dict[str, DatasetShots]:
    if not request.shots:
        return {}
    shots = shots_of_datasets(root, suite.files, suite.form, request.shots, request.shots_seed)
    say(f"before every prompt: {request.shots} of every label, from the training files (seed {request.shots_seed})")
    if made_up := [name for name, chosen in shots.items() if chosen.are_made_up]:
        say(f"no training files for {', '.join(made_up)} in this data root: examples are {MADE_UP} there")
    return shots


def _say_differences(sessions: list[dict[str, Any]], session: dict[str, Any]) -> None:
    """Say what may move an answer's last bits between the earlier session and this one."""
    earlier, here = sessions[-1], {**session, "libraries": library_versions()}
    for name in ("batch_size", "batching", "device", "libraries"):
        if earlier.get(name) != here[name]:
            say(f"note: {name} was {earlier.get(name)}, is {here[name]}; rounding, and so a few answers, may differ")


def _say_rows(suite: LoadedSuite) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in suite.counts().items())
    say(f"{suite.suite}: {len(suite.rows)} rows ({counts})")
    if suite.missing:
        say(f"not in this data root: {', '.join(suite.missing)}")
    if strays := [name for name in suite.stray if name.lower().endswith(".csv")]:
        say(f"ignored in {suite.folder}, not named after a dataset: {', '.join(strays)}")


def _say_outcome(run: Run, suite: LoadedSuite) -> None:
    totals: dict[str, int] = defaultdict(int)
    for counts in run.counts(suite.rows).values():
        for name, count in counts.items():
            totals[name] += count
    notes = {
        "empty": "empty answers",
        "length_limited": "answers ended by the length limit",
        "prompt_truncated": "prompts cut to the model's limit",
        "failed": "failed rows",
    }
    said = [f"{totals[name]} {what}" for name, what in notes.items() if totals[name]]
    say(f"{totals['done']} answers in {run.folder}" + (": " + ", ".join(said) if said else ""))
