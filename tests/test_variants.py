"""Methods from recipes and variants: what a line means, and what is refused."""

import pytest

from irl_jax.checks import check
from irl_jax.config import default
from irl_jax.errors import UserError
from irl_jax.variants import all_methods, find, methods


def config_of(*variants, **keys):
    config = default()
    config.variants = variants
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in keys.items()})
    return config


def test_recipes_come_first_and_variants_have_their_own_settings():
    config = config_of("policy/clipped = init_sft policy.surrogate=ppo_clip policy.epochs=2", "reward/cheap = init_sft reward.body=frozen",
                       "policy/cheap = cheap policy.beta=0.5")
    found = methods(config, "policy")
    assert [(m.role, m.name, m.recipe) for m in found] == [
        ("policy/init_sft", "init_sft", "init_sft"), ("policy/clipped", "clipped", "init_sft"), ("policy/cheap", "cheap", "cheap")]
    assert found[0].config is config and config.policy.epochs == 1 and config.policy.beta == 0.1
    assert found[1].config.policy.epochs == 2 and found[1].config.policy.surrogate == "ppo_clip"
    assert found[2].config.policy.beta == 0.5
    assert find(config, "reward/cheap").config.reward.body == "frozen"
    assert len(all_methods(config)) == 4 + 1 + 3
    check(config)


def test_a_variant_of_the_adversarial_loop_sets_policy_and_reward():
    config = config_of("adversarial/gail = demo policy.divergence=jensen_shannon reward.label_smoothing=0.1 adversarial.rounds=20")
    method = find(config, "adversarial/gail")
    assert (method.config.policy.divergence, method.config.reward.label_smoothing, method.config.adversarial.rounds) == ("jensen_shannon", 0.1, 20)
    check(config)


@pytest.mark.parametrize(("line", "message"), [
    ("policy/a", "cannot read"),
    ("value/a = init_sft", "GROUP one of"),
    ("policy/a = init_sft policy.bta=1", "did you mean 'policy.beta'"),
    ("policy/a = init_sft policy.beta=high", "takes a number"),
    ("policy/a = init_sft sft.epochs=2", "may set policy"),
    ("policy/a = init_sft policy.recipes=b", "recipe stands after"),
    ("policy/init_sft = init_sft", "taken twice"),
    ("reward/length = init_sft", "name of something else"),
    ("reward/golden = init_sft", "name of something else"),
    ("reward/log_ratio = init_sft", "name of something else"),
    ("reward/log_ratio_dense = init_sft", "name of something else"),
    ("reward/Random = init_sft", "name of something else"),
    ("policy/init_demo = init_sft", "name of something else"),
    ("adversarial/sft = demo", "name of something else"),
    ("spin/init = demo", "name of something else"),
    ("policy/done.json = init_sft", "name of something else"),
    ("policy/a. = init_sft", "no dot at its end"),
    ("policy/caf\u00e9 = init_sft", "cannot read"),
    ("policy/a = golden", "unknown 'golden'"),
    ("policy/a = nonesuch", "unknown 'nonesuch'"),
    ("rejection/a = log_ratio_dense", "unknown 'log_ratio_dense'"),
    ("adversarial/a = init", "choose from demo, sft"),
    ("dpo/a = demo", "choose from init_sft"),
    ("spin/a = sft", "choose from demo"),
    ("reward/a = sft", "choose from init_sft"),
    ("policy/a = init_sft policy.advantage=gae", "set policy.value_coefficient"),
    ("policy/a = init_sft policy.value_coefficient=0.5", "only 'gae' has a value head"),
    ("policy/a = init_sft policy.gamma=0.9", "not discounted"),
    ("policy/a = init_sft policy.epochs=2", "ppo_clip"),
    ("policy/a = init_sft policy.minibatches=2", "ppo_clip"),
    ("policy/a = init_sft policy.surrogate=ppo_clip policy.minibatches=7", "do not split"),
    ("policy/a = init_sft policy.target_kl=1.0 policy.beta=0.0", "start it above 0"),
    ("policy/a = init_sft policy.normalise_rewards=true policy.advantage=grpo", "does nothing"),
    ("policy/a = init_sft policy.kl=k1_loss", "k1 in the loss has no gradient"),
    ("policy/a = init_sft policy.divergence=kl", "config.policy.divergence"),
    ("reward/a = preference reward.granularity=token", "whole responses"),
    ("reward/a = init_sft reward.granularity=token reward.length_residual=true", "averaged"),
    ("reward/a = init_sft reward.combine=min", "ensemble above 1"),
    ("reward/a = init_sft reward.label_smoothing=0.5", "below 0.5"),
    ("adversarial/a = demo reward.length_residual=true", "never is"),
    ("adversarial/a = demo adversarial.replay_capacity=0", "replay_capacity above 0"),
    ("adversarial/a = demo adversarial.reward_rows=5", "even"),
    ("adversarial/a = demo adversarial.warmup_rounds=60", "leaves none"),
    ("adversarial/a = demo adversarial.min_accuracy=0.9 adversarial.max_accuracy=0.8", "below max_accuracy"),
])
def test_refusals_are_one_line_that_names_the_method(line, message):
    with pytest.raises(UserError, match=message) as caught:
        check(config_of(line))
    assert "\n" not in str(caught.value) and ("config.variants" in str(caught.value) or "recipes" in str(caught.value))


