"""Rejection fine-tuning (expert iteration): repeatedly uses the best of N samples by a reward as new demonstrations.

One iteration moves the policy towards the best-of-N distribution. Its KL to the policy is at most log N - (N - 1)/N. It is a
baseline of policy optimisation without a policy gradient.
"""

from __future__ import annotations

import numpy as np

from irl_jax import artifacts, steps
from irl_jax.stages import iterations, scoring, training

CHOSEN = "chosen.npz"  # the rewards [P, N] and the best sample of each prompt [P]


def run(context) -> dict:
    """Trains one policy per method of config.rejection; writes W/rejection/<name> and its iterates .../iteration-<i>."""
    return training.each_method(context, "rejection", train)


def train(context, method) -> dict:
    """Trains one policy on the recipe's reward for config.rejection.iterations iterations."""
    return iterations.run(context, method, context.config.rejection.iterations,
                          lambda context, name, leaves: _improve(context, name, leaves, method.recipe))


def best(rewards_PxN: np.ndarray) -> np.ndarray:
    """The index of each prompt's sample with the largest reward, the first if tied: int [P]."""
    return np.argmax(rewards_PxN, axis=1)


def _improve(context, name: str, leaves, reward: str):
    config = context.config.rejection
    chosen, info_of_choice = _choose(context, name, leaves, reward)
    feed, updates = training.sequence_feed(context, chosen, config, "rejection")
    optimizer = steps.make_optimizer(config, updates)
    step = training.compiled(context, ("rejection", updates, config.accumulate, *training.optimizer_name(config)),
                             lambda: steps.make_sft_step(context.model, optimizer, config.accumulate))
    state = steps.init_state(context.init_leaves("policy", f"{name}/leaves", leaves), optimizer)
    state, info = training.fit(context, name, step, state, context.trunk, feed, updates)
    return state.leaves, info | info_of_choice


def _choose(context, name: str, leaves, reward: str):
    """(best of N samples per prompt, their mean reward and that of all samples); saved so that a resumed run chooses the same."""
    config = context.config.rejection
    prompts = context.training_prompts[: config.prompts]
    samples = iterations.draw(context, name, leaves, prompts, config.samples)["examples"]
    path = context.directory(name) / CHOSEN
    if not path.exists():
        rewards_PxN = scoring.rewards(context, reward, samples).reshape(len(prompts), config.samples)
        artifacts.save_arrays(path, rewards=rewards_PxN, best=best(rewards_PxN))
    kept = artifacts.load_arrays(path)
    chosen = [samples[p * config.samples + n] for p, n in enumerate(kept["best"])]
    info = {"reward_mean": float(kept["rewards"].mean()), "chosen_reward_mean": float(kept["rewards"].max(axis=1).mean())}
    context.say(f"{name}: reward {info['reward_mean']:.3f}, of the best of {config.samples} {info['chosen_reward_mean']:.3f}")
    return chosen, info
