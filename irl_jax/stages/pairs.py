"""What DPO and SPIN share: fitting a policy to pairs of responses, against a fixed reference."""

from __future__ import annotations

import numpy as np

from irl_jax import artifacts, preference_steps, sharding, steps
from irl_jax.data import batching
from irl_jax.errors import UserError
from irl_jax.stages import training

REFERENCE = "reference.npz"  # the reference's log-probs of the pairs, saved so that a resumed run trains on the same numbers


def fit(context, name: str, config, positives, negatives, start, reference, label_smoothing: float = 0.0):
    """Trains a policy to prefer positives[i] to negatives[i], responses to the same prompt.

    Args:
        context: the run. name: folder in the workdir. config: a training section with beta; batch_size counts pairs.
        positives, negatives: equally long lists of Example. start: the policy's initial leaves (copied).
        reference: the reference's leaves. label_smoothing: share of pairs assumed to be swapped.

    Returns:
        (the policy's leaves, the loop's info).

    Raises:
        UserError: there are no pairs.
    """
    section = name.split("/")[0]
    if not positives:
        raise UserError(f"config.{section}: no pairs are left for {name}; give more data, sample more prompts or lower "
                        "reward.heldout_fraction")
    leaves = context.init_leaves("policy", f"{name}/leaves", start)
    optimizer = steps.make_optimizer(config, config.steps)
    compiled_as = ("pairs", config.steps, config.accumulate, config.beta, label_smoothing, *training.optimizer_name(config))
    step = training.compiled(context, compiled_as, lambda: preference_steps.make_preference_step(
        context.model, optimizer, config.accumulate, beta=config.beta, label_smoothing=label_smoothing))
    feed = _feed(context, config, positives, negatives, _reference_logprobs(context, name, reference, positives, negatives), section)
    state, info = training.fit(context, name, step, steps.init_state(leaves, optimizer), context.trunk, feed, config.steps)
    return state.leaves, info


def _reference_logprobs(context, name, reference, positives, negatives) -> np.ndarray:
    """[2, pairs], nats per sequence; computed once per run."""
    path = context.directory(name) / REFERENCE
    if not path.exists():
        logprobs = context.scorer.logprobs(reference, positives + negatives)
        artifacts.save_arrays(path, logprobs=logprobs.reshape(2, -1))
    return artifacts.load_arrays(path)["logprobs"]


def _feed(context, config, positives, negatives, reference_logprobs, section: str):
    """Batches of pairs as a function of the step: the positives, then the negatives of the same prompts."""
    longest = max(len(e.prompt) + len(e.response) for e in positives + negatives)
    length = batching.bucket_length(longest, context.longest)
    padded = training.batch_rows(2 * config.batch_size, 2 * config.accumulate, context.mesh, section) // 2
    indices = batching.feed(len(positives), config.batch_size, context.config.seed)

    def feed(step):
        chosen = indices(step)
        rows = batching.token_rows([positives[i] for i in chosen] + [negatives[i] for i in chosen], length)
        reference = reference_logprobs[:, chosen].reshape(-1).astype(np.float32)
        batch = preference_steps.PreferenceBatch(rows, reference, np.ones(2 * len(chosen), np.float32))
        return context.put(sharding.pad_rows(batch, padded, paired=True))

    return feed
