"""Direct preference optimisation: a policy fitted to pairs, with sft as start and reference and no reward in between.

Who is chosen over whom is what the reward recipes say (`irl_jax.data.recipes`): demonstrations or samples of sft over samples
of init, demonstrations over samples of sft, or labelled preferences.
"""

from __future__ import annotations

import numpy as np

from irl_jax.objectives import preference
from irl_jax.objectives.reward import correct
from irl_jax.stages import pairs, recipe_data, training


def run(context) -> dict:
    """Trains one policy for each method of config.dpo; leaves W/dpo/<name>."""
    return training.each_method(context, "dpo", train)


def train(context, method) -> dict:
    """One policy on the training pairs of a recipe; its timing line has the accuracy on the held-out ones.

    It trains for config.dpo.steps, whatever the held-out pairs say: they choose nothing.
    """
    config = context.config.dpo
    (positives, negatives), _, heldout = recipe_data.data_of(context, method.recipe)
    sft = context.leaves("sft")
    leaves, info = pairs.fit(context, method.role, config, positives, negatives, sft, sft, config.label_smoothing)
    context.save(method.role, leaves)
    info["heldout_accuracy"] = _accuracy(context, leaves, sft, *heldout)
    context.say(f"{method.role}: {info['heldout_accuracy']:.1%} of {len(heldout[0])} held-out pairs in the right order")
    return info


def _accuracy(context, leaves, reference, positives, negatives) -> float:
    """Share of the pairs whose implicit reward log(policy/reference) is larger on the positive, ties half."""
    policy_2xP, reference_2xP = (context.scorer.logprobs(each, positives + negatives).reshape(2, -1) for each in (leaves, reference))
    return float(np.mean(correct(preference.margin(*policy_2xP, *reference_2xP))))
