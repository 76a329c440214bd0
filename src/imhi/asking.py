"""One post, one answer: the prompt, engine and rule label of a full run, with the text streamed."""

from __future__ import annotations

import sys

from imhi.benchmark import DATASETS, Dataset, query
from imhi.checkpoints import locate_generator
from imhi.data import parse_dataset_names
from imhi.devices import pick_device
from imhi.engines import Decoding, Prompt
from imhi.engines.transformers_engine import load_engine
from imhi.errors import UserError
from imhi.labelers.rules import label_by_rule
from imhi.talk import say

__all__ = ["ask"]


def ask(
    post: str,
    *,
    dataset_name: str,
    aspect: str | None = None,
    form: str | None = None,
    model: str | None = None,
    lora_path: str | None = None,
    llama: bool = False,
    cuda: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    decoding: Decoding | None = None,
) -> int:
    """Stream a model's answer about `post` to stdout; its rule label follows on stderr.  Returns the exit status.

    Raises UserError on an empty post, an unknown dataset or aspect, and everything a full run refuses.
    """
    if not post.strip():
        raise UserError("the post is empty; give it in quotes, or - to read it from standard input")
    try:
        post.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the post is not UTF-8 text; convert it to UTF-8") from None
    names = parse_dataset_names([dataset_name], flag="--dataset")
    if len(names) > 1:
        raise UserError(f"--dataset: one question at a time, got {', '.join(names)}")
    dataset = DATASETS[names[0]]
    chosen_aspect = _aspect(dataset, aspect)
    chosen_device = pick_device(cuda=cuda, device=device)
    spec = locate_generator(model, lora_path=lora_path, llama=llama)
    wording = form or ("completion" if spec.kind == "seq2seq" else "instruction")
    prompt = query(dataset, wording, post.strip(), chosen_aspect)
    if otherwise := spec.taught_otherwise(form=wording, chat_template=bool(decoding and decoding.chat_template)):
        say(f"note: {spec.adapter_name or spec.name}: {otherwise}; its answer may be no use")
    engine = load_engine(spec, decoding or Decoding(), device=chosen_device, dtype=dtype, batching="buckets")
    say(f"prompt ({wording} form): {prompt}")
    from transformers import TextStreamer

    streamer = TextStreamer(engine.generator.tokenizer, skip_prompt=True, skip_special_tokens=True)
    completion = engine.stream(Prompt("ask/0", prompt), streamer)
    if completion.error is not None:
        raise UserError(f"no answer: {completion.error}", code=1)
    sys.stdout.flush()
    label = label_by_rule(dataset, completion.text)
    limited = ", ended by the length limit" if completion.finish_reason == "length" else ""
    say(f"label by rule: {label or 'none stated'} ({completion.new_tokens} tokens{limited})")
    return 0


def _aspect(dataset: Dataset, given: str | None) -> str:
    if given is None:
        return dataset.aspects[0]
    matching = [aspect for aspect in dataset.aspects if aspect and aspect.casefold() == given.strip().casefold()]
    if not matching:
        known = ", ".join(aspect for aspect in dataset.aspects if aspect) or "none: leave --aspect out"
        raise UserError(f"--aspect: {dataset.name} has no aspect {given!r} ({known})")
    return matching[0]
