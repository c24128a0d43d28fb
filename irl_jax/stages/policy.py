"""Policy gradient against a fixed reward, KL-controlled: maximise E[h(x, y)] - beta KL(policy || reference)."""

from __future__ import annotations

import jax
import numpy as np

from irl_jax import rollouts, sampler, sharding, steps
from irl_jax.data import batching
from irl_jax.stages import training


def run(context) -> dict:
    """Trains one policy for each of config.policy.recipes, starting from sft; leaves W/policy/<recipe>."""
    return training.each_recipe(context, "policy", context.config.policy.recipes, train_policy)


def train_policy(context, recipe: str) -> dict:
    """One policy against one reward, `config.policy.steps` updates of fresh samples each."""
    config = context.config.policy
    name = f"policy/{recipe}"
    leaves = context.init_leaves("policy", f"{name}/leaves", context.leaves("sft"))
    optimizer = steps.make_optimizer(config, config.steps)
    step = training.compiled(context, ("policy",), lambda: steps.make_policy_step(
        context.model, optimizer, config.accumulate, config.kl, config.beta))
    feed = _rollout_feed(context, config, recipe)

    def stop(row):
        if config.max_kl and row["kl"] > config.max_kl:
            return f"KL to {config.reference} {row['kl']:.2f} nats passed policy.max_kl = {config.max_kl}"
        return None

    state, info = training.fit(context, name, step, steps.init_state(leaves, optimizer), context.trunk, feed, config.steps,
                               stop=stop)
    context.save(name, state.leaves)
    return info


def _rollout_feed(context, config, recipe: str):
    """Fresh prompts, samples and advantages of the current policy at every step."""
    data = context.config.data
    prompts = list(dict.fromkeys(example.prompt.tobytes() for example in context.demonstrations))
    kind = context.demonstrations[0].prompt.dtype
    rows = training.batch_rows(config.batch_size, config.accumulate, context.mesh, "policy")
    indices = batching.feed(len(prompts), rows, context.config.seed)
    length = batching.bucket_length(max(len(p) // kind.itemsize for p in prompts), data.max_prompt_tokens)
    rollout = _compiled_rollout(context, config, recipe)
    reference = context.leaves(config.reference)
    reward = context.leaves("sft" if recipe == "log_ratio" else f"reward/{recipe}")
    key = context.key(f"policy/{recipe}/rollouts")

    def feed(step, state):
        chosen = indices(step)
        batch = batching.prompt_batch([np.frombuffer(prompts[i], dtype=kind) for i in chosen], list(range(rows)), length, rows)
        return rollout(state.leaves, reference, reward, context.trunk, context.put(batch),
                       jax.random.fold_in(key, step))

    return feed


def _compiled_rollout(context, config, recipe: str):
    """The jitted rollout; recipes that are judged alike share it."""
    name = ("rollout", recipe == "log_ratio")
    if name not in context.steps:
        draw = sampler.make_sampler(context.model, samples=config.samples, max_tokens=context.config.data.max_response_tokens,
                                    eos_ids=context.eos_ids, pad_id=context.pad_id)
        rollout = rollouts.make_rollout(context.model, draw, rollouts.make_judge(context.model, recipe), pad_id=context.pad_id,
                                        beta=config.beta, kl=config.kl)
        context.steps[name] = sharding.compile_step(rollout, context.mesh)
    return context.steps[name]
