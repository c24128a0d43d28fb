"""The model card (README.md) of an exported folder: what it is, how to use it, how it was made, what it scored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import irl_jax
from irl_jax import artifacts, paths, workdir
from irl_jax.config import default
from irl_jax.errors import UserError, printable
from irl_jax.overrides import leaves
from irl_jax.stages import evaluated
from irl_jax.stages.plot_style import number
from irl_jax.stages.run_tables import BEST_OF, best_of, code, markdown, plain

# A path from this machine's root or a home: a whole setting, the rest after "hh:", or in a variant's line up to the next space.
_LOCAL = re.compile(r"(^|:)(?:file://)?(?:~[^/\s]*)?/(?!/).*|(?<==)(?:~[^/\s]*)?/(?!/)\S*", re.DOTALL)
_RECIPES = {
    "init_sft": "positives: samples of sft; negatives: samples of init",
    "init_demo": "positives: demonstrations; negatives: samples of init",
    "sft_demo": "positives: demonstrations; negatives: samples of sft",
    "preference": "positives: chosen responses; negatives: rejected ones",
    "log_ratio": "log pi_sft(y|x) - log pi_init(y|x), in closed form",
    "log_ratio_dense": "log pi_sft - log pi_init, token by token",
    "demo": "against demonstrations",
    "sft": "against samples of sft",
}
_METHODS = {
    "init": "The model before fine-tuning, as the run began with it.",
    "sft": "Supervised fine-tuning on demonstrations.",
    "reward": "A discriminator whose logit is the reward: at the optimum, the log density ratio of its positives to its negatives.",
    "policy": "Policy gradient from sft against a reward learnt from demonstrations, held near its reference by a KL penalty.",
    "adversarial": "Policy gradient against a discriminator that is trained on, alternately, with the policy's own samples.",
    "dpo": "Direct preference optimisation from sft.",
    "spin": "Self-play fine-tuning: demonstrations over the last iterate's samples.",
    "rejection": "Rejection fine-tuning: trained on the best of N samples by a reward.",
}


class Facts(NamedTuple):
    """The facts on a card.

    role, group, recipe: for example "policy/init_sft", "policy", "init_sft" (None if there is none). own: the method's own settings, as in
    its line of config.variants. base: hub name or folder of the base model; "" if from scratch. source: config.data.source.
    records: {split: number}. changed: {key: value} of the settings that are not the defaults. versions: {package: version}.
    commit: of the run's code, or None. results: results.json; {} if the run was not evaluated.
    """

    role: str
    group: str
    recipe: str | None
    own: str
    base: str
    source: str
    records: Mapping[str, int]
    changed: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None
    results: Mapping


def read_facts(context, role: str, method, base: str) -> Facts:
    """The facts of a finished run's role. `method` is from `irl_jax.variants`; None for init and sft."""
    path = context.workdir.path
    run = artifacts.read_json(path / workdir.CONFIG, workdir.WRITTEN)
    variant = [line for line in run["config"]["variants"] if line.split("=")[0].strip() == role]
    found = evaluated.read(path) if (path / "results.json").exists() else {}
    return Facts(role, role.split("/")[0], method.recipe if method else None, " ".join(variant[0].split()) if variant else "", base,
                 run["config"]["data"]["source"], _records(context), changed_settings(run["config"]), run.get("versions") or {},
                 run.get("git_commit"), found)


def changed_settings(config: Mapping) -> dict[str, Any]:
    """{dotted key: value} of the settings that differ from the defaults, compared as JSON."""
    defaults, given = (leaves(json.loads(json.dumps(tree))) for tree in (default().to_dict(), config))
    return {key: value for key, value in given.items() if key not in defaults or defaults[key] != value}


def _records(context) -> dict[str, int]:
    """Numbers of the run's records; {} if its data are gone."""
    try:
        corpus = context.corpus
    except UserError:
        return {}
    return {"demonstrations": corpus.streamed or len(corpus.train), "for early stopping": len(corpus.development),
            "for evaluation": len(corpus.evaluation), "preference pairs": len(corpus.pairs),
            **({"training prompts without demonstrations": len(corpus.prompts)} if corpus.prompts else {})}


# ---------------------------------------------------------------- the three kinds of folders


def policy(facts: Facts, eos_ids: Sequence[int], dtype: str, chat) -> str:
    """The card of a `*ForCausalLM` folder. chat: from `irl_jax.data.chat`, or None."""
    return _card(facts, "text-generation", "transformers", f"""\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(DIR), AutoModelForCausalLM.from_pretrained(DIR)
{_prompt(chat)}rows = tokenizer(prompt, return_tensors="pt"{_once(chat)})
ids = model.generate(**rows, do_sample=True, top_k=0, {_law_given(facts)}max_new_tokens=64)   # as it was evaluated: {_law(facts)}
```

Generation ends at {_ids(eos_ids)}. The weights are {dtype}, adapters merged. `python -m irl_jax generate --model=DIR` and
`--config.model.path=DIR` take the folder as well.
""")


