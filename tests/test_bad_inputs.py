"""What users get wrong, as one table: each mistake is one line with a remedy, a status, and nothing lost.

``{name}`` and ``{group[name]}`` in the arguments and in the expected text are made on demand by `Things`.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tiny
from tiny_classifiers import save_adapter, save_bert_base, save_bert_classifier

from imhi.benchmark import DATASETS, gold_answer
from imhi.cli import main
from imhi.commands import run_script
from imhi.data import samples_root

SAD = DATASETS["SAD"]
GOLD = gold_answer(SAD.labels[0], "instruction", "made up")
HEADER = "query,gpt-3.5-turbo\n"
ANSWERS_HEADER = "goldens,generated_text\n"
ANSWERS = f'{ANSWERS_HEADER}"{GOLD}",school\n'
CLASSIFIER = "label_inference.py --data_output_path {out}"

# What every command line of a script begins with; a flag given again replaces it.
SCRIPTS = {
    "IMHI.py": "--model_path {llama} --model_output_path {out} --datasets SAD --limit 1 --max_new_tokens 2",
    "label_inference.py": "--data_path {answers[good]}",
    "score.py": "--gen_dir_name {answers[good]} --score_method bleu",
}
COMMANDS = {"IMHI.py": "generate", "label_inference.py": "label", "score.py": "score"}


def changed_json(name: str, **changes: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def replaced(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def link_to_nothing(name: str) -> Callable[[Path], object]:
    def relink(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(folder / "gone")

    return relink


def shortened(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:9000])


Damages = Mapping[str, Callable[[Path], object]]

# Damage done to a copy of the tiny LLaMA.
MODELS: Damages = {
    "no-tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "no-weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no-config": lambda folder: (folder / "config.json").unlink(),
    "random-weights": replaced("model.safetensors", b"\x00" * 100),
    "cut-weights": shortened("model.safetensors"),
    "dangling-weights": link_to_nothing("model.safetensors"),
    "broken-config": replaced("config.json", "{"),
    "list-config": replaced("config.json", "[]"),
    "word-config": changed_json("config.json", hidden_size="wide"),
    "other-config": changed_json("config.json", hidden_size=64),
    "broken-tokenizer": replaced("tokenizer.json", '{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}'),
    "unknown-type": changed_json("config.json", model_type="unheard_of"),
}

# Adapter folders: file → content.
ADAPTERS = {
    "no-base": {"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": ""},
    "hub-base": {
        "adapter_config.json": '{"peft_type": "LORA", "base_model_name_or_path": "nobody/base"}',
        "adapter_model.safetensors": "",
    },
    "no-weights": {"adapter_config.json": "{}"},
    "list-config": {"adapter_config.json": "[]", "adapter_model.safetensors": ""},
    "corrupt": {
        "adapter_config.json": '{"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}',
        "adapter_model.safetensors": "no tensors",
    },
}

# Data roots: the content of SAD.csv of the test files.
ROOTS: dict[str, str | bytes] = {
    "no-gold-column": "query,answer\na,b\n",
    "empty": "",
    "header-only": HEADER,
    "latin-1": f'{HEADER}"a","{GOLD}"\n"caf'.encode() + b'\xe9","x"\n',
    "ragged": f'{HEADER}"a","{GOLD}"\n"b, c",d,e\n',
    "open-quote": f'{HEADER}"a","{GOLD}"\nb,"{GOLD}\n',
    "odd-gold": f'{HEADER}"a","{GOLD}"\n"b","Purple rain."\n',
}

# Damage done to a copy of a finished run.
RUNS: Damages = {
    "whole": lambda folder: None,
    "bad-journal": replaced("responses.jsonl", "not json\n"),
    "bad-manifest": replaced("manifest.json", "{"),
    "list-manifest": replaced("manifest.json", "[]"),
    "no-manifest": lambda folder: (folder / "manifest.json").unlink(),
}


def adapter(folder: Path, dataset: str) -> Path:
    return save_adapter(folder / "SAD", dataset, save_bert_base(folder / "base"))


# What a folder of classifiers holds.
CLASSIFIERS: Damages = {
    "whole": lambda folder: save_bert_classifier(folder / "SAD", "SAD"),
    "of-DR": lambda folder: save_bert_classifier(folder / "DR", "DR"),
    "of-two": lambda folder: save_bert_classifier(folder / "SAD", "DR"),
    "generator": lambda folder: tiny.save_llama(folder / "SAD"),
    "no-weights": lambda folder: (save_bert_classifier(folder / "SAD", "SAD") / "model.safetensors").unlink(),
    "damaged": lambda folder: shortened("model.safetensors")(save_bert_classifier(folder / "SAD", "SAD")),
    "damaged-adapter": lambda folder: shortened("adapter_model.safetensors")(adapter(folder, "SAD")),
    "other-base": lambda folder: changed_json("labeler.json", base_files={"config.json": "x"})(adapter(folder, "SAD")),
    "adapter-of-DR": lambda folder: adapter(folder, "DR"),
}

# Folders of responses: file → content.
FOLDERS: dict[str, dict[str, str]] = {
    "good": {"SAD.csv": ANSWERS},
    "empty": {},
    "strays": {"notes.csv": ANSWERS},
    "no-goldens": {"SAD.csv": "generated_text\nschool\n"},
    "odd-gold": {"SAD.csv": f'{ANSWERS}"Purple rain.",school\n'},
    "empty-gold": {"SAD.csv": f'{ANSWERS},"school"\n'},
    "two": {"SAD.csv": ANSWERS, "sad.CSV": ANSWERS},
    "odd-label": {"SAD.csv": f'goldens,generated_text,labels\n"{GOLD}",x,purple\n'},
    "classifier-figures": {"SAD.csv": ANSWERS, "correctness.json": '{"labeler": "labels column", "datasets": {}}'},
    "broken-figures": {"SAD.csv": ANSWERS, "correctness.json": "{"},
    "blocked": {"SAD.csv": ANSWERS, "correctness.json/mine": "x"},
    "broken-scores": {"SAD.csv": ANSWERS, "scores.json": "{"},
}


class Things(dict):
    """The folders and files of one test under its own folder, each made when it is first asked for."""

    def __init__(self, request: pytest.FixtureRequest):
        self.request = request
        self.folder: Path = request.getfixturevalue("tmp_path")
        super().__init__(out=self.folder / "out", nowhere=self.folder / "nowhere", samples=samples_root())
        for name, make in {
            "model": lambda name: self.with_damage("model", name, MODELS, self["llama"]),
            "adapter": lambda name: self.written("adapter", name, ADAPTERS[name]),
            "root": lambda name: self.written("root", name, {"test_data/test_instruction/SAD.csv": ROOTS[name]}),
            "run": lambda name: self.with_damage("run", name, RUNS, self.request.getfixturevalue("finished_run")),
            "answers": lambda name: self.written("answers", name, FOLDERS[name]),
            "classifiers": lambda name: self.with_damage("classifiers", name, CLASSIFIERS),
        }.items():
            self[name] = Group(make)

    def __missing__(self, name: str) -> Path:
        """A pytest fixture, or one of the plain files."""
        if name in ("llama", "bart"):
            self[name] = self.request.getfixturevalue(f"tiny_{name}")
        elif name == "real":
            self[name] = self.request.getfixturevalue("real_data")
        elif name == "classifier":
            self[name] = tiny.save_classifier(self.folder / "classifier")
        else:
            self[name] = self.folder / {"file": "file.txt", "gguf": "model.gguf"}[name]
            self[name].write_text("mine")
        return self[name]

    def written(self, kind: str, name: str, files: Mapping[str, str | bytes]) -> Path:
        folder = self.folder / kind / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            replaced(file, content)(folder)
        return folder

    def with_damage(self, kind: str, name: str, damages: Damages, original: Path | None = None) -> Path:
        folder = self.folder / kind / name
        if original is not None:
            shutil.copytree(original, folder)
        damages[name](folder)
        return folder


class Group:
    """``{group[name]}`` in a format string."""

    def __init__(self, make: Callable[[str], Path]):
        self.make = make
        self.made: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self.made:
            self.made[name] = self.make(name)
        return self.made[name]


@dataclass(frozen=True)
class Mistake:
    """A command line, what its one line must say, its status; `prints`: there are results on stdout before it."""

    line: str
    says: tuple[str, ...]
    status: int = 2
    env: dict[str, str] = field(default_factory=dict)
    prints: bool = False


def mistake(line: str, *says: str, status: int = 2, env: dict[str, str] | None = None, prints: bool = False) -> Mistake:
    return Mistake(line, says, status, env or {}, prints)


AGAIN = "copy or download"
SAD_TEST = "test_data/test_instruction/SAD.csv"

MISTAKES = {
    # --- which model
    "no such model": mistake("IMHI.py --model_path {nowhere}", "--model_path: no file or folder {nowhere}"),
    "empty model path": mistake("IMHI.py --model_path ''", "--model_path is empty", "give a folder"),
    "home of nobody": mistake("IMHI.py --model_path ~nobody-at-all/model", "~nobody-at-all/model cannot be looked up"),
    "model is a file": mistake("IMHI.py --model_path {file}", "{file} is a .txt file", "expected a checkpoint folder"),
    "unknown embedded": mistake("IMHI.py --model_path embedded:gpt", "no embedded model", "embedded:smollm2"),
    "classifier": mistake("IMHI.py --model_path {classifier}", "{classifier} holds BertForSequ", "generates text"),
    "adapter as model": mistake("IMHI.py --model_path {adapter[no-base]}", "is a LoRA adapter", "--lora_path"),
    "hub id, offline": mistake(
        "IMHI.py --model_path nobody/nothing", "'nobody/nothing' is no local folder", "give its folder"
    ),
    "no hub id": mistake("IMHI.py --model_path 'no body/no%thing'", "neither a path that exists nor a hub id"),
    "not LLaMA": mistake("IMHI.py --model_path {bart} --llama", "'bart' checkpoint", "leave --llama out"),
    # --- what is wrong with the model
    "no tokenizer": mistake(
        "IMHI.py --model_path {model[no-tokenizer]}", "{model[no-tokenizer]} has no tokenizer", "copy the"
    ),
    "no weights": mistake("IMHI.py --model_path {model[no-weights]}", "{model[no-weights]} has no weights", AGAIN),
    "no config": mistake("IMHI.py --model_path {model[no-config]}", "has no config.json (found "),
    "random weights": mistake(
        "IMHI.py --model_path {model[random-weights]}", "{model[random-weights]} does not load", AGAIN
    ),
    "cut weights": mistake("IMHI.py --model_path {model[cut-weights]}", "{model[cut-weights]} does not load", AGAIN),
    "dangling weights": mistake(
        "IMHI.py --model_path {model[dangling-weights]}", "model.safetensors: a link to a file that is not there", AGAIN
    ),
    "config is not JSON": mistake("IMHI.py --model_path {model[broken-config]}", "config.json is not JSON", AGAIN),
    "config is a list": mistake("IMHI.py --model_path {model[list-config]}", "config.json is not a JSON object", AGAIN),
    "config with a word": mistake("IMHI.py --model_path {model[word-config]}", "does not load", "hidden_size", AGAIN),
    "config of another": mistake(
        "IMHI.py --model_path {model[other-config]}", "(600, 32) where (600, 64) is expected", "do not belong together"
    ),
    "damaged tokenizer": mistake(
        "IMHI.py --model_path {model[broken-tokenizer]}", "tokenizer in {model[broken-tokenizer]} does not load", AGAIN
    ),
    "unknown type": mistake("IMHI.py --model_path {model[unknown-type]}", "'unheard_of' checkpoint"),
    "damaged GGUF": mistake(
        "IMHI.py --model_path {gguf}", "{gguf} does not load as GGUF", AGAIN, env={"IMHI_CACHE": "{out}"}
    ),
    "cache is a file": mistake("IMHI.py --model_path {gguf}", "set IMHI_CACHE to", env={"IMHI_CACHE": "{file}"}),
    "failure with --overwrite": mistake(
        "IMHI.py --model_path {model[random-weights]} --model_output_path {run[whole]} --overwrite", "does not load"
    ),
    # --- which adapter
    "--lora alone": mistake("IMHI.py --lora", "--lora needs --lora_path"),
    "no such adapter": mistake("IMHI.py --lora --lora_path {nowhere}", "--lora_path: no file or folder {nowhere}"),
    "model as adapter": mistake(
        "IMHI.py --lora --lora_path {llama}", "--lora_path: {llama} holds a model checkpoint", "adapter_config.json"
    ),
    "folder as adapter": mistake("IMHI.py --lora --lora_path {answers[empty]}", "no adapter_config.json; expected"),
    "adapter without weights": mistake("IMHI.py --lora --lora_path {adapter[no-weights]}", "no adapter_model"),
    "adapter config is a list": mistake(
        "IMHI.py --lora --lora_path {adapter[list-config]}", "adapter_config.json is not a JSON object"
    ),
    "adapter that is damaged": mistake(
        "IMHI.py --lora --lora_path {adapter[corrupt]}", "--lora_path: {adapter[corrupt]} does not fit", "--model_path"
    ),
    # --- which data
    "unknown dataset": mistake("IMHI.py --datasets lonelines", "no dataset 'lonelines'; did you mean loneliness?"),
    "empty dataset": mistake("IMHI.py --datasets ''", "--datasets is empty; the ten are DR, "),
    "dataset not there": mistake(
        "IMHI.py --data_root {root[header-only]} --datasets DR", "test_instruction: no file for DR; present: SAD"
    ),
    "CLP was never released": mistake(
        "IMHI.py --data_root {real} --datasets CLP", "no file for CLP (CLP was never released); present: DR, "
    ),
    "no such data root": mistake("IMHI.py --data_root {nowhere}", "--data_root: no folder {nowhere}", "data fetch"),
    "empty data root": mistake("IMHI.py --data_root ''", "--data_root is empty"),
    "data root is a file": mistake("IMHI.py --data_root {file}", "--data_root: no folder {file}"),
    "data root without data": mistake(
        "IMHI.py --data_root {answers[good]}", "has none of test_data/", "give the folder that contains them"
    ),
    "suite not there": mistake(
        "IMHI.py --data_root {root[empty]} --test_dataset IMHI-completion", "test_complete: no such folder"
    ),
    "IMHI_DATA to nowhere": mistake("IMHI.py", "$IMHI_DATA: no folder {nowhere}", env={"IMHI_DATA": "{nowhere}"}),
    # --- what is wrong with the data
    "missing column": mistake(
        "IMHI.py --data_root {root[no-gold-column]}",
        "{root[no-gold-column]}/" + SAD_TEST + ": columns query, answer; expected query,gpt-3.5-turbo",
    ),
    "empty file": mistake("IMHI.py --data_root {root[empty]}", SAD_TEST + ": the file is empty"),
    "header only": mistake("IMHI.py --data_root {root[header-only]}", SAD_TEST + ": a header but no rows"),
    "wrong encoding": mistake(
        "IMHI.py --data_root {root[latin-1]}", SAD_TEST + ", line 3: not UTF-8 (byte 0xe9); convert the file"
    ),
    "ragged row": mistake(
        "IMHI.py --data_root {root[ragged]}", SAD_TEST + ", row 2: 3 fields where the header has 2", "not escaped"
    ),
    "open quote": mistake(
        "IMHI.py --data_root {root[open-quote]}", SAD_TEST + ", row 2: not valid CSV", "is a quote left open?"
    ),
    "gold without a label": mistake(
        "IMHI.py --data_root {root[odd-gold]} --limit 2", SAD_TEST + ", row 2: ", "'Purple rain.'", "mend the row"
    ),
    # --- where to
    "output is a file": mistake("IMHI.py --model_output_path {file}", "{file}: is a file; a run needs a folder"),
    "output in a file": mistake("IMHI.py --model_output_path {file}/run", "{file}/run cannot be written", "choose"),
    "output is empty": mistake(
        "IMHI.py --model_output_path ''", "--model_output_path is empty; give the name of a run"
    ),
    "another configuration": mistake(
        "IMHI.py --model_output_path {run[whole]} --max_new_tokens 3",
        "{run[whole]} holds a run with another configuration: decoding.max_new_tokens: 2 there, 3 here",
        "--overwrite",
    ),
    "somebody's responses": mistake(
        "IMHI.py --model_output_path {answers[good]}",
        "{answers[good]}: has SAD.csv but no manifest.json of a run; choose another folder",
    ),
    "damaged journal": mistake(
        "IMHI.py --model_output_path {run[bad-journal]}", "responses.jsonl, line 1: not a response record", "remove"
    ),
    "damaged manifest": mistake("IMHI.py --model_output_path {run[bad-manifest]}", "manifest.json: not readable"),
    "manifest is a list": mistake("IMHI.py --model_output_path {run[list-manifest]}", "not the manifest of a run"),
    "no manifest": mistake("IMHI.py --model_output_path {run[no-manifest]}", "but no manifest.json", "--overwrite"),
    # --- how
    "seed": mistake("IMHI.py --seed 3", "--seed has no effect on greedy decoding; add --do_sample"),
    "two devices": mistake("IMHI.py --cuda --device cpu", "--cuda and --device cpu name two devices"),
    "temperature": mistake("IMHI.py --temperature 0.5", "--temperature has no effect", "add --do_sample"),
    "temperature 0": mistake("IMHI.py --do_sample --temperature 0", "--temperature must be above 0"),
    "top_p": mistake("IMHI.py --do_sample --top_p 1.5", "--top_p must be above 0 and at most 1"),
    "top_k": mistake("IMHI.py --do_sample --top_k -1", "--top_k must be 0 (off) or more"),
    "max_errors": mistake("IMHI.py --max_errors -1", "--max_errors must be 0"),
    "no chat template": mistake("IMHI.py --chat_template", "no chat template; leave the flag out"),
    "no GPU": mistake("IMHI.py --cuda", "no CUDA GPU is visible", "leave --cuda out"),
    "no such device": mistake("IMHI.py --device toaster", "--device: 'toaster' is not cpu, cuda, cuda:N or mps"),
    "no room for answers": mistake(
        "IMHI.py --max_length 4", "1 of 1 rows failed", "SAD/0", "leave no room for an answer (max_length 4", status=1
    ),
    "no room for an answer": mistake(
        "IMHI.py --max_length 4", "1 of 1 rows failed", "leave no room for an answer", status=1
    ),
    # --- ask
    "empty post": mistake("imhi ask ' ' --dataset DR --model_path {llama}", "the post is empty", "standard input"),
    "post is no text": mistake("imhi ask '\udcff' --dataset DR --model_path {llama}", "the post is not UTF-8"),
    "ask, unknown dataset": mistake("imhi ask post --dataset SADD", "--dataset: no dataset 'SADD'; did you mean SAD?"),
    "ask, empty dataset": mistake("imhi ask post --dataset ''", "--dataset is empty; the ten are"),
    "ask, two datasets": mistake("imhi ask post --dataset DR,SAD", "--dataset: one question at a time, got DR, SAD"),
    "ask, no such aspect": mistake(
        "imhi ask post --dataset MultiWD --aspect money", "--aspect: MultiWD has no aspect 'money' (spiritual, "
    ),
    "ask, aspect of DR": mistake("imhi ask post --dataset DR --aspect x", "DR has no aspect 'x'", "leave --aspect out"),
    "ask, no such model": mistake("imhi ask post --dataset DR --model_path {nowhere}", "no file or folder {nowhere}"),
    "ask, no room": mistake(
        "imhi ask post --dataset DR --model_path {llama} --max_length 4", "no answer: ", "leave no room", status=1
    ),
    # --- label_inference
    "nothing to label": mistake("imhi label", "--data_path is missing; needed are --data_path and --data_output_path"),
    "no classifiers": mistake(CLASSIFIER + " --model_path {nowhere}", "--model_path: no file or folder {nowhere}"),
    "missing classifier": mistake(
        CLASSIFIER + " --model_path {classifiers[of-DR]}", "no classifier folder for SAD (found DR)", "give the folder"
    ),
    "classifiers are a file": mistake(CLASSIFIER + " --model_path {file}", "{file} is a file; expected a folder"),
    "generator as classifier": mistake(
        CLASSIFIER + " --model_path {classifiers[generator]}", "SAD is a LlamaForCausalLM, not a classifier"
    ),
    "classifier of another": mistake(
        CLASSIFIER + " --model_path {classifiers[of-two]}", "is (2, 32) where (9, 32) is expected"
    ),
    "classifier no weights": mistake(CLASSIFIER + " --model_path {classifiers[no-weights]}", "SAD has no weights"),
    "damaged adapter": mistake(
        CLASSIFIER + " --model_path {classifiers[damaged-adapter]}", "adapter_model.safetensors does not load", "again"
    ),
    "adapter of another base": mistake(
        CLASSIFIER + " --model_path {classifiers[other-base]}", "is not the model that", "(config.json differ)"
    ),
    "adapter of another dataset": mistake(
        CLASSIFIER + " --model_path {classifiers[adapter-of-DR]}", "is of a classifier of DR, but the data is SAD"
    ),
    "damaged classifier": mistake(CLASSIFIER + " --model_path {classifiers[damaged]}", "SAD does not load", "damaged"),
    "labels over answers": mistake(
        "label_inference.py --model_path {classifiers[whole]} --data_output_path {answers[good]}",
        "is the folder of --data_path",
    ),
    "label of no class": mistake(
        "label_inference.py --labelled --calculate --data_path {answers[odd-label]}",
        "{answers[odd-label]}/SAD.csv, row 1: 'purple' in column labels is no label of SAD",
    ),
    # --- label --rules
    "rules, no folder": mistake("imhi label --rules {nowhere}", "--rules: no such folder {nowhere}"),
    "rules, a file": mistake("imhi label --rules {file}", "--rules: {file} is a file; expected a folder"),
    "rules, empty folder": mistake("imhi label --rules {answers[empty]}", "{answers[empty]}: no file named after"),
    "rules, only strays": mistake("imhi label --rules {answers[strays]}", "{answers[strays]}: no file named after"),
    "rules, no goldens": mistake("imhi label --rules {answers[no-goldens]}", "SAD.csv: no column 'goldens' (found "),
    "rules, odd gold": mistake("imhi label --rules {answers[odd-gold]}", "SAD.csv, row 2: ", "'Purple rain.'"),
    "rules, empty gold": mistake("imhi label --rules {answers[empty-gold]}", "SAD.csv, row 2: the gold text is empty"),
    "rules, two of a kind": mistake("imhi label --rules {answers[two]}", "SAD.csv and sad.CSV both claim SAD"),
    "rules, dataset not there": mistake(
        "imhi label --rules {answers[good]} --datasets DR", "{answers[good]}: no file for DR; present: SAD"
    ),
    "rules, others' figures": mistake(
        "imhi label --rules {answers[classifier-figures]}", "correctness.json holds figures of another", "--overwrite"
    ),
    "rules, broken figures": mistake("imhi label --rules {answers[broken-figures]}", "correctness.json is not JSON"),
    "rules, cannot write": mistake(
        "imhi label --rules {answers[blocked]}", "{answers[blocked]}/correctness.json: ", status=1
    ),
    "rules and more": mistake("label_inference.py --rules {answers[empty]}", "leave --data_path out"),
    # --- score
    "no such run": mistake("score.py --gen_dir_name {nowhere}", "--gen_dir_name: no such folder {nowhere}"),
    "run is a file": mistake("score.py --gen_dir_name {file}", "{file} is a file; expected a folder"),
    "empty run": mistake("score.py --gen_dir_name ''", "--gen_dir_name is empty"),
    "nothing to score": mistake("score.py --gen_dir_name {answers[empty]}", "{answers[empty]}: no file named after"),
    "GPT3_score": mistake("score.py --score_method GPT3_score --gpt_direction 'src->hypo'", "has no source text"),
    "a flag of another metric": mistake("score.py --score_method bleu --bert_model x", "--bert_model has no effect"),
    "a direction of another metric": mistake(
        "score.py --score_method bert_score --bart_direction both", "--bart_direction has no effect"
    ),
    "no BART": mistake(
        "score.py --score_method all --bart_model {nowhere}", "--bart_model: no file or folder {nowhere}"
    ),
    "LLaMA is no BART": mistake(
        "score.py --score_method bart_score --bart_model {llama}", "'llama'", "expected a BART"
    ),
    "no BART weights": mistake(
        "score.py --score_method bart_score --bart_model {bart} --bart_weights {nowhere}", "no file {nowhere}"
    ),
    "damaged scores": mistake("score.py --gen_dir_name {answers[broken-scores]}", "scores.json: not readable as JSON"),
    # --- data
    "fetch to the samples": mistake("imhi data fetch --to {samples}", "the toolkit's own sample rows; give another"),
    "fetch to a file": mistake("imhi data fetch --to {file} --from {samples}", "--to {file}: is a file; give a folder"),
    "fetch into a file": mistake("imhi data fetch --to {file}/x --from {samples}", "{file}/x: Not a dir", status=1),
    "fetch, no archive": mistake(
        "imhi data fetch --to {out} --from {nowhere}.zip", "--from {nowhere}.zip: no such file"
    ),
    "fetch, empty source": mistake("imhi data fetch --to {out} --from ''", "--from is empty"),
    "fetch, file is no archive": mistake("imhi data fetch --to {out} --from {file}", "neither a tar nor a zip archive"),
    "fetch, no checkout": mistake("imhi data fetch --to {out} --from {answers[good]}", "give the checkout itself"),
    "fetch, odd address": mistake("imhi data fetch --to {out} --from ftp://x/y.zip", "only http:// and https://"),
    "check, no folder": mistake("imhi data check {nowhere}", "{nowhere}: no such folder", "imhi data fetch"),
    "check, no data": mistake("imhi data check {answers[good]}", "has none of test_data/", "give the folder above"),
    "check, repair samples": mistake("imhi data check --repair {samples}", "sample rows are not repaired"),
    "check, JSON to nowhere": mistake(
        "imhi data check --json {nowhere}/audit.json", "--json {nowhere}/audit.json: cannot be written", prints=True
    ),
}


@pytest.fixture(scope="module")
def finished_run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = SCRIPTS["IMHI.py"].format(llama=tiny_llama, out=folder)
    assert run_script("generate", arguments.split()) == 0
    return folder


def contents(*roots: Path) -> dict[Path, bytes]:
    """Every file below `roots`."""
    found = {}
    for root in roots:
        for path in root.rglob("*"):
            if path.is_symlink() or path.is_file():
                found[path] = path.read_bytes() if path.exists() else b"(link to nothing)"
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_costs_nothing(
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    wrong, things = MISTAKES[name], Things(request)
    program, *arguments = shlex.split(wrong.line)
    arguments = [part.format_map(things) for part in [*shlex.split(SCRIPTS.get(program, "")), *arguments]]
    says = [text.format_map(things) for text in wrong.says]
    for variable, value in wrong.env.items():
        monkeypatch.setenv(variable, value.format_map(things))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    watched = [tmp_path, *([things["llama"]] if "llama" in things else [])]
    before = contents(*watched)
    capsys.readouterr()
    status = main(arguments) if program == "imhi" else run_script(COMMANDS[program], arguments)
    told = capsys.readouterr()
    assert status == wrong.status, told.err
    lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and told.err.endswith(lines[0] + "\n"), told.err
    assert [text for text in says if text not in lines[0]] == [], lines[0]
    assert len(lines[0]) < 700
    assert "Traceback" not in told.err + told.out
    assert bool(told.out) == wrong.prints
    after = contents(*watched)
    assert {path: after.get(path) for path in before} == before
    new = {path.name for path in after.keys() - before.keys()}
    assert status == 1 or new <= {".lock"}, "bad input leaves nothing behind that could be taken for a result"


def test_the_table_covers_every_command() -> None:
    assert len(MISTAKES) >= 35
    commands = {
        " ".join(wrong.line.split()[: 3 if "data" in wrong.line.split()[:2] else 2]) for wrong in MISTAKES.values()
    }
    begun = {command.partition(" ")[0] for command in commands}
    assert begun == {"IMHI.py", "label_inference.py", "score.py", "imhi"}
    assert {"imhi ask", "imhi label", "imhi data fetch", "imhi data check"} <= commands


def test_a_post_on_standard_input_that_is_not_utf8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert main(["ask", "-", "--dataset", "DR"]) == 2
    assert capsys.readouterr().err == "error: the post on standard input is not UTF-8 text; convert it to UTF-8\n"
