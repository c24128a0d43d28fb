"""Rewards: one discriminator per method. A positive logit means demonstrator-like. The logit is read at the end of the
response, or per token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from irl_jax import artifacts, reward_steps, roles, sharding, steps
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.evaluation import metrics
from irl_jax.stages import recipe_data, reward_model, training


def run(context) -> dict:
    """Trains the run's rewards; writes W/reward/<name>, with the held-out AUC in heldout.json."""
    return training.each_method(context, "reward", train_reward)


def train_reward(context, method) -> dict:
    """Trains one discriminator, with early stopping on some held-out prompts. Its AUC on the others goes to heldout.json."""
    config, name = context.config.reward, method.role
    train, stopping, heldout = recipe_data.data_of(context, method.recipe)
    loss = "bradley_terry" if method.recipe == "preference" else "bce"
    spec, settings = roles.RewardSpec.of(config), reward_steps.RewardSettings.of(config, context.eos_ids)
    leaves = reward_model.start_leaves(context, f"{name}/leaves", spec)
    optimizer = steps.make_optimizer(config, config.steps)
    step = training.compiled(
        context, ("reward", loss, settings, spec, config.accumulate, training.optimizer_name(config), config.steps),
        lambda: reward_steps.make_reward_step(context.model, optimizer, config.accumulate, loss, settings))

    def evaluate(state):
        positive, negative = _scores(context, reward_steps.effective(state.leaves, settings, context.model), stopping)
        margin = positive - negative if loss == "bradley_terry" else np.concatenate([positive, -negative])
        return {"heldout_loss": float(np.logaddexp(0.0, -margin).mean()), "heldout_auc": metrics.auc(positive, negative)[0]}

    state, info = training.fit(context, name, step, steps.init_state(leaves, optimizer), context.trunk, _pair_feed(context, config, train),
                               config.steps, evaluate=evaluate, eval_every=config.eval_every, patience=config.patience)
    finished = reward_steps.effective(state.leaves, settings, context.model)
    if config.length_residual:
        finished = without_length(context, finished, train)
    context.save(name, finished)
    _report(context, name, finished, heldout)
    return info


def without_length(context, leaves, parts):
    """The leaves with "length": {"slope", "centre"}. Scoring subtracts slope * (length - centre) from each member's logit.

    The slope is that of h on the response's length within classes, by least squares on the training data. What length says
    beyond the label and what it says of the label can't be told apart, so both go.
    """
    examples = [*parts[0], *parts[1]]
    logits_Exn = context.scorer.member_rewards(leaves, examples)
    lengths = np.array([len(example.response) for example in examples], np.float64)
    within = lengths.copy()
    for part in (slice(0, len(parts[0])), slice(len(parts[0]), None)):
        within[part] -= lengths[part].mean()
    slope_E = (logits_Exn * within).sum(1) / max(float((within**2).sum()), 1e-12)
    length = {"slope": jnp.asarray(slope_E, jnp.float32), "centre": jnp.full(slope_E.shape, lengths.mean(), jnp.float32)}
    if "members" in leaves:
        return {"members": {**leaves["members"], "length": length}}
    return {**leaves, "length": jax.tree.map(lambda x: x[0], length)}


def _report(context, name: str, leaves, heldout) -> None:
    """Writes and prints the held-out AUC; the file also has each member's."""
    reward = context.config.reward
    members_Exn = context.scorer.member_rewards(leaves, [*heldout[0], *heldout[1]], reward.granularity)
    positive, negative = np.split(reward_steps.combined(members_Exn, reward.combine, np), [len(heldout[0])])
    auc, stderr = metrics.auc(positive, negative, recipe_data.prompt_numbers(heldout))
    members = [metrics.auc(*np.split(logits, [len(heldout[0])]))[0] for logits in members_Exn]
    artifacts.write_json(context.directory(name) / "heldout.json", {
        "auc": auc, "auc_stderr": stderr, "examples": len(positive), "member_aucs": members})
    context.say(f"{name}: held-out AUC {auc:.3f}")


def _scores(context, leaves, parts):
    positives, negatives = parts
    reward = context.config.reward
    scores = context.scorer.rewards(leaves, positives + negatives, reward.granularity, reward.combine)
    return scores[: len(positives)], scores[len(positives) :]


def _pair_feed(context, config, parts):
    """Batches of positives, then as many negatives. Row i of both halves is pair i, as Bradley-Terry and token rewards need."""
    positives, negatives = parts
    if not positives:
        raise UserError("config.reward: no training data for this recipe; sample more prompts or lower heldout_fraction")
    both = positives + negatives
    length = batching.bucket_length(max(len(e.prompt) + len(e.response) for e in both), context.longest)
    size = max(1, config.batch_size // 2)
    padded = training.batch_rows(2 * size, 2 * config.accumulate, context.mesh, "reward") // 2
    indices = batching.feed(len(positives), size, context.config.seed)

    def feed(step):
        chosen = indices(step)
        rows = [positives[i] for i in chosen] + [negatives[i] for i in chosen]
        labels = [1.0] * len(chosen) + [0.0] * len(chosen)
        return context.put(sharding.pad_rows(batching.reward_rows(rows, labels, length), padded, paired=True))

    return feed
