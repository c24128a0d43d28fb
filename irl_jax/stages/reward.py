"""Rewards: one discriminator a recipe, a scalar logit at the end of the response. Positive means demonstrator-like."""

from __future__ import annotations

import numpy as np

from irl_jax import steps, workdir
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.evaluation import metrics
from irl_jax.stages import recipe_data, training


def run(context) -> dict:
    """Trains every recipe of config.reward.recipes; leaves W/reward/<recipe> with its held-out AUC in heldout.json."""
    return training.each_recipe(context, "reward", context.config.reward.recipes, train_recipe)


def train_recipe(context, recipe: str) -> dict:
    """One discriminator, stopped early on some held-out prompts; its held-out scores, on others, go to heldout.json."""
    config = context.config.reward
    name = f"reward/{recipe}"
    train, stopping, heldout = recipe_data.data_of(context, recipe)
    loss = "bradley_terry" if recipe == "preference" else "bce"
    leaves = context.init_leaves("reward", f"{name}/leaves")
    optimizer = steps.make_optimizer(config, config.steps)
    step = training.compiled(context, ("reward", loss),
                             lambda: steps.make_reward_step(context.model, optimizer, config.accumulate, loss))
    feed = _pair_feed(context, config, train)

    def evaluate(state):
        positive, negative = _scores(context, state.leaves, stopping)
        margin = positive - negative if loss == "bradley_terry" else np.concatenate([positive, -negative])
        return {"heldout_loss": float(np.logaddexp(0.0, -margin).mean()), "heldout_auc": metrics.auc(positive, negative)[0]}

    state, info = training.fit(context, name, step, steps.init_state(leaves, optimizer), context.trunk, feed, config.steps,
                               evaluate=evaluate, eval_every=config.eval_every, patience=config.patience)
    context.save(name, state.leaves)
    positive, negative = _scores(context, state.leaves, heldout)
    auc, stderr = metrics.auc(positive, negative, recipe_data.prompt_numbers(heldout))
    workdir.write_json(context.directory(name) / "heldout.json", {"auc": auc, "auc_stderr": stderr, "examples": len(positive)})
    context.say(f"{name}: held-out AUC {auc:.3f}")
    return info


def _scores(context, leaves, parts):
    positives, negatives = parts
    scores = context.scorer.rewards(leaves, positives + negatives)
    return scores[: len(positives)], scores[len(positives) :]


def _pair_feed(context, config, parts):
    """Batches of positives, then as many negatives: pair i in both halves, as Bradley-Terry needs."""
    positives, negatives = parts
    if not positives:
        raise UserError("config.reward: no training data for this recipe; sample more prompts or lower heldout_fraction")
    both = positives + negatives
    length = batching.bucket_length(max(len(e.prompt) + len(e.response) for e in both), context.longest)
    size = training.batch_rows(config.batch_size, 2 * config.accumulate, context.mesh, "reward") // 2
    indices = batching.feed(len(positives), size, context.config.seed)

    def feed(step, state):
        del state
        chosen = indices(step)
        rows = [positives[i] for i in chosen] + [negatives[i] for i in chosen]
        labels = [1.0] * len(chosen) + [0.0] * len(chosen)
        return context.put(batching.reward_rows(rows, labels, length))

    return feed