def test_names_that_differ_by_case_are_one():
    with pytest.raises(UserError, match="policy/a is taken twice"):
        check(config_of("policy/a = init_sft", "policy/A = init_sft"))
    check(config_of("policy/a = init_sft", "adversarial/A = demo", "policy/beta0.5 = init_sft policy.beta=0.5", "policy/a.b = init_sft"))
    check(config_of("policy/log_ratio = log_ratio policy.beta=0.5", "adversarial/demo = demo"))  # a recipe's own name


@pytest.mark.parametrize(("recipe", "keys"), [
    ("log_ratio_dense", {"policy.gamma": 0.9}),
    ("log_ratio", {"policy.gamma": 0.9}),
    ("token", {"policy.gamma": 0.9}),
    ("log_ratio", {"policy.advantage": "gae"}),
    ("log_ratio", {"policy.normalise_rewards": True, "policy.advantage": "grpo"}),
])
def test_a_recipe_and_a_variant_get_the_same_verdict(recipe, keys):
    def verdict(*variants, **also):
        try:
            check(config_of("reward/token = init_sft reward.granularity=token", *variants, **also))
        except UserError as error:
            return str(error).removeprefix("config.variants, policy/v: ")
        return ""

    own = " ".join(f"{key}={value}" for key, value in keys.items())
    as_variant = verdict(f"policy/v = {recipe} {own}", policy__recipes=())
    assert verdict(policy__recipes=(recipe,), **keys) == as_variant
    assert bool(as_variant) == (recipe == "log_ratio")


@pytest.mark.parametrize("keys", [
    {"policy__gamma": 0.9, "policy__recipes": ()},
    {"reward__combine": "min", "reward__recipes": ()},
    {"reward__length_residual": True, "reward__granularity": "token", "reward__recipes": ()},
])
def test_settings_that_no_method_uses_are_no_contradiction(keys):
    check(config_of("adversarial/a = demo policy.gamma=1.0 reward.combine=mean reward.length_residual=false",
                    **({"policy__recipes": ()} | keys)))


def test_contradictions_of_the_run_itself_are_refused_too():
    with pytest.raises(UserError, match="only 'gae' has a value head"):
        check(config_of(policy__value_coefficient=0.5))
    with pytest.raises(UserError, match="whole responses"):
        check(config_of(reward__granularity="token"))
    with pytest.raises(UserError, match="ensemble above 1"):
        check(config_of(reward__combine="min"))


def test_token_rewards_may_be_discounted():
    check(config_of("reward/t = init_sft reward.granularity=token", "policy/t = t policy.gamma=0.9",
                    "policy/dense = log_ratio_dense policy.gamma=0.9", "adversarial/t = demo reward.granularity=token policy.gamma=0.9"))


def test_an_unknown_role_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'policy/init_sft'"):
        find(default(), "policy/init_stf")
