"""The verb `export`: writes a role as a Hugging Face folder for transformers or peft. It can also be a model.path here.

A policy becomes a `*ForCausalLM`. A reward becomes a `*ForSequenceClassification` with one label: its logit at the last token
is the reward. With --adapter either becomes a peft folder, to be loaded on the base model.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax import hf, hf_export, paths, roles, variants, workdir
from irl_jax.errors import UserError
from irl_jax.models import families, peft, tensors
from irl_jax.models.tensors import Stored
from irl_jax.stages import generate, model_card
from irl_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A reward as a ForSequenceClassification folder holds it: w . z without bias.

    variables: the body's, with the head's bias folded into the final norm's, if it has one. weight: w, [1, D]. shift: the
    constant that its scores lack.
    """

    variables: PyTree
    weight: np.ndarray
    shift: float


@dataclasses.dataclass(frozen=True)
class Pad:
    """A classifier's padding: `token`, its `id`, and whether it was `added` to the tokenizer (with a zero row in the embeddings)."""

    token: str
    id: int
    added: bool


def export(args) -> None:
    """Writes --role of --workdir to --out, whole or not at all.

    Raises: UserError for a role that is unknown, not trained, or impossible to hold in such a folder.
    """
    config = workdir.read_config(args.workdir)
    role = generate.find_role(config, args.workdir, args.role, rewards=True)
    method = None if role in ("init", "sft") else variants.find(config, role)
    trained = config if method is None else method.config
    is_reward = role.startswith("reward/")
    if is_reward:
        refuse_reward(role, trained.reward)
    if args.adapter:
        refuse_adapter(role, trained, args.base)
    elif args.base and not config.model.path:
        raise UserError(f"--base={args.base}: this run began from scratch; only with --adapter is there a folder to stand on")
    context = generate.open_run(config, args.workdir, args.base if config.model.path else "")
    leaves = context.leaves(role)
    variables = roles.variables(context.trunk, leaves)
    base = _base(context, args.base) if args.adapter else args.base or config.model.path
    facts = model_card.read_facts(context, role, method, base)
    hf.check_vocabulary(context.tokenizer, context.model.vocab_size, args.workdir)
    with paths.new_folder(args.out) as folder:
        if args.adapter:
            said = _write_adapter(folder, context, role, leaves, base, args.dtype, facts)
        elif is_reward:
            said = _write_reward(folder, context, role, variables, leaves["head"], args, facts)
        else:
            said = _write_policy(folder, context, variables, args, facts)
    context.say(f"{role}: {said}, in {args.out}")


def refuse_reward(role: str, reward_config) -> None:
    """Raises UserError if a reward is not a linear function of the last token's state."""
    reasons = [
        (reward_config.ensemble > 1, f"an ensemble of {reward_config.ensemble} (reward.ensemble)"),
        (reward_config.head != "linear", f"a head with a layer of its own (reward.head = {reward_config.head})"),
        (reward_config.granularity != "response", f"a mean over tokens (reward.granularity = {reward_config.granularity})"),
        (reward_config.length_residual, "freed of length (reward.length_residual)"),
    ]  # fmt: skip
    for applies, reason in reasons:
        if applies:
            raise UserError(f"--role={role}: transformers' classifiers have one linear head at the last token, and this reward is "
                            f"{reason}; `irl_jax score --reward` computes it")


def refuse_adapter(role: str, config, base: str) -> None:
    """Raises UserError if a role has no adapter, or its adapter has no base folder."""
    if role == "init":
        raise UserError("--adapter: init is what the adapters stand on and has none; leave --adapter out")
    if role.startswith("reward/") and config.reward.body != "adapter":
        raise UserError(f"--adapter: {role} has no adapter (reward.body = {config.reward.body}); leave --adapter out")
    if not config.adapter.rank:
        raise UserError(f"--adapter: {role} is a whole model (adapter.rank = 0) and has no adapter; leave --adapter out")
    if not (config.model.path or base):
        raise UserError("--adapter: this run began from scratch, so that there is no folder to load the adapter on; export that first "
                        "with --role=init and name it here as --base=DIR")


