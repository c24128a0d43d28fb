"""Direct preference optimisation (DPO): fits a policy to pairs without a reward, with sft as start and reference.

The reward recipes (`irl_jax.data.recipes`) choose the pairs: demonstrations or samples of sft over samples of init,
demonstrations over samples of sft, or labelled preferences.
"""

from __future__ import annotations

import numpy as np

from irl_jax.objectives import preference
from irl_jax.objectives.reward import correct
from irl_jax.stages import pairs, recipe_data, training


def run(context) -> dict:
    """Trains one policy per method of config.dpo; writes W/dpo/<name>."""
    return training.each_method(context, "dpo", train)


def train(context, method) -> dict:
    """Trains one policy on a recipe's training pairs; its timing line has the accuracy on the held-out pairs.

    It trains for config.dpo.steps: the held-out pairs don't stop it early.
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
    """Share of pairs whose implicit reward log(policy/reference) is larger on the positive; ties count half."""
    policy_2xP, reference_2xP = (context.scorer.logprobs(each, positives + negatives).reshape(2, -1) for each in (leaves, reference))
    return float(np.mean(correct(preference.margin(*policy_2xP, *reference_2xP))))
