"""BERTScore: token embeddings of both texts, matched greedily by cosine; precision, recall and F1 per row.

Definition: Zhang, Kishore, Wu, Weinberger, Artzi, "BERTScore: evaluating text generation with BERT", ICLR 2020, as
computed by the bert-score package 0.3.13 without idf weights.  Its encoder call is used; loading and tokenising are done
here, because under transformers 5, or with a checkpoint given as a path, the package

- raises on an empty text,
- ignores ``add_prefix_space`` (RoBERTa and GPT-2 then lose a space in front of the text and the values drift),
- feeds texts longer than the model's positions where the tokenizer names no limit,
- takes any path that contains "t5" for a T5 model,
- leaves ``rescale_with_baseline`` undone where it finds no baseline.

Its matching (``greedy_cos_idf``) is written out here for one pair without padding: the package gives padding a
similarity of 0, so that in a batch a token whose best match is negative scores by the length of its neighbours.

``tools/make_bertscore_fixtures.py`` makes the values of the package itself under transformers 4 that the tests
compare with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from imhi.batching import padded, plan_token_batches, run_split
from imhi.checkpoints import (
    EMBEDDED,
    fingerprint,
    first_line,
    load_errors,
    load_model,
    load_tokenizer,
    locate,
    read_config,
    refuse_missing,
    weight_files,
)
from imhi.cpu import keep_freed_memory, pack_linears
from imhi.data import read_table
from imhi.devices import pick_dtype
from imhi.errors import UserError
from imhi.metrics.base import Metric, Signature, Statistics, digest_of
from imhi.talk import say

if TYPE_CHECKING:
    import torch

__all__ = ["BertScore"]

FLAG = "--bert_model"

# The layer whose embeddings are matched, where bert_score.utils.model2layers cannot know it.  MiniLM-L6 has six
# layers: the package's own tuning on WMT16 chose 5 for every six-layer English encoder of that size but one (the four
# google/bert_uncased_L-6_H-*, distilroberta-base, distilbert-base-uncased), one below the last.
EMBEDDED_LAYERS = {"embedded:minilm": 5}

# model2layers and the packaged baselines know hub models by the names they had before hub ids had owners.
HUB_OWNERS = {
    "bert-": "google-bert",
    "roberta-": "FacebookAI",
    "xlm-": "FacebookAI",
    "distil": "distilbert",
    "albert-": "albert",
    "xlnet-": "xlnet",
    "t5-": "google-t5",
}

# Architectures whose position ids start after the pad id, so that fewer positions are left for tokens.
POSITIONS_AFTER_PAD = frozenset(
    [
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)

# What bert-score tokenises with a space in front (isinstance RobertaTokenizer or GPT2Tokenizer under transformers 4).
PREFIX_SPACE_CLASSES = frozenset(["RobertaTokenizer", "RobertaTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast"])
PREFIX_SPACE_TYPES = frozenset(["roberta", "roberta-prelayernorm", "data2vec-text", "ibert", "gpt2", "gpt_neo"])
# transformers 5 saves the tokenizers of these as RobertaTokenizer; under transformers 4 they were none.
NO_PREFIX_SPACE_TYPES = frozenset(["bart", "led", "longformer"])

# How configs call the number of encoder layers; an encoder-decoder's own name for it comes first.
LAYER_COUNTS = ("encoder_layers", "num_layers", "num_hidden_layers", "n_layers", "n_layer")

# Padded tokens in a batch: on a CPU enough to fill its caches, on a GPU enough to keep it busy.
CPU_TOKENS, GPU_TOKENS = 2048, 65536

# Tokens whose embeddings are held at once: 0.2 GB of MiniLM's, 0.5 GB of roberta-large's.
HELD_TOKENS = 1 << 17

# Texts tokenised in one call: the tokenizer's own record of each is many times its ids.
TEXTS_A_CALL = 2048


@dataclass(frozen=True)
class Embedded:
    """A text's tokens as they are matched.

    Attributes
    ----------
    states : embeddings of length 1, shape (tokens, width), float32.
    shares : what each token counts for in the average, shape (tokens,); they add up to 1.
    """

    states: torch.Tensor
    shares: torch.Tensor


class BertScore(Metric):
    """Mean BERTScore; F1 is the published value.  Higher is better; 1 is identity, unscaled values lie near 0.8-0.9.

    A row with an empty answer or gold (nothing but white space, or no token but the special ones) scores
    P = R = F = 0 before rescaling, as in bert-score.

    Parameters
    ----------
    model : folder, hub id or ``embedded:minilm``.
    num_layers : layer whose embeddings are matched; None: known for ``embedded:minilm`` and for the models that
        bert-score was tuned on.
    rescale_with_baseline : map values so that unrelated texts score about 0: (x - b) / (1 - b).
    baseline : a baseline file (``LAYER,P,R,F``); None: the one that bert-score carries for the model.
    batch_size : texts encoded at a time at most; None: no limit but padded tokens, as suits the device.
    device, dtype : where and in what the encoder runs; matching is in float32.

    Raises
    ------
    UserError
        No such model, not an encoder, a layer it does not have, an unknown layer or baseline.
    """

    name = "bert_score"
    lowest = None
    highest = 1.0
    empty_rule: ClassVar[str] = "precision, recall and F1 0, before rescaling"

    def __init__(
        self,
        model: str = "embedded:minilm",
        *,
        num_layers: int | None = None,
        rescale_with_baseline: bool = False,
        baseline: str | Path | None = None,
        batch_size: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        known_as = _known_name(model)
        self.folder = locate(_hub_id(model), flag=FLAG)
        self.config = read_config(self.folder, flag=FLAG)
        if not weight_files(self.folder):
            raise UserError(f"{FLAG}: {self.folder} has no weights (no *.safetensors or *.bin file)")
        self.num_layers = _checked_layers(model, known_as, num_layers, self.config)
        if baseline is not None and not rescale_with_baseline:
            raise UserError("--bert_baseline has no effect without --rescale_with_baseline")
        self._baseline: tuple[float, float, float] | None = None
        self._baseline_name = "none"
        if rescale_with_baseline:
            file = Path(baseline).expanduser() if baseline is not None else _packaged_baseline(model, known_as)
            self._baseline = _read_baseline(file, self.num_layers)
            self._baseline_name = f"{file.stem}#{digest_of(self._baseline)[7:15]}"
        self.model_name = known_as or (Path(model).resolve().name if Path(model).expanduser().exists() else model)
        self.batch_size = batch_size
        self.device = device
        self.dtype = str(pick_dtype(dtype, device)).removeprefix("torch.")
        self.prefix_space = _wants_prefix_space(self.folder, self.config)
        if model in EMBEDDED:
            self.note = (
                f"bert_score: {model}, layer {self.num_layers}, is not a published encoder; compare only values of the same "
                "signature, or give --bert_model roberta-large"
            )

    @cached_property
    def _digest(self) -> str:
        return digest_of(fingerprint(self.folder))[7:19]

    @property
    def signature(self) -> Signature:
        return Signature.of(
            self.name,
            {
                "model": self.model_name,
                "weights": self._digest,
                "layer": self.num_layers,
                "idf": "no",
                "rescaled": self._baseline_name,
                "prefix_space": "yes" if self.prefix_space else "no",
                "dtype": self.dtype,
            },
            ["bert-score", "torch", "transformers"],
        )

    @property
    def run_facts(self) -> dict[str, object]:
        return {"device": self.device, "batch_size": self.batch_size}

    @property
    def statistics_columns(self) -> tuple[str, ...]:
        return ("bert_f1", "bert_precision", "bert_recall")

    def row_values(self, statistics: Statistics) -> dict[str, list[float]]:
        """F1, precision and recall per row, rescaled where asked for; the statistics stay as measured."""
        if self._baseline is None:
            return super().row_values(statistics)
        precision, recall, f1 = self._baseline
        scaled = [
            tuple((value - base) / (1 - base) for value, base in zip(row, (f1, precision, recall), strict=True))
            for row in statistics
        ]
        return super().row_values(scaled)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder, flag=FLAG)

    @cached_property
    def _max_tokens(self) -> int | None:
        """Special tokens included: the tokenizer's limit or the model's positions, whichever is less."""
        limit = self._tokenizer.model_max_length
        positions = self.config.get("max_position_embeddings")
        if isinstance(positions, int) and positions > 0:
            if self.config.get("model_type") in POSITIONS_AFTER_PAD:
                positions -= int(self.config.get("pad_token_id", 1)) + 1
            limit = min(limit, positions)
        # A tokenizer without a limit of its own says 10^30.
        return int(limit) if limit < 10**9 else None

    @cached_property
    def _encoder(self) -> Any:
        return _load_encoder(self.folder, self.num_layers, self.device, self.dtype)

    @cached_property
    def _unweighted(self) -> frozenset[int]:
        """Token ids that do not count in the average: the start and the separator."""
        return frozenset({self._tokenizer.sep_token_id, self._tokenizer.cls_token_id} - {None})

    def _tokenise(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """Text → token ids with special tokens; [] where no token of its own is left."""
        tokens: dict[str, list[int]] = {text: [] for text in texts}
        filled = [text for text in tokens if text.strip()]
        for start in range(0, len(filled), TEXTS_A_CALL):
            part = filled[start : start + TEXTS_A_CALL]
            encoded = self._tokenizer(
                [f" {text.strip()}" if self.prefix_space else text.strip() for text in part],
                truncation=self._max_tokens is not None,
                max_length=self._max_tokens,
                return_attention_mask=False,
                return_token_type_ids=False,
            )["input_ids"]
            tokens.update((text, ids) for text, ids in zip(part, encoded, strict=True) if set(ids) - self._unweighted)
        return tokens

    def _statistics(self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], object]) -> Statistics:
        # Loaded before the first batch: a model that does not fit is no reason to split batches.
        _ = self._encoder
        tokens = self._tokenise([text for pair in pairs for text in pair])
        rows: Statistics = [(0.0, 0.0, 0.0)] * len(pairs)
        order = _longest_first(pairs, tokens)
        advance(len(pairs) - len(order))
        # Text → pairs that wait for it.
        waiting: dict[str, set[int]] = {}
        for at in order:
            for text in pairs[at]:
                waiting.setdefault(text, set()).add(at)
        held: dict[str, Embedded] = {}
        while waiting:
            for batch in self._embed(_next_texts(pairs, tokens, order, waiting, held)):
                held.update(batch)
                ready = sorted({at for text in batch for at in waiting[text] if held.keys() >= set(pairs[at])})
                found = _match([(held[generated], held[gold]) for generated, gold in (pairs[at] for at in ready)])
                for at, row in zip(ready, found, strict=True):
                    rows[at] = row
                    for text in set(pairs[at]):
                        waiting[text].remove(at)
                        if not waiting[text]:
                            del waiting[text], held[text]
                advance(len(ready))
            held = _kept(tokens, waiting, held)
        return rows

    def _embed(self, tokens: dict[str, list[int]]) -> Iterator[dict[str, Embedded]]:
        """Text → its embedded tokens, a batch at a time, longest first."""
        import torch
        from bert_score.utils import bert_encode

        texts = list(tokens)
        pad = self._tokenizer.pad_token_id or 0
        unweighted = torch.tensor(sorted(self._unweighted), dtype=torch.long)

        def work(part: Sequence[int]) -> list[Embedded]:
            ids, mask = padded([tokens[texts[at]] for at in part], pad)
            weights = torch.isin(ids, unweighted, invert=True).float().to(self.device)
            with torch.inference_mode():
                states = bert_encode(self._encoder, ids.to(self.device), attention_mask=mask.to(self.device))
                lengths = [len(tokens[texts[at]]) for at in part]
                return [
                    _normalised(state[:length].float(), weight[:length])
                    for state, weight, length in zip(states, weights, lengths, strict=True)
                ]

        def on_split(size: int) -> None:
            say(f"bert_score: {size} texts did not fit in memory; going on with {(size + 1) // 2}")

        budget = CPU_TOKENS if self.device == "cpu" else GPU_TOKENS
        for batch in plan_token_batches([len(tokens[text]) for text in texts], budget, self.batch_size):
            for part, found in run_split(batch, work, on_split=on_split):
                yield {texts[at]: embedded for at, embedded in zip(part, found, strict=True)}


def _longest_first(pairs: Sequence[tuple[str, str]], tokens: Mapping[str, list[int]]) -> list[int]:
    """Pairs without an empty text, by their longer text; pairs that share it stand together."""
    number = {text: at for at, text in enumerate(tokens)}
    keys = {}
    for at, pair in enumerate(pairs):
        if all(tokens[text] for text in pair):
            longer = max(pair, key=lambda text: len(tokens[text]))
            keys[at] = (-len(tokens[longer]), number[longer])
    return sorted(keys, key=keys.__getitem__)


def _next_texts(
    pairs: Sequence[tuple[str, str]],
    tokens: Mapping[str, list[int]],
    order: Sequence[int],
    waiting: Mapping[str, set[int]],
    held: Mapping[str, Embedded],
) -> dict[str, list[int]]:
    """Tokens of the texts that the next waiting pairs lack: one pair's at least, else what may be held at once."""
    room = HELD_TOKENS - sum(len(tokens[text]) for text in held)
    wanted: dict[str, list[int]] = {}
    for at in order:
        generated, gold = pairs[at]
        if at not in waiting.get(gold, ()):
            continue
        lacking = {text: tokens[text] for text in (generated, gold) if text not in held and text not in wanted}
        room -= sum(map(len, lacking.values()))
        if wanted and room < 0:
            break
        wanted.update(lacking)
    return wanted