def _law(facts: Facts) -> str:
    """How the evaluation's samples were drawn, in words."""
    temperature, mass = (facts.changed.get(f"sample.{key}", 1.0) for key in ("temperature", "top_p"))
    return f"temperature {temperature:g}, " + ("unfiltered" if mass == 1 else f"top-p {mass:g}")


def _law_given(facts: Facts) -> str:
    """The same as arguments of `generate`, without its defaults."""
    given = {key: facts.changed[f"sample.{key}"] for key in ("temperature", "top_p") if f"sample.{key}" in facts.changed}
    return "".join(f"{key}={value:g}, " for key, value in given.items())


def _prompt(chat) -> str:
    """The line of code that turns a conversation into a prompt."""
    return "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)\n" if chat else ""


def _once(chat) -> str:
    """The argument that prevents a second BOS."""
    return ", add_special_tokens=False" if chat and chat.spells_bos else ""


def reward(facts: Facts, pad, shift: float, dtype: str, chat) -> str:
    """The card of a `*ForSequenceClassification` folder. pad: has token, id and added. shift: what its scores lack."""
    why = ("The model's own tokenizer pads with its EOS or not at all, so that this folder adds the token, with a row of zeros that "
           "nothing attends to." if pad.added else "It is the tokenizer's own.")
    turn_end = chat.tokenizer.convert_ids_to_tokens(chat.end_id) if chat and chat.end_id is not None else None
    end, which = (json.dumps(turn_end, ensure_ascii=False), "the end of turn") if turn_end else ("tokenizer.eos_token", "the EOS")
    return _card(facts, "text-classification", "transformers", f"""\
```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained(DIR), AutoModelForSequenceClassification.from_pretrained(DIR)
{_prompt(chat)}texts = [prompt + response + {end}]
rows = tokenizer(texts, return_tensors="pt", padding=True{_once(chat)})
rewards = model(**rows).logits[:, 0]
```

The one logit is the reward of the response, read at the last token, which is {which} of a finished response: {_bias(shift)}
It is no probability: differences between responses to one prompt are what it means. Rows are padded with {code(pad.token)} (id {pad.id}),
which must not be the EOS: transformers scores the rightmost token that is not padding. {why} The weights are {dtype}, adapters merged.
""")


def adapter(facts: Facts, eos_ids: Sequence[int], pad_id: int | None, shift: float, dtype: str) -> str:
    """The card of a peft folder. pad_id: the tokenizer's padding if it isn't an EOS, else None. shift: what a reward's scores lack."""
    base, where = (repr(facts.base), "") if is_hub_name(facts.base) else ("BASE", "BASE is the base model's folder. ")
    if facts.group != "reward":
        use = f"""\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base}), DIR)
```

{where}Generation ends at {_ids(eos_ids)}. The adapter's weights are {dtype}.
"""
    else:
        batches = "" if pad_id is not None else " Score one row at a time: the tokenizer has no padding token apart from its EOS."
        use = f"""\
```python
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base = AutoModelForSequenceClassification.from_pretrained({base}, num_labels=1, pad_token_id={pad_id})
model = PeftModel.from_pretrained(base, DIR)
```

{where}The one logit at the last token, which is the EOS of a finished response, is the reward of the response: {_bias(shift)}{batches}
The adapter's weights are {dtype}.
"""
    return _card(facts, "text-classification" if facts.group == "reward" else "text-generation", "peft", use)


def _bias(shift: float) -> str:
    if not shift:
        return "the same number as in the run."
    return (f"the run's number less a constant, the head's bias of {shift:+.6g}, which such a folder has no place for; add it for the "
            "run's own numbers.")


def _ids(ids: Sequence[int]) -> str:
    return f"token {ids[0]}" if len(ids) == 1 else f"any of the tokens {', '.join(map(str, ids))}"


# ---------------------------------------------------------------- the parts of a card


def _card(facts: Facts, task: str, library: str, use: str) -> str:
    licence = "As the base model is licensed" if facts.base else "The run began from scratch: the weights are their maker's to license"
    return (f"{_front_matter(facts, task, library)}\n# {facts.role}\n\n{_about(facts)}\n## Use\n\n{use}\n## How it was made\n\n"
            f"{_making(facts)}\n## Data\n\n{_data(facts)}\n## Evaluation\n\n{_evaluation(facts)}\n## Licence\n\n"
            f"{licence}, and as the data allow.\n")


