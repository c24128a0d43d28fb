"""Checks of a config: values outside their range, and settings that contradict each other."""

from __future__ import annotations

import os

from ml_collections import ConfigDict

from irl_jax.config import ARCHITECTURES, CLOSED_FORMS, CONTROLS, DIVERGENCES, GOLDEN_KINDS, LEARNT, POSITIVES, ROBUST, TRAINED, default
from irl_jax.errors import UserError
from irl_jax.overrides import leaves
from irl_jax.variants import Method, all_methods, find, methods

KL_FORMS = ("k1_reward", "k2_loss", "k3_weighted_loss", "k3_loss")

_CHOICES = {
    "data.kind": ("pairs", "continuations"),
    "model.architecture": ARCHITECTURES,
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots"),
    "golden.kind": GOLDEN_KINDS,
    "golden.preserves": ("", "prompt"),
    "model.param_dtype": ("float32", "bfloat16"),
    "reward.body": ("adapter", "trunk", "frozen"),
    "reward.head": ("linear", "mlp"),
    "reward.granularity": ("response", "token"),
    "reward.combine": ("mean", "min", "mean_minus_std"),
    "policy.divergence": DIVERGENCES,
    "policy.advantage": ("reinforce", "rloo", "grpo", "gae"),
    "policy.surrogate": ("score_function", "ppo_clip"),
    "policy.kl": KL_FORMS,
    "policy.start": ("sft", "init"),
    "policy.reference": ("sft", "init"),
    "policy.stop": ("", "gate"),
    **{f"{stage}.schedule": ("cosine", "linear", "constant") for stage in TRAINED},
}
_SETS = {"reward.recipes": LEARNT, "reward.controls": CONTROLS, "adversarial.recipes": POSITIVES, "dpo.recipes": LEARNT,
         "spin.recipes": ("demo",)}
_POSITIVE = (
    "pretrain.steps", "reward.steps", "policy.steps", "dpo.steps", "spin.steps", "model.num_layers", "model.width", "model.num_heads",
    "model.num_kv_heads", "model.mlp_width", "data.max_prompt_tokens", "data.max_response_tokens", "sample.reward_prompts",
    "sample.reward_samples", "sample.policy_samples", "sample.rows", "reward.eval_every", "reward.mlp_width", "reward.ensemble",
    "policy.clip_logit", "policy.clip_ratio", "policy.epochs", "policy.minibatches", "adversarial.rounds", "adversarial.reward_updates",
    "adversarial.reward_rows", "dpo.beta", "spin.beta", "spin.iterations", "spin.prompts", "spin.samples", "rejection.iterations",
    "rejection.prompts", "eval.prompts", "eval.batch_size", "eval.divergence_prompts", "checkpoint.keep", "adapter.alpha",
    "model.vocab_multiple", "profile.first", "data.streaming_records", "golden.window_words", "rejection.samples", "policy.samples",
    "sample.eval_samples", "sample.temperature", "sample.top_p", "robust.temperature", "robust.prompts", "robust.samples",
    *(f"{stage}.row_tokens" for stage in ("pretrain", "sft", "rejection")),
    *(f"{stage}.{key}" for stage in TRAINED for key in ("batch_size", "accumulate", "learning_rate")),
)
_SHARES = (  # at least 0, below 1
    "data.heldout_fraction", "data.development_fraction", "reward.heldout_fraction", "adversarial.replay_share",
    *(f"{stage}.{key}" for stage in TRAINED for key in ("warmup_fraction", "final_fraction", "b2")),
)
_HALVES = ("reward.label_smoothing", "dpo.label_smoothing")  # at least 0, below 1/2
_UNIT = (  # 0 to 1
    "policy.gamma", "policy.gae_lambda", "adversarial.min_accuracy", "adversarial.max_accuracy",
    *(f"data.testbed.{key}" for key in (
        "dialect_strength", "entanglement", "initial_quality", "initial_dialect", "kinds", "label_noise", "noise")),
)
_WORLD = tuple(f"data.testbed.{key}" for key in (
    "pretrain_responses", "demonstrations", "pairs", "eval_prompts", "development_prompts", "prompts"))