def _kept(
    tokens: Mapping[str, list[int]], waiting: Mapping[str, set[int]], held: Mapping[str, Embedded]
) -> dict[str, Embedded]:
    """What stays embedded for later pairs: at most half of what may be held, the texts of most pairs first."""
    room = HELD_TOKENS // 2
    kept = {}
    for text in sorted(held, key=lambda text: -len(waiting[text])):
        if len(tokens[text]) <= room:
            room -= len(tokens[text])
            kept[text] = held[text]
    return kept


def _normalised(states: torch.Tensor, weights: torch.Tensor) -> Embedded:
    return Embedded(states / states.norm(dim=-1, keepdim=True), weights / weights.sum())


def _match(pairs: Sequence[tuple[Embedded, Embedded]]) -> list[tuple[float, ...]]:
    """F1, precision and recall of each (generated, gold): every token by its best cosine in the other text."""
    import torch

    if not pairs:
        return []
    precisions, recalls = [], []
    with torch.inference_mode():
        for generated, gold in pairs:
            similarity = generated.states @ gold.states.T
            precisions.append((similarity.amax(dim=1) * generated.shares).sum())
            recalls.append((similarity.amax(dim=0) * gold.shares).sum())
        precision, recall = torch.stack(precisions).cpu(), torch.stack(recalls).cpu()
        f1 = 2 * precision * recall / (precision + recall)
        # bert-score takes a text of two tokens, whatever they are, for an empty one, but not in F1.
        empty = torch.tensor([2 in (len(generated.shares), len(gold.shares)) for generated, gold in pairs])
        precision, recall = precision.masked_fill(empty, 0.0), recall.masked_fill(empty, 0.0)
        f1 = f1.masked_fill(f1.isnan(), 0.0)
        return list(zip(f1.tolist(), precision.tolist(), recall.tolist(), strict=True))