def _front_matter(facts: Facts, task: str, library: str) -> str:
    from huggingface_hub import ModelCardData

    tags = ["irl_jax", "inverse-reinforcement-learning", facts.group] + (["reward-model"] if facts.group == "reward" else [])
    tags += ["lora"] if library == "peft" else []
    base = facts.base if is_hub_name(facts.base) else None
    data = ModelCardData(library_name=library, pipeline_tag=task, tags=tags, base_model=base)
    return f"---\n{data.to_yaml()}\n---\n"


def is_hub_name(base: str) -> bool:
    """Whether a base model has a hub name ("gpt2", "google/gemma-2b"). False if there is a folder of that name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if paths.here(base).exists():
        return False
    try:
        validate_repo_id(base)
    except HFValidationError:
        return False
    return True


def public(value: Any) -> Any:
    """A setting's value with paths of this machine reduced to their last names."""
    if isinstance(value, (list, tuple)):
        return [public(part) for part in value]
    return _LOCAL.sub(lambda found: (found[1] or "") + PurePath(found[0]).name, value) if isinstance(value, str) else value


def _about(facts: Facts) -> str:
    lines = [_METHODS[facts.group]]
    if facts.recipe:
        lines.append(f"Recipe {code(facts.recipe)}{f': {_RECIPES[facts.recipe]}' if facts.recipe in _RECIPES else ''}.")
    name = facts.base if is_hub_name(facts.base) else paths.here(facts.base).absolute().name
    lines.append(f"Base model: {code(name)}." if facts.base else "The run initialised the base model itself and pretrained it.")
    return "\n".join(lines) + "\n"


def _making(facts: Facts) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    lines = ["By irl_jax (inverse reinforcement learning from demonstrations, [arXiv 2405.15624](https://arxiv.org/abs/2405.15624)), "
             f"commit {plain(facts.commit or 'unknown')}, with {plain(versions)}; exported by irl_jax {irl_jax.__version__}."]
    if facts.own:
        lines += ["", f"Its own settings: {code(public(facts.own))}"]
    if facts.changed:
        lines += ["", "Settings of the run that are not the defaults:", "", "```"]
        lines += [printable(f"{key} = {json.dumps(public(value), ensure_ascii=False)}") for key, value in facts.changed.items()] + ["```"]
    else:
        lines += ["", "Every setting is the default."]
    return "\n".join(lines) + "\n"


def _data(facts: Facts) -> str:
    source = "irl_jax's embedded testbed, a generated world" if facts.source == "testbed" else code(public(facts.source))
    counts = ", ".join(f"{number:,} {name}" for name, number in facts.records.items())
    return f"Source: {source}. Records: {counts or 'not counted, the source being no longer there'}.\n"


def _evaluation(facts: Facts) -> str:
    policies, rewards = facts.results.get("policies") or {}, facts.results.get("rewards") or {}
    if not policies:
        return "The run was not evaluated.\n"
    golden = facts.results.get("golden") or {}
    accuracy = number(golden.get("heldout_accuracy"))
    judge = (f"Golden reward: {plain(golden.get('name'))}" + (f", held-out accuracy {accuracy:.3f}" if math.isfinite(accuracy) else "")
             if golden else "There was no golden reward")
    table = markdown(["policy", "golden", "tokens", "KL to sft, nats", "distinct-2", "prompts"], [
        [_name(name, facts.role), _number(row, "golden_mean", "golden_stderr"), _number(row, "length_mean", digits=1),
         _number(row, "kl_to_sft", "kl_to_sft_stderr", 2), _number(row, "distinct_2"), plain(row.get("n", "–"))]
        for name, row in policies.items() if row])
    rows = []
    for name, row in rewards.items():
        row = row or {}
        best = best_of(row)
        rows.append([_name(name, facts.role.removeprefix("reward/")), _number(row, "heldout_auc", "heldout_auc_stderr"),
                     _number(row, "spearman_golden", "spearman_golden_stderr"), _number(row, "spearman_length", "spearman_length_stderr"),
                     _number(best, "golden", "stderr")])
    quality = markdown(["reward", "held-out AUC", "Spearman with golden", "Spearman with length", f"golden of best-of-{BEST_OF}"], rows)
    return (f"{judge}; no training step sees it. Samples at {_law(facts)}; ± is one standard error over prompts.\n\n{table}\n"
            + (f"\n{quality}\n" if rows and facts.group in ("reward", "policy", "rejection") else ""))


def _name(name: str, this: str) -> str:
    return f"**{code(name)}** (this one)" if name == this else code(name)


def _number(row: Mapping, key: str, error: str = "", digits: int = 3) -> str:
    value, stderr = number(row.get(key)), number(row.get(error))
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}" + (f" ± {stderr:.{digits}f}" if math.isfinite(stderr) else "")