_NOT_NEGATIVE = (
    "seed", "sft.steps", "rejection.steps", "reward.gradient_penalty", "reward.spectral_norm", "policy.beta", "policy.target_kl",
    "policy.max_kl", "policy.value_coefficient", "policy.keep_rollouts_every", "adversarial.warmup_rounds",
    "adversarial.replay_capacity", "eval.agreement", "adapter.rank", "profile.steps", "policy.entropy", "reward.patience", "sft.epochs",
    "rejection.epochs", "robust.weight", "model.loss_chunk", "checkpoint.every_seconds", "checkpoint.every_steps",
    "data.max_demonstrations", "data.max_records", "data.testbed.seed_offset",
    "data.testbed.tail_words", *_WORLD, *(f"{stage}.{key}" for stage in TRAINED for key in ("weight_decay", "clip_norm")),
)
_MOST = {  # far beyond any use here: a typo, which would only show as endless memory or time
    1: ("sample.top_p",),  # except this one: a probability
    1000: ("sample.temperature", "robust.temperature", "robust.weight"),
    1024: ("model.num_layers", "model.num_heads", "model.num_kv_heads", "reward.ensemble"),
    2**20: ("model.width", "model.mlp_width", "model.vocab_multiple", "reward.mlp_width", "adapter.rank", "data.max_prompt_tokens",
            "data.max_response_tokens", "golden.window_words", "sample.reward_samples", "sample.eval_samples", "sample.policy_samples",
            "policy.samples", "robust.prompts", "robust.samples", "spin.samples", "rejection.samples", "sample.rows", "eval.batch_size",
            "adversarial.reward_rows",
            "adversarial.replay_capacity", "policy.epochs", "policy.minibatches",
            *(f"{stage}.{key}" for stage in TRAINED for key in ("batch_size", "accumulate")),
            *(f"{stage}.row_tokens" for stage in ("pretrain", "sft", "rejection"))),
    1e6: ("sft.epochs", "rejection.epochs", *(f"{stage}.{key}" for stage in TRAINED for key in ("learning_rate", "weight_decay"))),
    10**7: _WORLD,
}
_INT, _FLOAT = 2**31 - 1, 1e30  # what the devices' numbers hold, with room for a product


def check(config: ConfigDict) -> None:
    """Refuses what no stage could use, before anything is written. Checks the run's settings and those of each of its methods.

    What only methods use is checked per method, with the method's own settings. So a recipe and a variant with the same settings get the
    same verdict.

    Raises:
        UserError: a value outside its choices or its range, or settings that contradict each other.
    """
    check_ranges(config)
    for key, allowed in _SETS.items():
        section, name = key.split(".")
        for value in config[section][name]:
            if value not in allowed:
                raise UserError(f"config.{key}: unknown '{value}'; choose from {', '.join(allowed)}")
    if not config.reward.recipes and not {*config.reward.controls} - ({"golden"} if config.golden.kind == "none" else set()):
        raise UserError("config.reward.recipes and reward.controls: one reward at least is needed, such as the control 'log_ratio'")
    if config.sample.eval_samples < 2:
        raise UserError("config.sample.eval_samples must be at least 2: best-of-n compares samples of one prompt")
    if not any(1 < n <= config.sample.eval_samples for n in config.eval.best_of):
        raise UserError(f"config.eval.best_of = {config.eval.best_of}: no n is above 1 and at most sample.eval_samples = "
                        f"{config.sample.eval_samples}; name such an n, or raise eval_samples")
    if config.model.width % config.model.num_heads or config.model.num_heads % config.model.num_kv_heads:
        raise UserError("config.model: num_heads must divide width, and num_kv_heads must divide num_heads")
    for name in config.robust.recipes:
        if name not in (*LEARNT, *(method.name for method in methods(config, "reward"))):
            raise UserError(f"config.robust.recipes: unknown '{name}'; choose from {', '.join(LEARNT)}, or name a reward of variants")
    for method in all_methods(config):
        try:
            _check_method(method)
        except UserError as error:
            if method.config is config:
                raise
            raise UserError(f"config.variants, {method.role}: {error}") from None
    _check_sources(config)