def _layers_table() -> dict[str, int]:
    from bert_score.utils import model2layers

    return model2layers


def _hub_id(model: str) -> str:
    """The hub id of a model that bert-score knows by its old name without an owner; anything else as it is."""
    if "/" in model or model.startswith("embedded:") or Path(model).exists() or model not in _layers_table():
        return model
    if "openai-detector" in model:
        return f"openai-community/{model}"
    owner = next((owner for start, owner in HUB_OWNERS.items() if model.startswith(start)), None)
    return f"{owner}/{model}" if owner else model


def _known_name(model: str) -> str | None:
    """The name under which bert-score knows a hub model, None for a path and for a model it does not know."""
    if model.startswith("embedded:") or Path(model).expanduser().exists():
        return None
    table = _layers_table()
    if model in table:
        return model
    owner, _, bare = model.rpartition("/")
    return bare if bare in table and "/" not in bare and _hub_id(bare) == f"{owner}/{bare}" else None


def _checked_layers(model: str, known_as: str | None, given: int | None, config: dict[str, Any]) -> int:
    layers = given
    if layers is None:
        layers = EMBEDDED_LAYERS.get(model) if known_as is None else _layers_table()[known_as]
    if layers is None:
        raise UserError(
            f"{FLAG}: which layer of {model} to match is not known; give it with --num_layers "
            "(bert-score's tuned values: 9 for bert-base, 10 for roberta-base, 17 for roberta-large)"
        )
    present = next((config[name] for name in LAYER_COUNTS if isinstance(config.get(name), int)), None)
    if layers < 1 or (present is not None and layers > present):
        raise UserError(f"--num_layers {layers}: {model} has layers 1 to {present}")
    return layers


