"""Generate a response to every test item: data root and model in, a run folder out."""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from imhi.benchmark import DATASETS
from imhi.data import DataRoot, LoadedSuite, Row, load_suite, resolve_data_root, sha256_of
from imhi.engines import ENGINES, Completion, Decoding, Engine, EngineRequest, PreparedEngine, Prompt
from imhi.engines.usage import total_told
from imhi.errors import UserError
from imhi.prompts import DEFAULT_STYLE, STYLES, style_facts, styled, styled_shots
from imhi.provenance import library_versions
from imhi.runs import Run, open_run
from imhi.shots import MADE_UP, DatasetShots, shots_of_datasets
from imhi.talk import progress_bar, say

__all__ = ["GenerationOutcome", "GenerationRequest", "generate_responses", "prepare_engine"]


@dataclass(frozen=True)
class GenerationRequest:
    """What to generate, with what, where to.  Paths and names as the user gave them.

    `engine` is a key of `imhi.engines.ENGINES`, and `engine_options` are the given flags of its own by name.
    `shots` is the number of examples of every label before a prompt (`imhi.shots`), chosen by `shots_seed`;
    `prompt_style`, a key of `imhi.prompts.STYLES`, is how both are worded.  `retry_refused`: rows that a server's
    content filter refused in an earlier session are asked again.
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
    engine: str = "transformers"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=Decoding)
    shots: int = 0
    shots_seed: int = 0
    prompt_style: str = DEFAULT_STYLE
    max_errors: int = 10
    retry_refused: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class GenerationOutcome:
    """A run that came to its end: where it lies, its datasets, and the rows that failed (their answer is empty)."""

    folder: Path
    datasets: list[str]
    rows: int
    failed: list[Completion]

    def complaint(self) -> str:
        """One line about the failed rows; those that a content filter refused are told apart."""
        refused = [completion for completion in self.failed if completion.finish_reason == "refused"]
        others = [completion for completion in self.failed if completion.finish_reason != "refused"]
        lasting = all(completion.finish_reason == "no_room" for completion in others)
        remedy = "a longer --max_length or another model has room" if lasting else "the same command tries them again"
        told = [
            (others, "failed", remedy),
            (refused, "were refused by the server's content filter", "--retry_refused asks them again"),
        ]
        return "; ".join(
            f"{len(rows)} of {self.rows} rows {what} and have an empty answer in {self.folder}, "
            f"the first {rows[0].id}: {rows[0].error}; {mended}"
            for rows, what, mended in told
            if rows
        )


def generate_responses(request: GenerationRequest) -> GenerationOutcome:
    """Run `request` to its end, or go on with an interrupted run of it.

    Raises
    ------
    UserError
        On anything the user can mend; with exit code 1 where more than ``max_errors`` rows failed.
    """
    root = resolve_data_root(request.data_root)
    say(root.describe())
    suite = load_suite(root, request.suite, datasets=request.datasets, limit=request.limit)
    _say_rows(suite)
    prepared = prepare_engine(request)
    shots = _choose_shots(root, suite, request)
    if request.prompt_style != DEFAULT_STYLE:
        say(f"prompts are worded as --prompt_style {request.prompt_style}: {STYLES[request.prompt_style].title}")
    prompts = [_prompt(row, suite.form, shots, request.prompt_style) for row in suite.rows]
    if otherwise := prepared.caution(suite.form):
        say(f"note: {prepared.adapter or prepared.model}: {otherwise}; its answers may be no use")
    configuration = _configuration(request, suite, prepared, shots)
    with open_run(request.output, configuration, overwrite=request.overwrite) as run:
        run.manifest["data_root"] = {"path": str(root.path), "source": root.source, "made_up_samples": root.is_samples}
        settled = _settled(run, request)
        session = {"model": prepared.model, "adapter": prepared.adapter, **prepared.session()}
        if left := len(settled - run.done):
            say(f"{left} rows that the server's content filter refused are not asked again (--retry_refused asks them)")
        if all(row.id in settled for row in suite.rows):
            before = "all" if not left else f"all but {left} of"
            say(f"{request.output}: {before} {len(suite.rows)} rows were generated before; nothing to do")
            run.begin_session(session)
            run.finish(suite.rows, {})
            _say_usage(run)
        else:
            if run.completions:
                say(f"{request.output}: going on, {len(run.done)} of {len(suite.rows)} rows are done")
                _say_differences(run.manifest["sessions"], session)
            engine = prepared.load()
            try:
                engine.check(prompts)
                _generate_into(run, engine, suite, prompts, request, session)
            finally:
                engine.close()
        return GenerationOutcome(request.output, list(suite.files), len(suite.rows), run.failed)


def _prompt(row: Row, form: str, shots: Mapping[str, DatasetShots], style: str) -> Prompt:
    before = shots[row.dataset].before(row.query) if shots else ()
    if style == DEFAULT_STYLE:
        # As it stands in the file: users' own rows need not be worded as the benchmark's.
        return Prompt(row.id, row.query, before)
    dataset = DATASETS[row.dataset]
    return Prompt(row.id, styled(row.query, dataset, form, style), styled_shots(before, dataset, form, style))


def prepare_engine(request: GenerationRequest) -> PreparedEngine:
    """The engine that a request names, with its flags checked and its model found."""
    module = import_module(ENGINES[request.engine])
    names = [one.name for one in fields(EngineRequest) if one.name != "options"]
    given = {name: getattr(request, name) for name in names}
    prepared: PreparedEngine = module.prepare(EngineRequest(**given, options=request.engine_options))
    return prepared


def _generate_into(
    run: Run,
    engine: Engine,
    suite: LoadedSuite,
    prompts: Sequence[Prompt],
    request: GenerationRequest,
    session: dict[str, Any],
) -> None:
    first = _first_prompt(engine, prompts[0])
    described = engine.describe()
    _say_other_server(run.manifest["sessions"], described)
    run.begin_session({**session, "engine": described})
    run.manifest.setdefault("first_prompt", first)
    if run.manifest["first_prompt"] != first:
        raise UserError(
            f"{run.folder}: the first prompt differs from the earlier session's; "
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
    settled = _settled(run, request)

    def facts(*, stopped: bool = False) -> dict[str, Any]:
        known = {"seconds": round(time.monotonic() - started, 3), "new_tokens": new_tokens}
        # One that counts what is paid for is asked even then; another may have broken down (a cluster without a head).
        return known if stopped and "usage" not in described else {**known, "engine": engine.describe()}

    with progress_bar(len(prompts), "generating", initial=len(settled)) as bar:
        shown = started

        def step(rows: int, tokens: int) -> None:
            # By the clock: tqdm itself draws only where the count of rows moves.
            nonlocal shown
            if time.monotonic() - shown > 2:
                shown = time.monotonic()
                bar.set_postfix_str(f"{_rate(new_tokens + tokens, started)}, {rows} rows at work")

        no_room = {completion.id: completion for completion in run.failed if completion.finish_reason == "no_room"}
        try:
            for answered in engine.complete(prompts, done=settled, on_step=step):
                # A prompt without room is refused again in every session; once is enough in the journal.
                group = [completion for completion in answered if no_room.get(completion.id) != completion]
                if not group:
                    continue
                run.append(group)
                failures += sum(completion.finish_reason == "error" for completion in group)
                new_tokens += sum(completion.new_tokens for completion in group)
                bar.update(len(group))
                bar.set_postfix_str(_rate(new_tokens, started))
                if failures > request.max_errors:
                    break
        except (UserError, KeyboardInterrupt):
            run.end_session(suite.rows, facts(stopped=True))
            _say_usage(run)
            raise
    if failures > request.max_errors:
        run.end_session(suite.rows, facts())
        _say_usage(run)
        last = [completion for completion in run.failed if completion.finish_reason == "error"][-1]
        raise UserError(
            f"stopped after {failures} failed rows (--max_errors {request.max_errors}), the last one "
            f"{last.id}: {last.error}; what was generated is kept in {run.folder}",
            code=1,
        )
    run.finish(suite.rows, facts())
    _say_outcome(run, suite)
    _say_usage(run)


def _settled(run: Run, request: GenerationRequest) -> frozenset[str]:
    """Ids of rows that are not asked in this session."""
    return run.done if request.retry_refused else run.done | run.refused


def _first_prompt(engine: Engine, prompt: Prompt) -> dict[str, Any]:
    """What tells that prompts are made as in an earlier session: token ids, or a digest where a server makes them."""
    ids = engine.prompt_token_ids(prompt)
    if ids is not None:
        return {"id": prompt.id, "token_ids": ids}
    texts = [*(text for shot in prompt.shots for text in (shot.query, shot.answer)), prompt.text]
    return {"id": prompt.id, "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}


def _rate(tokens: int, started: float) -> str:
    return f"{tokens / max(time.monotonic() - started, 1e-6):.0f} tokens/s"


def _configuration(
    request: GenerationRequest,
    suite: LoadedSuite,
    prepared: PreparedEngine,
    shots: Mapping[str, DatasetShots],
) -> dict[str, Any]:
    """Everything that decides the responses.  Batch size, device and error limit are recorded per session instead."""
    return {
        "engine": request.engine,
        "test_dataset": suite.suite,
        "rows": suite.counts(),
        "data_files": {name: "sha256:" + sha256_of(path) for name, path in suite.files.items()},
        **prepared.configuration(),
        "decoding": asdict(request.decoding),
        **({"shots": _shots_facts(request, shots)} if shots else {}),
        **(
            {"prompt_style": style_facts(request.prompt_style, suite.form)}
            if request.prompt_style != DEFAULT_STYLE
            else {}
        ),
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
    for name in [*(name for name in session if name not in ("model", "adapter")), "libraries"]:
        if earlier.get(name) != here[name]:
            say(f"note: {name} was {earlier.get(name)}, is {here[name]}; rounding, and so a few answers, may differ")


def _say_other_server(sessions: list[dict[str, Any]], engine: Mapping[str, Any]) -> None:
    """Say what a server tells of its model otherwise than in the session before: one name may stand for two models."""
    told = [one["engine"]["server"] for one in sessions if "server" in one.get("engine", {})]
    # `created` is, for some servers, when they were asked.
    if told and {**told[-1], "created": None} != {**engine["server"], "created": None}:
        say(
            f"note: the server's model was {told[-1]}, is {engine['server']}; if that is another, --overwrite starts anew"
        )


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
    totals["failed"] -= totals["refused"]
    notes = {
        "empty": "empty answers",
        "length_limited": "answers ended by the length limit",
        "prompt_truncated": "prompts cut to the model's limit",
        "failed": "failed rows",
        "refused": "rows refused by the server's content filter",
    }
    said = [f"{totals[name]} {what}" for name, what in notes.items() if totals[name]]
    say(f"{totals['done']} answers in {run.folder}" + (": " + ", ".join(said) if said else ""))


def _say_usage(run: Run) -> None:
    """Tokens and cost of all sessions, where there were several; a session's own are told by the engine."""
    total = run.manifest.get("usage")
    if total is not None and total["sessions"] > 1:
        say(total_told(total))