def check_ranges(config: ConfigDict) -> None:
    """Refuses values outside their choices or ranges, whatever else is set.

    Raises:
        UserError: naming the key.
    """
    _check_values(config)
    flat = leaves(config)
    for key, allowed in _CHOICES.items():
        if flat[key] not in allowed:
            why = " (k1 in the loss has no gradient in expectation)" if key == "policy.kl" and str(flat[key]).startswith("k1") else ""
            raise UserError(f"config.{key} = {flat[key]!r}: must be one of {', '.join(map(_named, allowed))}{why}")
    for keys, right, must in (
        (_POSITIVE, lambda v: v > 0, "be positive"), (_NOT_NEGATIVE, lambda v: v >= 0, "not be negative"),
        (_SHARES, lambda v: 0 <= v < 1, "be at least 0 and below 1"), (_HALVES, lambda v: 0 <= v < 0.5, "be at least 0 and below 0.5"),
        (_UNIT, lambda v: 0 <= v <= 1, "lie between 0 and 1"),
    ):
        for key in keys:
            if not right(flat[key]):
                raise UserError(f"config.{key} = {flat[key]}: must {must}")
    for most, keys in _MOST.items():
        for key in keys:
            if flat[key] > most:
                raise UserError(f"config.{key} = {flat[key]}: must be at most {most:,.0f}")
    for key in ("sample.temperature", "robust.temperature"):
        if flat[key] < 0.001:  # logits are divided by it
            raise UserError(f"config.{key} = {flat[key]}: must be at least 0.001")
    if not flat["eval.best_of"] or any(n < 1 for n in flat["eval.best_of"]):
        raise UserError(f"config.eval.best_of = {flat['eval.best_of']}: at least one n is needed, and every n must be at least 1")
    if len(flat["data.prompt_words"]) != 2 or not 1 <= flat["data.prompt_words"][0] <= flat["data.prompt_words"][1]:
        raise UserError(f"config.data.prompt_words = {flat['data.prompt_words']}: two numbers are needed, 1 or more, the smaller one first")
    for stage in ("sft", "rejection"):
        if flat[f"{stage}.steps"] <= 0 and flat[f"{stage}.epochs"] <= 0:
            raise UserError(f"config.{stage}: give a positive number of steps or of epochs")
    cold = flat["eval.temperatures"]
    if any(not 0 <= t <= 1000 or 0 < t < 0.001 for t in cold) or len({f"{t:g}" for t in cold}) < len(cold):
        raise UserError(f"config.eval.temperatures = {cold}: each must be 0 (greedy) or from 0.001 to 1000, and appear once")
    for key in ("policy.samples", "rejection.samples", "robust.samples"):
        if flat[key] < 2:
            raise UserError(f"config.{key} = {flat[key]}: must be at least 2, for samples of one prompt are compared")


def _check_values(config: ConfigDict) -> None:
    """Refuses what no key can hold: numbers the devices don't have, text that can't be written, elements of another type."""
    wanted = leaves(default())
    for key, value in leaves(config).items():
        many = isinstance(wanted[key], tuple)
        if many != isinstance(value, tuple):
            raise UserError(f"config.{key}: {value!r} must be {'several values' if many else 'one value'}")
        like = (wanted[key] or ("",))[0] if many else wanted[key]
        for part in value if many else (value,):
            kind, wording = _KINDS[type(like)]
            fits = isinstance(part, kind) and isinstance(part, bool) == isinstance(like, bool)
            if not fits:
                raise UserError(f"config.{key}: {part!r} must be {wording}")
            if isinstance(part, str) and not _writable(part):
                raise UserError(f"config.{key} = {part!r}: must be text without control characters")
            most = _INT if isinstance(like, int) else _FLOAT
            if not isinstance(part, str) and not abs(part) <= most:
                raise UserError(f"config.{key} = {_shown(part)}: must be a finite number, and at most {most:,}")


_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"), int: (int, "a whole number"), float: ((int, float), "a number"), str: (str, "text")}


def _writable(text: str) -> bool:
    """Whether a text is Unicode without control characters (a path can't contain a NUL)."""
    return not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in text)


def _named(choice: str) -> str:
    return choice or "''"


def _shown(value) -> str:
    return f"a number of {abs(value).bit_length()} bits" if isinstance(value, int) and abs(value) > 10**18 else str(value)


def _check_method(method: Method) -> None:
    group, recipe, config = method.role.split("/")[0], method.recipe, method.config
    check_ranges(config)
    if group == "policy":
        _check_judge(config, recipe, "policy", (*CLOSED_FORMS, ROBUST))
        check_policy(config, dense=recipe == "log_ratio_dense" or _granularity(config, recipe) == "token")
    elif group == "rejection":
        _check_judge(config, recipe, "rejection", (*CLOSED_FORMS[:1], ROBUST))
    elif group == "adversarial":
        if recipe not in POSITIVES:
            raise UserError(f"unknown recipe '{recipe}'; choose from {', '.join(POSITIVES)}")
        check_policy(config, dense=config.reward.granularity == "token")
        check_reward(config)
        _check_adversarial(config)
    elif group == "reward":
        check_reward(config, (recipe,))
    allowed = {"reward": LEARNT, "dpo": LEARNT, "spin": ("demo",)}.get(group)
    if allowed and recipe not in allowed:
        raise UserError(f"unknown recipe '{recipe}'; choose from {', '.join(allowed)}")


