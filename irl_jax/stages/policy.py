"""Policy gradient against a fixed reward, KL-controlled: maximise E[r(h(x, y))] - beta KL(policy || reference)."""

from __future__ import annotations

from irl_jax.config import CLOSED_FORMS
from irl_jax.stages import gradient, scoring, training


def run(context) -> dict:
    """Trains the policies of the run, each against one reward; leaves W/policy/<name>."""
    return training.each_method(context, "policy", train_policy)


def train_policy(context, method) -> dict:
    """One policy against one reward, `config.policy.steps` rounds of fresh samples."""
    config, recipe = context.config.policy, method.recipe
    if config.divergence != "reverse_kl":
        context.say(f"{method.role}: policy.divergence = {config.divergence} shapes a fixed reward; a divergence is minimised only where "
                    "the reward is refreshed (the adversarial stage)")
    if recipe in CLOSED_FORMS:
        leaves, granularity, combine = context.leaves("sft"), "response", "mean"
    else:
        leaves, granularity, combine = scoring.reward_of(context, recipe)
    trainer = gradient.PolicyGradient(context, method.role, recipe=recipe, granularity=granularity, combine=combine,
                                      prompts=context.training_prompts, rounds=config.steps)

    def step(state, trunk, fed, rng):
        del trunk  # the trainer has it
        return trainer.update(state, trainer.draw(state, fed), leaves, fed, rng)

    state, info = training.fit(context, method.role, step, trainer.start(), context.trunk, trainer.feed, config.steps, stop=trainer.stop)
    trainer.save(state)
    return info