def _base(context, given: str) -> str:
    """The base's name in adapter_config.json: a hub name unchanged, a folder as an absolute path.

    Raises: UserError if --base is not the model that a run from scratch trained its adapters on.
    """
    name = given or context.config.model.path
    if not context.config.model.path:
        where = f"--base={given}: not the model that this run's adapters were trained on"
        try:
            folder = hf.resolve(given)
        except UserError as error:
            raise UserError(f"--base={given}: {error}") from None
        if families.to_hf_config(hf.read_config(folder)) != families.to_hf_config(context.model):
            raise UserError(f"{where}: it has another architecture")
        trunk = hf.load_folder(given, context.mesh, param_dtype=context.config.model.param_dtype,
                               vocab_multiple=context.config.model.vocab_multiple)[1]
        if not all(map(jnp.array_equal, jax.tree.leaves(context.trunk), jax.tree.leaves(trunk))):
            raise UserError(f"{where}: its weights differ (export --role=init in float32)")
    folder = paths.here(name)
    return str(folder.absolute()) if folder.is_dir() else name


# ---------------------------------------------------------------- policies


def _write_policy(folder: Path, context, variables, args, facts) -> str:
    ids = {"bos_token_id": context.tokenizer.bos_token_id, "eos_token_id": context.eos_id, "pad_token_id": context.pad_id}
    ends = list(context.eos_ids)
    generation = ids | {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    written = hf_export.write_folder(
        folder, families.to_hf_config(context.model) | ids, tensors.stored_tensors(context.model, variables),
        tokenizer=plain(context.tokenizer), generation=generation, dtype=args.dtype, limit=args.max_shard_size)
    _write_card(folder, model_card.policy(facts, context.eos_ids, args.dtype, context.chat))
    return _said(written, args.dtype)


def plain(tokenizer):
    """A copy without token types. Generic tokenizers give them, and GPT-2 would add them to embeddings that were trained without."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def _said(written: hf_export.Written, dtype: str) -> str:
    files = f"{len(written.files)} files" if len(written.files) > 1 else "one file"
    return f"{written.tensors} tensors, {written.size / 1e6:,.1f} MB of {dtype} in {files}"


def _write_card(folder: Path, text: str) -> None:
    (folder / "README.md").write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- rewards


def _write_reward(folder: Path, context, role: str, variables, head, args, facts) -> str:
    made = classifier(variables, head)
    tokenizer, pad = with_padding(context.tokenizer, context.eos_ids)
    model = dataclasses.replace(context.model, vocab_size=max(context.model.vocab_size, pad.id + 1))
    hf_config = classifier_config(families.to_hf_config(model)) | {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": context.eos_id, "pad_token_id": pad.id,
        "irl_jax": {"role": role, "score_bias": made.shift},
    }  # fmt: skip
    written = hf_export.write_folder(
        folder, hf_config, classifier_tensors(context.model, made, model.vocab_size),
        tokenizer=tokenizer, dtype=args.dtype, limit=args.max_shard_size)
    _write_card(folder, model_card.reward(facts, pad, made.shift, args.dtype, context.chat))
    return _said(written, args.dtype) + _shift_said(made.shift)


def _shift_said(shift: float) -> str:
    return f" (its scores lack the head's bias, {shift:+.6g}, which has no place in such a folder)" if shift else ""


def classifier(variables: PyTree, head: PyTree) -> Classifier:
    """Writes a body and a linear head as w . z, without bias.

    If the final norm has a bias c (layer norm), c absorbs the head's bias: w . z + b = w . (z + b w / |w|^2). Nothing else reads z, as
    the vocabulary's head is left out. RMS norms have no bias and a zero w has no direction; b then remains as the shift.

    Args:
      variables: {"params": trunk, "adapter": adapter}. head: {"kernel": [D, 1], "bias": [1]}.
    """
    w, b = np.asarray(head["kernel"], np.float64)[:, 0], float(np.asarray(head["bias"])[0])
    trunk, square = variables["params"], float(w @ w)
    if b and square and "bias" in trunk["final_norm"]:
        bias = np.asarray(trunk["final_norm"]["bias"], np.float64) + w * (b / square)
        trunk = {**trunk, "final_norm": {**trunk["final_norm"], "bias": bias.astype(np.float32)}}
        b = 0.0
    return Classifier({**variables, "params": trunk}, np.asarray(head["kernel"], np.float32).T, b)


def classifier_config(hf_config: dict) -> dict:
    """Turns a causal model's config into that of its family's classifier with one label, "reward"."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSES

    if hf_config["model_type"] not in CLASSES:
        raise UserError(f"--role: transformers has no sequence classifier for model_type {hf_config['model_type']!r}; "
                        "`irl_jax score --reward` computes the reward")
    # transformers counts labels by their names; "regression": one number, unchanged
    return hf_config | {"architectures": [CLASSES[hf_config["model_type"]]], "id2label": {"0": "reward"}, "label2id": {"reward": 0},
                        "num_labels": 1, "problem_type": "regression"}


def classifier_tensors(config, made: Classifier, rows: int) -> Iterator[Stored]:
    """The tensors of a classifier's folder: the body's, its embeddings zero-padded to `rows`, and the head's."""
    for stored in tensors.stored_tensors(config, made.variables):
        if stored.leaves == ("unembed/kernel",):
            continue
        if stored.leaves == ("embed/tokens",) and rows > stored.shape[0]:
            read = functools.partial(_with_rows, stored.read, rows)
            stored = stored._replace(shape=(rows, *stored.shape[1:]), read=read)
        yield stored
    yield Stored("score.weight", (), made.weight.shape, lambda: np.ascontiguousarray(made.weight))


def _with_rows(read, rows: int) -> np.ndarray:
    table = read()
    return np.pad(table, ((0, rows - len(table)), (0, 0)))


def with_padding(tokenizer: Any, eos_ids: tuple[int, ...]) -> tuple[Any, Pad]:
    """A copy of the tokenizer that pads on the right with a token that ends no response.

    transformers' classifiers score the rightmost non-padding token. With pad = EOS they would skip the EOS that the reward is read at.
    A tokenizer without its own padding token gets a new one, beyond its vocabulary.
    """
    tokenizer = plain(tokenizer)
    tokenizer.padding_side = "right"
    added = tokenizer.pad_token_id is None or tokenizer.pad_token_id in eos_ids
    if added:
        tokenizer.add_special_tokens({"pad_token": "<|irl_jax_pad|>"})
    return tokenizer, Pad(tokenizer.pad_token, int(tokenizer.pad_token_id), added)


# ---------------------------------------------------------------- adapters


def _write_adapter(folder: Path, context, role: str, leaves, base: str, dtype: str, facts) -> str:
    made = peft.lora(context.model, leaves["adapter"])
    stored, shift, is_reward = dict(made.tensors), 0.0, role.startswith("reward/")
    if is_reward:
        stored[f"{peft.PREFIX}score.weight"] = np.ascontiguousarray(np.asarray(leaves["head"]["kernel"], np.float32).T)
        shift = float(np.asarray(leaves["head"]["bias"])[0])
    settings = {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if is_reward else "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "bias": "none", "lora_dropout": 0.0, "use_rslora": False, "modules_to_save": ["score"] if is_reward else None, **made.settings,
    }  # fmt: skip
    size = hf_export.save_tensors(folder / "adapter_model.safetensors", {
        name: hf_export.cast(name, tensor, dtype) for name, tensor in stored.items()})
    hf_export.write_json(folder / "adapter_config.json", settings)
    hf_export.write_tokenizer(folder, plain(context.tokenizer))
    own_pad = context.tokenizer.pad_token_id
    pad_id = None if own_pad in context.eos_ids else own_pad
    _write_card(folder, model_card.adapter(facts, context.eos_ids, pad_id, shift, dtype))
    return f"an adapter of rank {made.settings['r']} on {base}, {size / 1e6:,.1f} MB of {dtype}" + _shift_said(shift)