def _check_judge(config: ConfigDict, recipe: str, group: str, closed: tuple) -> None:
    """Refuses a reward to optimise, or to select by, that the run doesn't have."""
    names = [method.name for method in methods(config, "reward")]
    if recipe == ROBUST and not {*config.robust.recipes} & {*names}:
        raise UserError(f"config.{group}.recipes: 'robust' is made of one of robust.recipes ({', '.join(config.robust.recipes)}), of which "
                        "this run learns none; add one to reward.recipes")
    if recipe in (*closed, *names):
        return
    if recipe in LEARNT:
        raise UserError(f"config.{group}.recipes: '{recipe}' has no reward to optimise; add it to reward.recipes")
    note = " ('golden' is for evaluation only)" if recipe == "golden" else ""
    raise UserError(f"config.{group}.recipes: unknown '{recipe}'; choose from {', '.join([*names, *closed])}{note}")


def _granularity(config: ConfigDict, recipe: str) -> str:
    return "response" if recipe in (*CLOSED_FORMS, ROBUST) else find(config, f"reward/{recipe}").config.reward.granularity


def check_policy(config: ConfigDict, dense: bool = False) -> None:
    """Refuses policy-gradient settings that contradict each other. `dense`: its rewards are per token.

    Raises:
        UserError: with what to change.
    """
    p = config.policy
    if p.advantage == "gae" and not p.value_coefficient:
        raise UserError("config.policy.advantage = 'gae' trains a value head: set policy.value_coefficient, say to 0.5")
    if p.advantage != "gae" and p.value_coefficient:
        raise UserError(f"config.policy.value_coefficient = {p.value_coefficient} with policy.advantage = '{p.advantage}': only 'gae' has "
                        "a value head; set it to 0, or the advantage to 'gae'")
    if p.gamma < 1 and not dense and p.advantage != "gae":
        raise UserError(f"config.policy.gamma = {p.gamma}: a reward at the response's end is not discounted under '{p.advantage}'; use "
                        "token rewards, advantage = 'gae', or gamma = 1")
    if p.surrogate == "score_function" and (p.epochs > 1 or p.minibatches > 1):
        raise UserError("config.policy.epochs and minibatches above 1 leave the policy that drew the samples: set policy.surrogate "
                        "to 'ppo_clip'")
    if p.batch_size * p.samples % (p.minibatches * p.accumulate):
        raise UserError(f"config.policy: batch_size * samples = {p.batch_size * p.samples} rows do not split into minibatches * "
                        f"accumulate = {p.minibatches * p.accumulate} parts")
    if p.target_kl and not p.beta:
        raise UserError("config.policy.target_kl steers policy.beta by factors: start it above 0")
    if p.normalise_rewards and p.advantage == "grpo":
        raise UserError("config.policy.normalise_rewards does nothing under advantage = 'grpo', which normalises within the prompt")


def check_reward(config: ConfigDict, recipes: tuple = ()) -> None:
    """Refuses reward settings that contradict each other.

    Raises:
        UserError: with what to change.
    """
    r = config.reward
    if r.granularity == "token" and "preference" in recipes:
        raise UserError("config.reward.granularity = 'token': preferences compare whole responses; train 'preference' with 'response'")
    if r.granularity == "token" and r.length_residual:
        raise UserError("config.reward.length_residual with granularity = 'token': token logits are averaged: length has no part in them")
    if r.start and r.head != "linear":
        raise UserError(f"config.reward.start with reward.head = '{r.head}': a classifier's head is linear; set reward.head to 'linear'")
    if r.start_revision and not r.start:
        raise UserError("config.reward.start_revision: needs reward.start, the hub model that has the revision")
    if r.start_label and not r.start:
        raise UserError("config.reward.start_label: needs reward.start, the classifier that has the label")
    if r.ensemble == 1 and r.combine != "mean":
        raise UserError(f"config.reward.combine = '{r.combine}' needs reward.ensemble above 1")


def _check_adversarial(config: ConfigDict) -> None:
    a = config.adversarial
    if config.reward.length_residual:
        raise UserError("config.reward.length_residual is fitted once a reward is trained; the adversarial loop never is: set it to False")
    if a.replay_share and not a.replay_capacity:
        raise UserError("config.adversarial.replay_share needs a replay_capacity above 0")
    if a.reward_rows % 2:
        raise UserError(f"config.adversarial.reward_rows = {a.reward_rows}: must be even, half of them positive")
    if a.warmup_rounds >= a.rounds:
        raise UserError(f"config.adversarial.warmup_rounds = {a.warmup_rounds} leaves none of the {a.rounds} rounds for the policy")
    if a.min_accuracy >= a.max_accuracy:
        raise UserError("config.adversarial.min_accuracy must be below max_accuracy")


