"""transformers' Trainer with the loss, the batches and the checks of a responder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from imhi.talk import progress_bar, say
from imhi.training.responder.encoding import Encoded, collate
from imhi.training.responder.loss import answer_logits, answer_loss

__all__ = ["BEST", "BestKeeper", "make_trainer"]

BEST = "best"


class Rows:
    """The planned rows of a training in order, as a map-style dataset of `Encoded`."""

    def __init__(self, rows: Sequence[Encoded]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Encoded:
        return self.rows[at]


class BestKeeper:
    """What is decided at a look at the validation rows, from the trainer's history alone, so that it survives a resume.

    Parameters
    ----------
    metric : name of a validation figure; `higher` says whether higher is better.
    patience : looks without improvement after which the training ends; None: never.
    """

    def __init__(self, metric: str, *, higher: bool, patience: int | None):
        self.metric, self.higher, self.patience = metric, higher, patience

    def looks(self, history: Sequence[dict[str, Any]]) -> list[tuple[int, float]]:
        """(step, figure) of every look so far, each step once."""
        key = f"eval_{self.metric}"
        return sorted({int(entry["step"]): float(entry[key]) for entry in history if key in entry}.items())

    def best(self, history: Sequence[dict[str, Any]]) -> tuple[int, float] | None:
        """The first look with the best figure."""
        looks = self.looks(history)
        sign = 1 if self.higher else -1
        return max(looks, key=lambda look: (sign * look[1], -look[0])) if looks else None

    def is_over(self, history: Sequence[dict[str, Any]]) -> bool:
        best = self.best(history)
        if best is None or self.patience is None:
            return False
        return sum(step > best[0] for step, _ in self.looks(history)) >= self.patience


def make_trainer(
    model: Any,
    arguments: Any,
    rows: Sequence[Encoded],
    validation: Sequence[Encoded],
    *,
    pad: int,
    kind: str,
    head_weight: float,
    keeper: BestKeeper,
    save_best: Callable[[Any], None],
    ask: Callable[[Any], dict[str, float]] | None,
    save_minutes: float,
) -> Any:
    """A ``Trainer`` over `rows` in their order.

    Parameters
    ----------
    arguments : ``TrainingArguments``; its sampling strategy must be "sequential".
    save_best : called with the trainer when a look at the validation rows is the best so far.
    ask : generates answers to validation rows with the model and returns figures by name, in the first process; None
        (and under FSDP, where no process has the whole model): the loss alone.
    save_minutes : a checkpoint is written when so much time has passed since the last one.
    """
    import torch
    from peft.helpers import disable_input_dtype_casting
    from transformers import PrinterCallback, Trainer, TrainerCallback

    def collator(batch: Sequence[Encoded]) -> dict[str, Any]:
        return collate(batch, pad=pad, kind=kind, head_weight=head_weight)

    def first_says(value: Any) -> Any:
        """The first process's value, in every process."""
        if arguments.world_size == 1:
            return value
        said = [value]
        torch.distributed.broadcast_object_list(said)
        return said[0]

    def uncast() -> Any:
        # PEFT casts each layer's input to the float32 of its matrices, and autocast casts it back: time for nothing.
        return disable_input_dtype_casting(model) if arguments.bf16 and hasattr(model, "peft_config") else nullcontext()

    begun = time.monotonic()
    earlier: list[float] = []

    class ResponderTrainer(Trainer):
        control: Any

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            with uncast():
                logits = answer_logits(model, inputs, kind=kind)
            loss = answer_loss(logits, inputs["labels"], inputs["weights"], num_items_in_batch)
            if num_items_in_batch is not None:
                loss = loss * self.args.world_size  # devices' gradients are averaged, where the parts of a sum add up
            return (loss, {"logits": logits}) if return_outputs else loss

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            """The history, with the seconds that the training has taken in all its sessions."""
            if not earlier:
                earlier.append(max((entry.get("seconds", 0.0) for entry in self.state.log_history), default=0.0))
            super().log({**logs, "seconds": round(earlier[0] + time.monotonic() - begun, 1)}, start_time)

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
            """The sum of weights of a whole step, over its parts and all devices: a step is the same however it is split."""
            total = sum(batch["weights"].sum() for batch in batch_samples).to(device)
            return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

        def evaluate(
            self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
        ) -> dict[str, float]:
            began = time.perf_counter()
            self.model.eval()
            figures = {f"{metric_key_prefix}_{name}": value for name, value in self._losses().items()}
            if ask is not None and not self.is_fsdp_enabled:
                answered = ask(self.model) if self.is_world_process_zero() else {}
                figures |= {f"{metric_key_prefix}_{name}": value for name, value in answered.items()}
            # What is best, and when patience ends, must not hang on the last bits of each device.
            figures = first_says(figures)
            figures[f"{metric_key_prefix}_took"] = round(time.perf_counter() - began, 1)
            self.log(figures)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
            self.model.train()
            best = keeper.best(self.state.log_history)
            if best is not None and best[0] == self.state.global_step:
                save_best(self)
            return figures

        def _losses(self) -> dict[str, float]:
            """Mean losses of the validation rows: of the label's tokens, of the explanation's, and as trained on."""
            sums = {"head": [0.0, 0], "explanation": [0.0, 0]}
            size = self.args.per_device_eval_batch_size
            ordered = sorted(validation, key=len)
            with torch.no_grad():
                for start in range(0, len(ordered), size):
                    # A weight of 2 tells the head's tokens from the others.
                    made = collate(ordered[start : start + size], pad=pad, kind=kind, head_weight=2.0)
                    batch = self._prepare_inputs(made)
                    with self.compute_loss_context_manager(), uncast():
                        logits = answer_logits(self.model, batch, kind=kind)
                    for name, weight in (("head", 2.0), ("explanation", 1.0)):
                        wanted = batch["weights"] == weight
                        if bool(wanted.any()):
                            losses = torch.nn.functional.cross_entropy(
                                logits[wanted].float(), batch["labels"][wanted], reduction="sum"
                            )
                            sums[name][0] += float(losses)
                            sums[name][1] += int(wanted.sum())
            found = {f"{name}_loss": total / max(count, 1) for name, (total, count) in sums.items()}
            weighed = {"head": head_weight, "explanation": 1.0}
            loss = sum(weighed[name] * total for name, (total, _) in sums.items())
            return {"loss": loss / sum(weighed[name] * count for name, (_, count) in sums.items()), **found}

    class Saver(TrainerCallback):
        def __init__(self) -> None:
            self.saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> Any:
            # One clock decides for all processes: a checkpoint is written by all of them together.
            due = time.monotonic() - self.saved > 60 * save_minutes
            if first_says(due):
                control.should_save = True
            return control

        def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> Any:
            self.saved = time.monotonic()
            return control

        def on_evaluate(self, args: Any, state: Any, control: Any, **options: Any) -> Any:
            if keeper.is_over(state.log_history):
                control.should_training_stop = True
            return control

    class Teller(TrainerCallback):
        """One bar, and a line at every look; in the first process."""

        def __init__(self) -> None:
            self.bar: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if state.is_world_process_zero:
                self.bar = progress_bar(state.max_steps, "training", unit="step", initial=state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if self.bar is not None:
                self.bar.update()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **options: Any) -> None:
            if self.bar is not None and "loss" in logs:
                self.bar.set_postfix_str(f"loss {logs['loss']:.3f}")

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any], **options: Any) -> None:
            if state.is_world_process_zero:
                known = ("loss", "head_loss", "weighted_f1", "unparsed", "rougeL")
                told = [f"{name} {metrics[f'eval_{name}']:.3f}" for name in known if f"eval_{name}" in metrics]
                say(f"step {state.global_step}, validation rows: {', '.join(told)}")

        def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
            if self.bar is not None:
                self.bar.close()

    trainer = ResponderTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=Rows(rows),
        eval_dataset=Rows(validation),
        callbacks=[Saver(), Teller()],
    )
    trainer.remove_callback(PrinterCallback)
    # The loss is divided by what the whole step weighs, not by the number of its parts.
    trainer.model_accepts_loss_kwargs = True
    return trainer


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; one whose writing was cut short has no ``trainer_state.json`` and is passed over."""
    found = [path for path in folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
