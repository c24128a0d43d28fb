"""KL-controlled policy gradient on a fixed reward: maximises E[r(h(x, y))] - beta KL(policy || reference)."""

from __future__ import annotations

import jax.numpy as jnp

from irl_jax import artifacts
from irl_jax.config import CLOSED_FORMS, ROBUST
from irl_jax.evaluation.robust import AGAINST_Z
from irl_jax.stages import gradient, scoring, training


def run(context) -> dict:
    """Trains the run's policies, each on one reward; writes W/policy/<name>."""
    return training.each_method(context, "policy", train_policy)


def train_policy(context, method) -> dict:
    """Trains one policy on one reward for `config.policy.steps` rounds of fresh samples."""
    config, recipe = context.config.policy, method.recipe
    if config.divergence != "reverse_kl":
        context.say(f"{method.role}: policy.divergence = {config.divergence} shapes a fixed reward; a divergence is minimised only where "
                    "the reward is refreshed (the adversarial stage)")
    _warn(context, method.role, recipe)
    if recipe == ROBUST:
        leaves, granularity, combine = robust_leaves(context)
    elif recipe in CLOSED_FORMS:
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


def robust_leaves(context):
    """(leaves, granularity, combine) of the reward `robust`, for `rollouts.make_judge`."""
    found = scoring.robust_of(context)
    leaves, granularity, combine = scoring.reward_of(context, found.recipe)
    weights = {term.reward: term.weight for term in found.terms}
    both = jnp.asarray([weights.get(name, 0.0) for name in (found.recipe, "mean_logprob")], jnp.float32)
    return {"reward": leaves, "sft": context.leaves("sft"), "weights": both}, granularity, combine


def _warn(context, role: str, recipe: str) -> None:
    """Warns if the development prompts speak against the reward that a policy is about to optimise."""
    path = scoring.robust_file(context)
    if not path.exists():
        return
    found = artifacts.read_json(path, {"directions!": {"*": {"z": float}}, "terms": []})
    row = found["directions"].get(recipe)
    if row and (row["z"] or 0.0) <= -AGAINST_Z:
        context.say(f"{role}: careful, its reward puts demonstrations below sft's own samples (z = {row['z']:.1f}): what it asks for more "
                    "of is no virtue (docs/robust.md)")
    if recipe == ROBUST and not found.get("terms"):
        context.say(f"{role}: the gate of robust is closed, so that this policy stays sft (docs/robust.md)")