def _check_sources(config: ConfigDict) -> None:
    """Refuses data, model and golden reward settings that don't go together."""
    if config.model.revision and not config.model.path:
        raise UserError("config.model.revision: needs model.path, the hub model that has the revision")
    if config.golden.revision and config.golden.kind != "hf_reward":
        raise UserError("config.golden.revision: only golden.kind = 'hf_reward' has a model; leave it empty")
    if config.golden.chat and config.golden.kind != "hf_reward":
        raise UserError("config.golden.chat: only golden.kind = 'hf_reward' has a chat template")
    if config.golden.preserves and config.golden.kind != "classifier":
        raise UserError("config.golden.preserves: only golden.kind = 'classifier' multiplies by it; leave it empty with "
                        f"'{config.golden.kind}'")
    if config.golden.kind == "hf_reward" and not config.golden.model:
        raise UserError("config.golden.model: 'hf_reward' needs the folder or hub name of a *ForSequenceClassification model")
    _check_streaming(config.data)
    if config.data.source == "testbed":
        if config.data.prompts_source:
            raise UserError("config.data.prompts_source: the testbed has prompts of its own; say how many by data.testbed.prompts")
        m = config.model
        kernels = m.num_layers * m.width * (4 * m.width + 3 * m.mlp_width)
        if kernels > 10**12:
            raise UserError(f"config.model: num_layers, width and mlp_width make a model of up to {kernels:.0e} parameters; they must be "
                            "at most 1e+12")
        if config.model.path:
            raise UserError(f"config.model.path = {config.model.path!r}: the testbed brings its own vocabulary; set data.source to "
                            "your records, or leave model.path empty")
        if config.golden.kind == "classifier":
            raise UserError("config.golden.kind = 'classifier': the testbed has a golden reward of its own; use 'testbed' or 'none'")
        return
    for key in ("eval_source", "prompts_source", "preference_source"):
        if config.data[key] == "testbed":
            raise UserError(f"config.data.{key}: 'testbed' is a data.source only; name a file of records")
    if not config.model.path:
        raise UserError(f"config.model.path: name a Hugging Face folder or hub model for data.source = {config.data.source!r} "
                        "(only the testbed initialises from scratch)")
    if config.golden.kind == "testbed":
        raise UserError("config.golden.kind: 'testbed' needs data.source = 'testbed'; use 'classifier' or 'none' with other data")
    if config.golden.kind == "classifier":
        check_golden_source(config)
        if not os.path.isfile(os.path.expanduser(config.golden.source)):
            raise UserError(f"config.golden.source: {config.golden.source}: no such file, or none that can be read")


def _check_streaming(data: ConfigDict) -> None:
    """Refuses what can't be done record by record, or would show only in the middle of training."""
    if not data.streaming:
        return
    if not data.source.startswith("tfds:"):
        raise UserError(f"config.data.streaming: data.source = {data.source!r} is not read by random access; prepare it "
                        "(python -m irl_jax prepare --help) and name it as tfds:NAME")
    if data.kind != "pairs":
        raise UserError(f"config.data.streaming: needs data.kind = 'pairs', records of prompt and response, not {data.kind!r}")
    if data.prompts_source:
        raise UserError("config.data.prompts_source: data.streaming holds data.streaming_records prompts in memory already; raise that for "
                        "more, or leave prompts_source empty")
    if data.max_demonstrations:
        raise UserError("config.data.max_demonstrations: with data.streaming all are read; limit them by data.max_records")
    if not data.truncate_prompts:
        raise UserError("config.data.streaming: a prompt that is too long would show only in the middle of training; set "
                        "data.truncate_prompts to True")


def check_golden_source(config: ConfigDict) -> None:
    """Refuses a classifier without text of its own: the judge must not have seen what the run trains or evaluates on.

    Raises:
        UserError: there is no golden.source, or it is also a data source.
    """
    path = config.golden.source
    if not path:
        raise UserError("config.golden.source: 'classifier' needs a JSONL(.gz) file of rated text")
    for key in ("source", "eval_source", "prompts_source", "preference_source"):
        used = config.data[key].removeprefix("hh:")
        if used and os.path.realpath(os.path.expanduser(used)) == os.path.realpath(os.path.expanduser(path)):
            raise UserError(f"config.golden.source: {path} is data.{key} too; the golden reward needs text that the run never sees")