def _packaged_baseline(model: str, known_as: str | None) -> Path:
    from importlib.resources import files

    if known_as is not None:
        file = Path(str(files("bert_score"))) / "rescale_baseline" / "en" / f"{known_as}.tsv"
        if file.exists():
            return file
    raise UserError(
        f"--rescale_with_baseline: bert-score carries no baseline for {model}; give a file (LAYER,P,R,F) with "
        "--bert_baseline, or leave --rescale_with_baseline out"
    )


def _read_baseline(file: Path, layer: int) -> tuple[float, float, float]:
    """Precision, recall and F1 baseline of a layer."""
    table = read_table(file)
    if tuple(table.columns) != ("LAYER", "P", "R", "F"):
        raise UserError(f"--bert_baseline: {file} has columns {','.join(table.columns)}; expected LAYER,P,R,F")
    for number, record in enumerate(table.records):
        if record[0].strip() == str(layer):
            try:
                precision, recall, f1 = (float(cell) for cell in record[1:])
            except ValueError as error:
                raise UserError(f"--bert_baseline: {file}, row {number + 1}: not a number ({error})") from None
            if max(precision, recall, f1) >= 1:
                raise UserError(f"--bert_baseline: {file}, row {number + 1}: a baseline must be below 1")
            return precision, recall, f1
    raise UserError(f"--bert_baseline: {file} has no row for layer {layer}")


def _wants_prefix_space(folder: Path, config: dict[str, Any]) -> bool:
    model_type = config.get("model_type")
    if model_type in NO_PREFIX_SPACE_TYPES:
        return False
    described = folder / "tokenizer_config.json"
    named = None
    if described.exists():
        try:
            named = json.loads(described.read_text(encoding="utf-8")).get("tokenizer_class")
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{FLAG}: {described} is not JSON ({error})") from None
    named = named or config.get("tokenizer_class")
    return named in PREFIX_SPACE_CLASSES if named else model_type in PREFIX_SPACE_TYPES


def _load_encoder(folder: Path, num_layers: int, device: str, dtype: str) -> Any:
    """The encoder cut off above `num_layers`, chosen by the config's ``model_type``, never by the path."""
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except load_errors() as error:
        raise UserError(f"{FLAG}: the config of {folder} does not load ({first_line(error)})") from error
    # The layers above are then neither built nor loaded.
    for name in LAYER_COUNTS:
        if hasattr(config, name):
            setattr(config, name, num_layers)
    loader = AutoModelForTextEncoding if config.model_type in {"t5", "mt5", "umt5"} else AutoModel
    model, info = load_model(loader, folder, flag=FLAG, dtype=pick_dtype(dtype, device), config=config)
    # The pooler is not part of the token embeddings that are matched.
    refuse_missing((name for name in info["missing_keys"] if "pooler" not in name), folder, flag=FLAG)
    if getattr(config, "is_encoder_decoder", False) and hasattr(model, "encoder") and hasattr(model, "decoder"):
        model = model.encoder
    built = _layers_built(model)
    if built not in (None, num_layers):
        raise UserError(
            f"{FLAG}: a {config.model_type!r} encoder cannot be cut off at layer {num_layers}; it has {built}"
        )
    model = model.to(device).eval()
    if device == "cpu":
        keep_freed_memory()
        pack_linears(model)
    return model


def _layers_built(model: Any) -> int | None:
    """Number of layers of a loaded encoder; None where they are shared (ALBERT) or kept elsewhere."""
    for path in (
        "encoder.layer",
        "encoder.block",
        "encoder.layers",
        "transformer.layer",
        "layers",
        "layer",
        "block",
        "h",
    ):
        found = model
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None and hasattr(found, "__len__"):
            return len(found)
    return None
